"""Token log-probabilities against trl's formula, cross-entropy and linear cross-entropy against PyTorch's; on the CPU.

Beside the times it prints the peak memory that each way adds, as the largest sum of tensors that were alive.
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.functional.losses import cross_entropy, linear_cross_entropy, token_logp
from tests.bench.timing import Row, quartile, row, show


def selective_log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """Compute what trl computes: gather, then subtract the log-sum, one row of the batch at a time."""
    return logits.gather(-1, ids[..., None])[..., 0] - torch.stack([z.logsumexp(dim=-1) for z in logits])


def peak_mib(run: Callable[[], object]) -> float:
    """Return the most memory that a call holds beyond what was there before, in MiB."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def report(candidates: dict[str, Callable[[], object]]) -> None:
    """Print how much memory each way takes."""
    for name, run in candidates.items():
        print(f"{name:<55} {peak_mib(run):>9.1f} MiB")


def measure_token_logp() -> list[Row]:
    """Compare the log-probabilities of 4 x 256 tokens of 32,000, without gradients."""
    torch.manual_seed(0)
    logits, ids = torch.randn(4, 256, 32000), torch.randint(32000, (4, 256))
    candidates: dict[str, Callable[[], object]] = {
        "token_logp": lambda: token_logp(logits, ids),
        "selective_log_softmax": lambda: selective_log_softmax(logits, ids),
        "gather of log_softmax": lambda: logits.log_softmax(dim=-1).gather(-1, ids[..., None]),
    }
    with torch.inference_mode():
        best = quartile(candidates, rounds=15)
        report(candidates)
    ours = best.pop("token_logp")
    return [row(f"token_logp / {name}", ours, peer, 1.0) for name, peer in best.items()]


def measure_training() -> list[Row]:
    """Compare losses with their gradients: 1024 tokens, width 512, a vocabulary of 32,000."""
    torch.manual_seed(0)
    x, weight = torch.randn(1024, 512), torch.randn(32000, 512) / 512**0.5
    targets = torch.randint(32000, (1024,))
    logits = (x @ weight.T).requires_grad_()
    pair = x.requires_grad_(), weight.requires_grad_()
    candidates: dict[str, Callable[[], object]] = {
        "cross_entropy": lambda: torch.autograd.grad(cross_entropy(logits, targets), logits),
        "F.cross_entropy": lambda: torch.autograd.grad(F.cross_entropy(logits, targets), logits),
        "linear_cross_entropy": lambda: torch.autograd.grad(linear_cross_entropy(*pair, targets), pair),
        "linear, F.cross_entropy": lambda: torch.autograd.grad(F.cross_entropy(x @ weight.T, targets), pair),
    }
    best = quartile(candidates, rounds=6, warmup=1)
    report(candidates)
    return [
        row("cross_entropy / F.cross_entropy", best["cross_entropy"], best["F.cross_entropy"], 1.0),
        row("linear_cross_entropy / linear, F.cross_entropy", *(best[n] for n in list(best)[2:]), 1.05),
    ]


def main() -> list[dict[str, str | float]]:
    """Measure, print and return the rows."""
    rows = [*measure_token_logp(), *measure_training()]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
