"""A step of our AdamW against PyTorch's default, on the parameters of models shaped like GPT-2; on the CPU."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.optim.first_order import AdamW
from tests.bench.timing import Row, quartile, row, show


def parameters(d: int, layers: int, vocabulary: int, length: int) -> list[torch.nn.Parameter]:
    """Return parameters with gradients, in the shapes of GPT-2."""
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    shapes = [(vocabulary, d), (length, d), *(block * layers), (d,), (d,)]
    params = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def measure(d: int, layers: int, vocabulary: int) -> Row:
    """Compare one step at one size."""
    torch.manual_seed(0)
    candidates = {
        "ours": AdamW(parameters(d, layers, vocabulary, 256)).step,
        "torch": torch.optim.AdamW(parameters(d, layers, vocabulary, 256)).step,
    }
    best = quartile(candidates, rounds=15)
    return row(f"AdamW / torch's AdamW, width {d}, {layers} layers", best["ours"], best["torch"], 1.0)


def main() -> list[dict[str, str | float]]:
    """Measure, print and return the rows."""
    rows = [measure(128, 4, 512), measure(384, 6, 8192), measure(768, 4, 8192)]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
