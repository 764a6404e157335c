"""Identities of information theory, on random distributions with zeros in them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from llm_study.functional import information as I

law = settings(max_examples=80, derandomize=True, deadline=None)


@st.composite
def distributions(draw: st.DrawFn, *shape: int, zeros: bool = True) -> Tensor:
    """Draw probabilities over the last dimensions; some of them are 0."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    p = torch.rand(shape, dtype=torch.float64, generator=generator) ** draw(st.sampled_from([0.1, 1.0, 6.0]))
    if zeros:
        p = p * (torch.rand(shape, generator=generator) < 0.6)
        p.flatten()[draw(st.integers(0, p.numel() - 1))] += 1.0  # never all 0
    return p / p.sum()


def by_hand(p: Tensor, q: Tensor) -> float:
    """Second formula: the average of ``-ln q`` over what can happen, one outcome at a time."""
    terms = [-a * (math.log(b) if b else -math.inf) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a]
    return math.fsum(terms)


def near(a: Tensor | float, b: Tensor | float) -> bool:
    return abs(float(a) - float(b)) <= 1e-12


# --- definitions and identities


@given(p=distributions(7), q=distributions(7))
@law
def test_cross_entropy_is_entropy_and_divergence(p: Tensor, q: Tensor) -> None:
    assert near(I.entropy(p), by_hand(p, p))
    expected, divergence = by_hand(p, q), I.kl_divergence(p, q)
    assert float(I.cross_entropy(p, q)) == pytest.approx(expected, abs=1e-12)
    assert float(divergence) == pytest.approx(expected - by_hand(p, p), abs=1e-12)
    assert math.isinf(divergence) == bool(((p > 0) & (q == 0)).any())


@given(p=distributions(6), q=distributions(6, zeros=False))
@law
def test_divergence_is_not_negative_and_zero_only_for_equals(p: Tensor, q: Tensor) -> None:
    assert I.kl_divergence(p, p) == 0
    assert I.kl_divergence(p, q) >= (p - q).abs().sum() ** 2 / 2 - 1e-12  # Pinsker's inequality
    assert I.entropy(p) <= math.log(6) + 1e-12
    assert near(I.kl_divergence(p, torch.full_like(p, 1 / 6)), math.log(6) - I.entropy(p))


@given(p=distributions(7), q=distributions(7, zeros=False))
@law
def test_equals_scipy(p: Tensor, q: Tensor) -> None:
    assert near(I.entropy(p), stats.entropy(p.numpy()))
    assert near(I.kl_divergence(p, q), stats.entropy(p.numpy(), q.numpy()))


@given(joint=distributions(4, 3))
@law
def test_chain_rule_and_mutual_information(joint: Tensor) -> None:
    row, column = joint.sum(1), joint.sum(0)
    conditional = sum(float(w) * by_hand(r / w, r / w) for w, r in zip(row, joint, strict=True) if w)
    assert near(I.conditional_entropy(joint), conditional)
    assert near(I.joint_entropy(joint), I.entropy(row) + conditional)
    information = I.mutual_information(joint)
    assert information >= -1e-15
    assert near(information, I.entropy(column) - conditional)
    assert near(information, I.mutual_information(joint.T))
    assert near(I.mutual_information(row[:, None] * column), 0.0)


def test_rows_are_treated_alike() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 3, 5, 6, dtype=torch.float64).flatten(2).softmax(-1)
    assert torch.equal(I.entropy(p)[1], I.entropy(p[1]))
    assert torch.equal(I.kl_divergence(p, q)[2], I.kl_divergence(p[2], q[2]))
    joint = p.unflatten(-1, (5, 6))
    assert torch.equal(I.mutual_information(joint)[0], I.mutual_information(joint[0]))
    assert torch.equal(I.conditional_entropy(joint)[0], I.conditional_entropy(joint[0]))


def test_zeros_cost_nothing_and_the_impossible_costs_everything() -> None:
    certain, fair = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    assert (I.entropy(certain), I.cross_entropy(certain, certain)) == (0, 0)
    assert (I.cross_entropy(fair, certain), I.kl_divergence(fair, certain)) == (math.inf, math.inf)
    assert near(I.kl_divergence(certain.double(), fair.double()), math.log(2))


def test_gradient_of_the_divergence_is_minus_the_ratio() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 6, dtype=torch.float64).softmax(-1)
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(I.kl_divergence(p, q), q)
    assert torch.allclose(gradient, -p / q.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_stays_low_and_near(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    p = torch.randn(4, 50, dtype=torch.float64).softmax(-1)
    low = I.entropy(p.to(dtype))
    assert low.dtype == dtype
    assert (low.double() - I.entropy(p)).abs().max() <= 4 * torch.finfo(dtype).eps * math.log(50)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    draws = torch.multinomial(torch.ones(2 * 32, 50), 256 - 50, replacement=True)
    counts = 1 + torch.zeros(2 * 32, 50).scatter_add_(1, draws, torch.ones(draws.shape))
    p, q = (counts / 256).to(dtype).view(2, 32, 50)  # multiples of 1/256 below 1 are exact in both
    for low, wide in (
        (I.entropy(p), I.entropy(p.float())),
        (I.cross_entropy(p, q), I.cross_entropy(p.float(), q.float())),
        (I.kl_divergence(p, q), I.kl_divergence(p.float(), q.float())),
    ):
        assert torch.equal(low, wide.to(dtype))


# --- perplexity and units


@given(data=st.data(), n=st.integers(1, 12))
@law
def test_perplexity_is_the_inverse_geometric_mean_and_a_power_of_two(data: st.DataObject, n: int) -> None:
    p = data.draw(st.lists(st.floats(1e-6, 1.0), min_size=n, max_size=n))
    ppl = I.perplexity(torch.tensor(p, dtype=torch.float64).log()).item()
    assert ppl == pytest.approx(math.prod(p) ** (-1 / n), rel=1e-9)
    bits = I.nats_to_bits(-sum(map(math.log, p)) / n)
    assert ppl == pytest.approx(2**bits, rel=1e-9)


def test_perplexity_weighs_tokens_not_rows() -> None:
    logp = torch.tensor([[0.5, 0.5, 0.5], [0.125, 1.0, 1.0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert near(I.perplexity(logp, mask=mask), 2 ** (6 / 4))
    assert near(I.perplexity(logp[:1]), 2.0)
    assert I.perplexity(torch.tensor([-math.inf, 0.0])) == math.inf


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut() -> None:
    total = 24 * math.log(2)
    assert {round(I.bits_per_byte(total / n, n, 12), 12) for n in (1, 4, 6, 12)} == {2.0}
    assert I.bits_per_byte(0.0, 1, 1) == 0


# --- errors


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.5, 0.6], r"sums to 1\.1, expected 1: pass probabilities, not logits"),
        ([1.5, -0.5], r"smallest entry of p is -0\.5, expected probabilities of at least 0"),
        ([math.nan, 1.0], "smallest entry of p is nan"),
        ([math.inf, 1.0], "sums to inf"),
        ([], "at least one outcome"),
    ],
)
def test_what_is_no_distribution_is_refused(p: list[float], message: str) -> None:
    tensor = torch.tensor(p)
    with pytest.raises(ValueError, match=message):
        I.entropy(tensor)
    with pytest.raises(ValueError, match=message):
        I.kl_divergence(tensor, tensor)
    with pytest.raises(ValueError, match=message.replace("of p ", "of joint ")):
        I.mutual_information(tensor[None])
    with pytest.raises(ValueError, match=message.replace("of p ", "of joint ")):
        I.conditional_entropy(tensor[None])


def test_the_second_distribution_is_checked_too() -> None:
    with pytest.raises(ValueError, match="a row of q sums to 2"):
        I.cross_entropy(torch.tensor([1.0]), torch.tensor([2.0]))
    with pytest.raises(ValueError, match=r"shape of p is \(1,\), shape of q is \(2,\)"):
        I.kl_divergence(torch.tensor([1.0]), torch.tensor([0.5, 0.5]))


def test_what_has_no_perplexity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number of tokens that count is 0, expected at least 1"):
        I.perplexity(torch.zeros(3), mask=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"largest log-probability is 0\.5, expected at most 0"):
        I.perplexity(torch.tensor([-1.0, 0.5]))
    with pytest.raises(ValueError, match="largest log-probability is nan"):
        I.perplexity(torch.tensor([-1.0, math.nan]))
    with pytest.raises(ValueError, match=r"shape of mask is \(2,\), shape of logp is \(3,\)"):
        I.perplexity(torch.zeros(3), mask=torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0, 5), "n_tokens is 0"),
        ((1.0, 5, 0), "n_bytes is 0"),
        ((-0.1, 5, 5), r"loss is -0\.1"),
        ((math.nan, 5, 5), "loss is nan"),
    ],
)
def test_bad_numbers_for_bits_per_byte(arguments: tuple[float, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        I.bits_per_byte(*arguments)
