"""NF4 against the published table and scipy, LoftQ against peft; bitsandbytes is not installed, nor needed."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import peft
import peft.utils.loftq_utils
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from llm_study.functional.codebooks import (
    dequantize_blockwise,
    fp4_codebook,
    fp8_codebook,
    midpoint_codebook,
    nf4_codebook,
    quantize_blockwise,
)
from llm_study.functional.lowrank import loftq_factors
from llm_study.peft.base import inject, merge, save_adapter
from llm_study.peft.qlora import LoftQ, QLoRA
from tests.parity.closeness import assert_close

# As printed in appendix E of arXiv:2305.14314 and in bitsandbytes/functional.py (get_4bit_type)
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_nf4_is_the_published_table() -> None:
    published = torch.tensor(PUBLISHED, dtype=torch.float64)
    assert (nf4_codebook().double() - published).abs().max() < 2e-7  # the table was computed in float32


def test_codes_are_those_of_the_published_table() -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = (quantize_blockwise(x, codebook=book).codes for book in (nf4_codebook(), torch.tensor(PUBLISHED)))
    assert torch.equal(ours, theirs)


def test_scipy_gives_the_table_from_the_same_quantiles() -> None:
    offset = 1 - (1 / 30 + 1 / 32) / 2
    up, down = ndtri(np.linspace(offset, 0.5, 9)[:-1]), -ndtri(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([up, [0.0], down]))
    assert_close(nf4_codebook(), torch.tensor(values / values[-1]).float())
    i = np.arange(1, 16)
    middles = (ndtri(i / 17) + ndtri((i + 1) / 17)) / 2
    assert_close(midpoint_codebook(bits=4), torch.tensor(middles / middles[-1]).float())


def test_floats_of_8_bits_are_those_of_torch() -> None:
    book = 448 * fp8_codebook()
    assert torch.equal(book.to(torch.float8_e4m3fn).float(), book)
    x = torch.linspace(-448, 448, 9001)
    nearest = book[torch.bucketize(x, (book[1:] + book[:-1]) / 2)]
    assert ((x.to(torch.float8_e4m3fn).float() - x).abs() == (nearest - x).abs()).all()  # ties may go the other way
    assert torch.equal((6 * fp4_codebook()).to(torch.float8_e4m3fn).float(), 6 * fp4_codebook())


# --- LoftQ


class OnThisMachine:
    """A weight that peft may move to an accelerator: it stays on the CPU."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.device, self.dtype = weight, weight.device, weight.dtype

    def to(self, *, device: str, dtype: torch.dtype) -> Tensor:
        del device
        return self.weight.to(dtype)


class Params4bit:
    """What bitsandbytes would make of a weight, by our quantization."""

    def __init__(self, data: Tensor, **_: object) -> None:
        self.data, self.quant_state = data, None

    def to(self, device: str) -> "Params4bit":
        del device
        return self


def nf4(x: Tensor) -> Tensor:
    return dequantize_blockwise(quantize_blockwise(x, codebook=nf4_codebook()))


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """LoftQ of peft: its loop and its decomposition, on the CPU, above our NF4 in place of bitsandbytes."""
    module = peft.utils.loftq_utils
    functional = SimpleNamespace(dequantize_4bit=lambda data, state: nf4(data))
    stub = SimpleNamespace(nn=SimpleNamespace(Params4bit=Params4bit), functional=functional)
    monkeypatch.setitem(sys.modules, "bitsandbytes", stub)
    for name in ("is_bnb_available", "is_bnb_4bit_available"):
        monkeypatch.setattr(module, name, lambda: True)
    return module


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_loftq_is_that_of_peft(theirs: ModuleType, steps: int) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(steps))
    q, a, b = loftq_factors(weight, 8, quantize=nf4, steps=steps)
    their_q, their_a, their_b = theirs.loftq_init(OnThisMachine(weight), 4, 8, num_iter=steps)
    assert_close(q, their_q)
    assert_close(b @ a, their_b @ their_a)


def test_the_method_makes_the_same_whole_at_any_scale(theirs: ModuleType) -> None:
    layer = nn.Linear(64, 48)
    weight = layer.weight.detach().clone()
    adapter = inject(nn.Sequential(layer), LoftQ(rank=8, alpha=16, loftq_iter=3), ["0"])[0]
    q, a, b = theirs.loftq_init(OnThisMachine(weight), 4, 8, num_iter=3)
    assert_close(adapter.base_layer.weight, q)
    assert_close(adapter.delta().detach(), b @ a)  # peft multiplies its factors by alpha / r = 2, and is off by that


def test_a_file_of_qlora_loads_in_peft_onto_the_weight_that_is_left(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = inject(nn.Sequential(nn.Linear(64, 48)), QLoRA(rank=4, alpha=6), ["0"])
    nn.init.normal_(ours[0].lora_B)
    save_adapter(ours, tmp_path)
    base = nn.Sequential(ours[0].base_layer.dense(ours[0].base_layer.weight))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    x = torch.randn(5, 64)
    assert_close(ours(x).detach(), theirs(x).detach())
    assert_close(merge(ours)(x).detach(), theirs.merge_and_unload()(x).detach())


def test_peft_itself_needs_bitsandbytes() -> None:
    config = peft.LoraConfig(
        r=4, target_modules=["0"], init_lora_weights="loftq", loftq_config=peft.LoftQConfig(loftq_iter=1)
    )
    with pytest.raises((ImportError, ValueError), match="bitsandbytes is not available"):
        peft.get_peft_model(nn.Sequential(nn.Linear(64, 64)), config)
