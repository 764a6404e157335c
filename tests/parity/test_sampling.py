"""Filters, penalties and guidance against the Warpers and Processors of transformers, entry by entry."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from llm_study.functional import sampling as S

Filter = Callable[[Tensor], Tensor]
FILTERS: dict[str, tuple[Filter, Callable[[], hf.LogitsProcessor]]] = {
    "temperature": (lambda z: S.temperature_scale(z, 0.7), lambda: hf.TemperatureLogitsWarper(0.7)),
    "top-k 1": (lambda z: S.top_k_filter(z, 1), lambda: hf.TopKLogitsWarper(1)),
    "top-k": (lambda z: S.top_k_filter(z, 5), lambda: hf.TopKLogitsWarper(5)),
    "top-k all": (lambda z: S.top_k_filter(z, 999), lambda: hf.TopKLogitsWarper(999)),
    "top-p small": (lambda z: S.top_p_filter(z, 1e-6), lambda: hf.TopPLogitsWarper(1e-6)),
    "top-p tiny": (lambda z: S.top_p_filter(z, 1e-12), lambda: hf.TopPLogitsWarper(1e-12)),
    "top-p 0.5": (lambda z: S.top_p_filter(z, 0.5), lambda: hf.TopPLogitsWarper(0.5)),
    "top-p 0.9": (lambda z: S.top_p_filter(z, 0.9), lambda: hf.TopPLogitsWarper(0.9)),
    "top-p 1": (lambda z: S.top_p_filter(z, 1.0), lambda: hf.TopPLogitsWarper(1.0)),
    "min-p 0": (lambda z: S.min_p_filter(z, 0.0), lambda: hf.MinPLogitsWarper(0.0)),
    "min-p": (lambda z: S.min_p_filter(z, 0.1), lambda: hf.MinPLogitsWarper(0.1)),
    "min-p 1": (lambda z: S.min_p_filter(z, 1.0), lambda: hf.MinPLogitsWarper(1.0)),
    "typical 0.2": (lambda z: S.typical_filter(z, 0.2), lambda: hf.TypicalLogitsWarper(0.2)),
    "typical 0.9": (lambda z: S.typical_filter(z, 0.9), lambda: hf.TypicalLogitsWarper(0.9)),
    "typical 0.999": (lambda z: S.typical_filter(z, 0.999), lambda: hf.TypicalLogitsWarper(0.999)),
    "epsilon": (lambda z: S.epsilon_filter(z, 0.01), lambda: hf.EpsilonLogitsWarper(0.01)),
    "epsilon 0.9": (lambda z: S.epsilon_filter(z, 0.9), lambda: hf.EpsilonLogitsWarper(0.9)),
    "eta": (lambda z: S.eta_filter(z, 0.01), lambda: hf.EtaLogitsWarper(0.01)),
    "eta 0.5": (lambda z: S.eta_filter(z, 0.5), lambda: hf.EtaLogitsWarper(0.5)),
}
every_filter = pytest.mark.parametrize("name", FILTERS)


def ids_for(logits: Tensor, length: int = 12) -> Tensor:
    """Return token ids of a small part of the vocabulary, so that they repeat."""
    few = min(6, logits.shape[1])
    return torch.randint(few, (logits.shape[0], length), generator=torch.Generator().manual_seed(3))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Fail unless shape, dtype, forbidden entries and values are exactly the same."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert torch.equal(ours, theirs), f"{(ours != theirs).sum().item()} of {ours.numel()} entries differ"


def cases(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return logits that are peaked, flat, full of ties, partly forbidden, or leave a single token."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 200, generator=generator, dtype=torch.float64)
    holes = (5 * normal).masked_fill(torch.rand(64, 200, generator=generator) < 0.5, -math.inf)
    alone = torch.full((2, 50), -math.inf, dtype=torch.float64)
    alone[0, 7] = alone[1, 49] = 3.0
    every = {
        "flat": 0.1 * normal,
        "usual": 3 * normal,
        "peaked": 20 * normal,
        "ties": (2 * normal).round(),  # about nine values
        "uniform": torch.zeros(3, 64, dtype=torch.float64),
        "holes": holes,
        "alone": alone,
        "dyadic": torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]], dtype=torch.float64).log(),
        "one token": torch.zeros(2, 1, dtype=torch.float64),
    }
    return {name: logits.to(dtype) for name, logits in every.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", cases(torch.float64))
@every_filter
def test_filters_match_transformers(name: str, case: str, dtype: torch.dtype) -> None:
    ours, theirs = FILTERS[name]
    logits = cases(dtype)[case]
    assert_same(ours(logits), theirs()(ids_for(logits), logits))


@every_filter
def test_bfloat16_is_filtered_as_float32(name: str) -> None:
    ours, theirs = FILTERS[name]
    logits = cases(torch.float64)["usual"].to(torch.bfloat16)
    expected = theirs()(ids_for(logits), logits.float()).to(torch.bfloat16)
    assert_same(ours(logits), expected)


@pytest.mark.parametrize("p", [0.5, 0.75, 0.875, 0.9375])
def test_top_p_on_the_boundary_matches_transformers(p: float) -> None:
    logits = cases(torch.float64)["dyadic"]  # p is met exactly, up to rounding
    assert_same(S.top_p_filter(logits, p), hf.TopPLogitsWarper(p)(ids_for(logits), logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("length", [1, 12])
def test_repetition_penalty_matches_transformers(penalty: float, length: int) -> None:
    for logits in cases(torch.float32).values():
        ids = ids_for(logits, length)
        theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)
        assert_same(S.repetition_penalty(logits, ids, penalty), theirs(ids, logits))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_no_repeat_ngram_matches_transformers(n: int, length: int) -> None:
    logits = cases(torch.float32)["usual"]
    ids = ids_for(logits, length)
    expected = hf.NoRepeatNGramLogitsProcessor(n)(ids, logits)
    assert_same(S.no_repeat_ngram(logits, ids, n), expected)
    assert_same(S.no_repeat_ngram_reference(logits, ids, n), expected)
    assert length < 40 or n == 5 or bool((expected == -math.inf).any())  # something was forbidden


class Fixed(torch.nn.Module):
    """A model whose logits are given: what transformers' guidance asks of a model."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.given = logits

    def forward(self, ids: Tensor, **options: object) -> "FixedOutput":
        return FixedOutput(logits=self.given[:, None])


class FixedOutput(dict[str, Tensor]):
    """An output with attributes, as transformers' are."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 3.0])
def test_guidance_matches_transformers(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    conditional, without = (3 * torch.randn(2, 8, 50, generator=generator)).unbind()
    theirs = hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Fixed(without))
    expected = theirs(ids_for(conditional), conditional)
    difference = (S.classifier_free_guidance(conditional, without, scale) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()


def test_batched_guidance_is_the_same_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 8, 50, generator=generator, dtype=torch.float64)
    theirs = hf.ClassifierFreeGuidanceLogitsProcessor(1.5)(ids_for(logits[0]), logits.flatten(0, 1))
    ours = S.classifier_free_guidance(logits[0], logits[1], 1.5)
    assert torch.allclose(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-15)


def test_chained_in_the_order_of_transformers() -> None:
    logits = cases(torch.float32)["usual"]
    ids = ids_for(logits)
    chain = hf.LogitsProcessorList(
        [
            hf.RepetitionPenaltyLogitsProcessor(1.2),
            hf.NoRepeatNGramLogitsProcessor(2),
            hf.TemperatureLogitsWarper(0.8),
            hf.TopKLogitsWarper(50),
            hf.TopPLogitsWarper(0.95),
            hf.MinPLogitsWarper(0.01),
            hf.TypicalLogitsWarper(0.9),
            hf.EpsilonLogitsWarper(1e-3),
            hf.EtaLogitsWarper(1e-3),
        ]
    )
    z = S.no_repeat_ngram(S.repetition_penalty(logits, ids, 1.2), ids, 2)
    z = S.min_p_filter(S.top_p_filter(S.top_k_filter(S.temperature_scale(z, 0.8), 50), 0.95), 0.01)
    z = S.eta_filter(S.epsilon_filter(S.typical_filter(z, 0.9), 1e-3), 1e-3)
    assert_same(z, chain(ids, logits))


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = cases(torch.float32)["usual"]
    expected = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(5))[:, 0]
    assert torch.equal(S.sample(logits, generator=torch.Generator().manual_seed(5)), expected)
