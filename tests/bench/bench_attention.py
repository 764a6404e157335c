"""Attention against PyTorch's kernel and against the equation written out; forward, causal, on the CPU."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.functional.attention import attention, attention_reference, causal_attention, causal_mask
from tests.bench.timing import Row, quartile, row, show


def measure(batch: int, length: int, *, naive: bool) -> list[Row]:
    """Compare 8 heads of width 64 at one length."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, 8, length, 64) for _ in range(3))
    mask = causal_mask(length)
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: attention(q, k, v, mask=mask),
        "torch": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "ours, causal": lambda: causal_attention(q, k, v),
        "torch, causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    if naive:
        candidates["naive"] = lambda: attention_reference(q, k, v, mask=mask)
    best, size = quartile(candidates, rounds=120), f"{batch} x 8 x {length} x 64"
    rows = [
        row(f"attention / SDPA with a mask, {size}", best["ours"], best["torch"], 1.05),
        row(f"causal_attention / SDPA is_causal, {size}", best["ours, causal"], best["torch, causal"], 1.05),
        row(f"causal_attention / attention, {size}", best["ours, causal"], best["ours"], 1.05),
    ]
    return [*rows, row(f"attention / attention_reference, {size}", best["ours"], best["naive"], 0.6)] if naive else rows


@torch.inference_mode()
def main() -> list[dict[str, str | float]]:
    """Measure, print and return the rows."""
    rows = [*measure(batch=2, length=512, naive=True), *measure(batch=1, length=2048, naive=False)]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
