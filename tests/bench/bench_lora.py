"""LoRA on all linear layers at one token, and putting adapters into a deep model: against the model alone and peft."""

import copy
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"
import peft

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.peft.base import adapter_state_dict, inject, unload
from llm_study.peft.lora import LoRA, batched_lora
from tests.bench.timing import Row, quartile, row, show


class Block(nn.Module):
    """The linear layers of a decoder's layer: four of attention, three of the feed-forward part."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(d, 4 * d, bias=False)
        self.down_proj = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.o_proj(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))
        y: Tensor = self.down_proj(self.gate_proj(x) * self.up_proj(x))
        return y


def layers(d: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(Block(d) for _ in range(n)))


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = partial(peft.LoraConfig, r=8, lora_alpha=16, target_modules=TARGETS)


@torch.inference_mode()
def one_token(d: int, *, limit: float | None) -> list[Row]:
    """Compare a model alone, with our adapters, and with those of peft; all read the same weights."""
    torch.manual_seed(0)
    base = layers(d, 2)
    shared = {id(x): x for x in base.parameters()}  # a deep copy with this memo keeps the weights themselves
    ours = inject(copy.deepcopy(base, dict(shared)), LoRA(rank=8, alpha=16), targets=TARGETS).eval()
    theirs = peft.get_peft_model(copy.deepcopy(base, dict(shared)), CONFIG()).eval().base_model.model
    x = torch.randn(1, 1, d)
    for tensor in adapter_state_dict(ours).values():
        nn.init.normal_(tensor)
    candidates: dict[str, Callable[[], object]] = {
        "base": partial(base, x),
        "ours": partial(ours, x),
        "peft": partial(theirs, x),
    }
    best = quartile(candidates, rounds=60 if d > 1000 else 300, warmup=10)
    rows = [row(f"LoRA r 8 at one token / peft, d {d}", best["ours"], best["peft"], 1.0)]
    if limit is not None:
        rows.append(row(f"LoRA r 8 at one token / the model alone, d {d}", best["ours"], best["base"], limit))
    return rows


def injection() -> Row:
    """Put adapters into 200 layers of seven matrices each."""
    net = layers(16, 200)

    def ours() -> None:
        unload(inject(net, LoRA(rank=8), targets=TARGETS))

    def theirs() -> None:
        peft.get_peft_model(net, CONFIG()).unload()

    best = quartile({"ours": ours, "peft": theirs}, rounds=5, warmup=1)
    return row("inject into 200 layers and unload / peft", best["ours"], best["peft"], 1.0)


@torch.inference_mode()
def batches() -> Row:
    """Serve 32 sequences, one token each: one weight and 8 adapters against 8 merged weights."""
    x, weight, merged = torch.randn(32, 1, 1024), torch.randn(1024, 1024), torch.randn(8, 1024, 1024)
    A, B, index = torch.randn(8, 8, 1024), torch.randn(8, 1024, 8), torch.arange(32) % 8

    def one_weight() -> Tensor:
        return F.linear(x, weight) + batched_lora(x, A, B, index)

    def many_weights() -> Tensor:
        return torch.stack([F.linear(row, merged[i]) for row, i in zip(x, index.tolist(), strict=True)])

    best = quartile({"ours": one_weight, "merged": many_weights}, rounds=100)
    return row("32 sequences, 8 adapters / 8 merged weights, d 1024", best["ours"], best["merged"], 0.5)


def main() -> list[dict[str, str | float]]:
    """Measure, print and return the rows."""
    widths = [one_token(512, limit=None), one_token(1024, limit=None), one_token(2048, limit=1.15)]
    rows = [*(line for lines in widths for line in lines), injection(), batches()]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
