"""Fit three kinds of targets with plain and gated networks of equal size, and record the errors.

Run it as a script from the root of the project; it writes docs/data/gated_ffn.json and takes some minutes.
"""

import json
import math
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import llm_study
from llm_study.functional import activations as A

TARGET = Path(__file__).parents[1] / "data" / "gated_ffn.json"
SEED = 0
SIZES = {"D": 24, "plain": 96, "gated": 64, "seeds": 6, "batch": 128, "steps": 1000, "test": 4096}
RATES = [1e-2, 3e-2, 1e-1]
TARGETS = ["product", "relu", "sine"]
Gate = Callable[[Tensor, Tensor], Tensor]
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": A.relu,
    "GELU": A.gelu,
    "SiLU": A.silu,
    "ReLU²": A.relu_squared,
}
GATED: dict[str, Gate] = {
    "GLU": A.glu,
    "bilinear": A.bilinear,
    "ReGLU": A.reglu,
    "GeGLU": A.geglu,
    "SwiGLU": A.swiglu,
}


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    """Return one independent normal tensor for each seed."""
    return torch.randn(SIZES["seeds"], *shape, generator=generator)


def inputs(generator: torch.Generator, n: int) -> Tensor:
    """Return ``(seeds, n, D)`` inputs: normal numbers, and a last feature that is always 1, for the biases."""
    x = draw(generator, n, SIZES["D"])
    x[..., -1] = 1.0
    return x


def teacher(kind: str) -> Callable[[Tensor], Tensor]:
    """Return the function to be learned: another one for each seed, as wide as the input."""
    generator, D = torch.Generator().manual_seed(SEED + 1), SIZES["D"]
    first, second = draw(generator, D, D) / math.sqrt(D), draw(generator, D, D) / math.sqrt(D)
    if kind == "product":
        return lambda x: (x @ first) * (x @ second)
    if kind == "relu":
        return lambda x: A.relu(x @ first) @ (math.sqrt(2) * second)
    return lambda x: torch.sin(x @ first)


def student(name: str) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Return fresh weights, and the network as a function that reads them; all have the same number of weights."""
    generator, D = torch.Generator().manual_seed(SEED + 2), SIZES["D"]
    F = SIZES["plain" if name in PLAIN else "gated"]
    weights = [draw(generator, D, F) / math.sqrt(D) for _ in range(1 if name in PLAIN else 2)]
    weights = [w.requires_grad_() for w in (*weights, draw(generator, F, D) / math.sqrt(F))]
    if name in PLAIN:
        return weights, lambda x: PLAIN[name](x @ weights[0]) @ weights[1]
    return weights, lambda x: GATED[name](x @ weights[0], x @ weights[1]) @ weights[2]


def fit(name: str, kind: str, rate: float, steps: int | None = None) -> Tensor:
    """Train on fresh samples, and return the ``(seeds,)`` errors on others, as parts of the variance of the target."""
    target, (weights, network), total = teacher(kind), student(name), SIZES["steps"]
    generator, optimizer = torch.Generator().manual_seed(SEED + 3), torch.optim.Adam(weights, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for _ in range(total if steps is None else steps):
        x = inputs(generator, SIZES["batch"])
        loss = (network(x) - target(x)).square().mean(dim=(1, 2)).sum()  # the seeds do not touch each other
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = inputs(torch.Generator().manual_seed(SEED + 4), SIZES["test"])
    with torch.no_grad():
        y = target(x)
        return (network(x) - y).square().mean(dim=(1, 2)) / y.var(dim=1, correction=0).mean(dim=1)


def measure(name: str, kind: str) -> dict[str, float | list[float]]:
    """Return the errors at the learning rate whose average error is least."""
    errors, rate = min(((fit(name, kind, rate), rate) for rate in RATES), key=lambda pair: pair[0].mean().item())
    return {"rate": rate, "errors": [float(f"{e:.4g}") for e in errors.tolist()]}


def main() -> None:
    """Fit everything and write the record."""
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "what": "share of the variance that is left after fitting, plain and gated networks of equal size",
        "script": f"docs/figures/{Path(__file__).name}",
        "seed": SEED,
        "sizes": SIZES,
        "rates": RATES,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": torch.get_num_threads()},
        "beginning": {name: round(fit(name, "sine", 1e-2, steps=5).mean().item(), 4) for name in (*PLAIN, *GATED)},
        "results": {kind: {name: measure(name, kind) for name in (*PLAIN, *GATED)} for kind in TARGETS},
    }
    TARGET.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
