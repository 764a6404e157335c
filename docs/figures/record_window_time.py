"""Record how long windows, caps and sinks take, in docs/data/window_time.json: run it from the root of the project.

One thread works, and what counts is the time that the processor spends on it, the least of several rounds in which the
functions take turns: other work on the machine then matters little.
"""

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import llm_study
from llm_study.functional.attention import (
    attention,
    causal_attention,
    causal_mask,
    sink_attention,
    sliding_window_mask,
    softcap_attention,
)
from llm_study.functional.attention_variants import sliding_window_attention

TARGET = Path(__file__).parents[1] / "data" / "window_time.json"
SEED, ROUNDS, LENGTHS = 0, 3, [256, 512, 1024, 2048, 4096]
SIZES = {"B": 1, "H": 4, "Dh": 64, "W": 256}
CAP = 50.0


def inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values of one length; the same in every run."""
    generator = torch.Generator().manual_seed(SEED + length)
    shape = (3, SIZES["B"], SIZES["H"], length, SIZES["Dh"])
    q, k, v = torch.randn(shape, generator=generator).unbind()
    return q, k, v


def functions(length: int) -> dict[str, Any]:
    """Return the functions that are compared, all causal."""
    window, causal = sliding_window_mask(length, window=SIZES["W"]), causal_mask(length)
    sinks = torch.zeros(SIZES["H"])
    return {
        "causal_attention": causal_attention,
        "attention": lambda q, k, v: attention(q, k, v, mask=window),
        "sliding_window_attention": lambda q, k, v: sliding_window_attention(q, k, v, window=SIZES["W"]),
        "softcap_attention": lambda q, k, v: softcap_attention(q, k, v, cap=CAP, mask=causal),
        "sink_attention": lambda q, k, v: sink_attention(q, k, v, sinks, mask=causal),
    }


def outputs(length: int) -> dict[str, Tensor]:
    """Return what each function computes, by name."""
    return {name: function(*inputs(length)) for name, function in functions(length).items()}


def measure(length: int) -> dict[str, float]:
    """Return the milliseconds of processor time of each function, the least of several interleaved rounds."""
    best = dict.fromkeys(functions(length), float("inf"))
    q, k, v = inputs(length)
    for _ in range(ROUNDS):
        for name, function in functions(length).items():
            start = time.process_time()
            function(q, k, v)
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return {name: round(ms, 3) for name, ms in best.items()}


def main() -> None:
    """Measure every length and write the record."""
    torch.set_num_threads(1)
    rows = [measure(length) for length in LENGTHS]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "what": "causal attention with a window, a cap or a sink, forward pass, float32; processor time of one thread",
        "script": f"docs/figures/{Path(__file__).name}",
        "seed": SEED,
        "rounds": ROUNDS,
        "sizes": SIZES,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": torch.get_num_threads()},
        "lengths": LENGTHS,
        "checksums": {
            str(t): {name: round(out.abs().sum().item(), 2) for name, out in outputs(t).items()} for t in LENGTHS[:2]
        },
        "milliseconds": {name: [row[name] for row in rows] for name in rows[0]},
    }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
