"""Clipping, averages, the guard and the noise scale: their laws, and what they do with bad input."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_study.optim.stability import (
    EMA,
    NoiseScale,
    SpikeGuard,
    adaptive_clip,
    clip_grad_norm,
    clip_grad_value,
    debiased_decay,
    gradient_noise_scale,
    half_life,
)


def parameter(grad: list[float], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(len(grad), dtype=dtype))
    p.grad = torch.tensor(grad, dtype=dtype)
    return p


def grad(p: nn.Parameter) -> list[float]:
    assert p.grad is not None
    return p.grad.tolist()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(0.01, 1e4))
def test_a_clipped_gradient_keeps_its_direction_and_fits(values: list[float], limit: float) -> None:
    p = parameter(values, torch.float64)
    norm = clip_grad_norm([p], limit).item()
    assert norm == pytest.approx(math.hypot(*values), rel=1e-12)
    clipped = torch.tensor(grad(p), dtype=torch.float64)
    assert clipped.norm().item() <= min(limit, norm) * (1 + 1e-12)
    if norm <= limit - 1e-5:
        assert grad(p) == values
    else:
        torch.testing.assert_close(clipped * norm, torch.tensor(values, dtype=torch.float64) * clipped.norm())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_the_gradients_alone(bad: float) -> None:
    healthy, sick = parameter([3.0, 4.0]), parameter([bad, 1.0])
    norm = clip_grad_norm([healthy, sick], 1.0)
    assert not norm.isfinite()
    assert grad(healthy) == [3.0, 4.0]
    assert grad(sick)[1] == 1.0


def test_squares_of_half_precision_do_not_overflow() -> None:
    p = parameter([30000.0, 40000.0] * 4, torch.float16)
    assert clip_grad_norm([p], 1.0).item() == pytest.approx(100000.0)
    torch.testing.assert_close(p.grad, torch.tensor([0.3, 0.4] * 4).half())
    assert torch.nn.utils.clip_grad_norm_([parameter([30000.0, 40000.0] * 4, torch.float16)], 1.0).isinf()


def test_gradients_of_several_dtypes_are_one_vector() -> None:
    parts = [parameter([2.0], torch.bfloat16), parameter([3.0]), parameter([6.0], torch.float64)]
    assert clip_grad_norm(parts, 3.5).item() == pytest.approx(7.0)
    assert [grad(p)[0] for p in parts] == pytest.approx([1.0, 1.5, 3.0])


def test_without_gradients_there_is_nothing_to_clip() -> None:
    assert clip_grad_norm([], 1.0).item() == 0.0
    p = nn.Parameter(torch.ones(2))
    clip_grad_value([p], 1.0)
    adaptive_clip([p])
    assert clip_grad_norm([p], 1.0).item() == 0.0
    assert p.grad is None


def test_clipping_by_value_stops_infinity_but_not_nan() -> None:
    p = parameter([math.inf, -math.inf, math.nan, 0.25])
    clip_grad_value([p], 0.5)
    assert grad(p)[:2] == [0.5, -0.5]
    assert math.isnan(grad(p)[2])
    assert grad(p)[3] == 0.25


def test_adaptive_clipping_takes_each_row_of_a_matrix_and_a_vector_as_a_whole() -> None:
    matrix, bias = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), nn.Parameter(torch.tensor([0.0, 2.0]))
    matrix.grad, bias.grad = torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([3.0, 4.0])
    adaptive_clip([matrix, bias], 0.5, eps=1.0)
    assert matrix.grad.tolist() == [[0.0, 2.0], [0.0, 0.5]]  # 2 <= 0.5 · 5; 0.5 · max(0, 1)
    torch.testing.assert_close(bias.grad, torch.tensor([0.6, 0.8]))  # 0.5 · 2
    half = parameter([30000.0, 40000.0], torch.float16)
    adaptive_clip([half], 1.0, eps=1.0)
    torch.testing.assert_close(half.grad, torch.tensor([0.6, 0.8]).half())


def walk(model: nn.Module, steps: int) -> list[torch.Tensor]:
    """Change the one weight of a model at random, yielding what it was."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(steps)]


def test_an_average_is_the_weighted_sum_of_all_weights() -> None:
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    ema, start, path = EMA(model, 0.8), model.weight.detach().clone(), walk(model, 6)
    for weight in path:
        model.weight.data.copy_(weight)
        ema.update()
    expected = 0.8**6 * start + sum(0.2 * 0.8 ** (5 - i) * weight for i, weight in enumerate(path))
    torch.testing.assert_close(ema.average["weight"], expected)


def test_a_debiased_average_forgets_its_start() -> None:
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    ema, path = EMA(model, partial(debiased_decay, decay=0.8)), walk(model, 6)
    for weight in path:
        model.weight.data.copy_(weight)
        ema.update()
    weights = [0.8 ** (5 - i) for i in range(6)]
    expected = sum(w * x for w, x in zip(weights, path, strict=True)) / sum(weights)
    torch.testing.assert_close(ema.average["weight"], expected)


def test_applied_weights_are_put_back_also_after_an_error() -> None:
    model = nn.Linear(2, 2)
    ema, own = EMA(model, 0.5), model.weight.detach().clone() + 1
    model.weight.data.copy_(own)
    ema.update()

    def evaluate() -> None:
        with ema.applied() as averaged:
            assert averaged is model
            torch.testing.assert_close(model.weight.detach(), own - 0.5)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        evaluate()
    assert torch.equal(model.weight, own)
    assert model.weight.requires_grad


def test_small_changes_reach_the_average_of_half_precision_weights() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.999)
    nn.init.zeros_(model.weight)
    for _ in range(100):
        ema.update()
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(0.999**100, rel=1e-4)
    with ema.applied():
        assert model.weight.dtype == torch.bfloat16


def test_an_average_goes_on_from_a_checkpoint() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = EMA(model, partial(debiased_decay, decay=0.9))
    assert set(ema.average) == {"0.weight", "0.bias", "1.weight", "1.bias"}  # no buffers
    for _ in range(3):
        nn.init.normal_(model[0].weight)
        ema.update()
    state, resumed = copy.deepcopy(ema.state_dict()), EMA(model, partial(debiased_decay, decay=0.9))
    resumed.load_state_dict(state)
    nn.init.normal_(model[0].weight)
    for average in (ema, resumed):
        average.update()
    assert ema.updates == resumed.updates == 4
    assert all(torch.equal(ema.average[name], resumed.average[name]) for name in ema.average)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    state = EMA(nn.Linear(2, 3), 0.9).state_dict()
    with pytest.raises(ValueError, match="names of the averages is"):
        EMA(nn.Linear(2, 3, bias=False), 0.9).load_state_dict(state)
    with pytest.raises(ValueError, match=r"shapes of the averages is .*\(3, 2\).*\(3, 4\)"):
        EMA(nn.Linear(4, 3), 0.9).load_state_dict(state)


@given(st.floats(0.001, 0.999))
def test_after_its_half_life_a_weight_counts_half(decay: float) -> None:
    assert decay ** half_life(decay) == pytest.approx(0.5)


def noise(seed: int, n: int) -> list[float]:
    return (2 + 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))).tolist()


def test_a_guard_refuses_spikes_and_nothing_else() -> None:
    guard = SpikeGuard()
    assert all(guard.accept(loss, norm) for loss, norm in zip(noise(0, 500), noise(1, 500), strict=True))
    assert not guard.accept(3.0, 2.0)
    assert not guard.accept(2.0, 3.0)
    assert not guard.accept(2.0, math.inf)
    assert not guard.accept(torch.tensor(math.nan), torch.tensor(2.0))
    assert guard.accept(2.0, 2.0)
    assert guard.accept(0.5, 0.5)  # far below is welcome
    assert guard.skipped == 4


def test_a_refused_value_does_not_raise_the_bar() -> None:
    guard = SpikeGuard(window=10, least=10)
    for loss in noise(0, 10):
        guard.accept(loss)
    assert [guard.accept(100.0) for _ in range(5)] == [False] * 5
    assert max(guard.history[0]) < 3


def test_nothing_finite_is_refused_before_there_is_a_past() -> None:
    guard = SpikeGuard(window=4, least=3)
    assert [guard.accept(x) for x in (1.0, 100.0, math.nan, 1e6, 1e9)] == [True, True, False, True, False]


def test_a_new_level_is_accepted_in_the_end_and_nan_never() -> None:
    guard = SpikeGuard(window=4, least=2, patience=3)
    for x in (1.0, 1.1):
        guard.accept(x)
    assert [guard.accept(5.0) for _ in range(4)] == [False, False, False, True]
    assert [guard.accept(math.nan) for _ in range(10)] == [False] * 10
    assert list(guard.history[0]) == [5.0]


@pytest.mark.parametrize(("loss", "accepted"), [(3.41, True), (3.42, False)])
def test_the_bar_is_the_threshold_in_standard_deviations_above_the_mean(loss: float, accepted: bool) -> None:
    guard = SpikeGuard(window=2, least=2, threshold=1.0)
    for x in (1.0, 3.0):
        guard.accept(x)
    assert guard.accept(loss) is accepted  # 2 + √2, with n - 1 in the deviation


def test_patience_ends_only_after_refusals_in_a_row() -> None:
    guard = SpikeGuard(window=4, least=2, patience=3)
    for x in (1.0, 1.1):
        guard.accept(x)
    answers = [guard.accept(x) for x in (5.0, 5.0, 1.05, 5.0, 5.0, 5.0, 5.0)]
    assert answers == [False, False, True, False, False, False, True]


def test_a_guard_goes_on_from_a_checkpoint() -> None:
    guard, resumed = SpikeGuard(window=8, least=4), SpikeGuard(window=8, least=4)
    losses = [*noise(3, 20), 50.0, *noise(4, 3), 2.4, 2.9]
    for loss in losses[:21]:
        guard.accept(loss)
    resumed.load_state_dict(copy.deepcopy(guard.state_dict()))
    assert [guard.accept(x) for x in losses[21:]] == [resumed.accept(x) for x in losses[21:]]
    assert guard.state_dict() == resumed.state_dict()


def test_both_estimates_are_unbiased_by_enumeration() -> None:
    examples = torch.tensor([[1.0, 0.0], [3.0, 1.0], [-1.0, 4.0]], dtype=torch.float64)
    true = examples.mean(0)
    variance = (examples - true).square().sum(1).mean().item()
    signals, noises = [], []
    for drawn in itertools.product(range(3), repeat=4):  # four examples, in two batches of two
        parts = examples[list(drawn)].reshape(2, 2, 2).mean(1)
        small, large = parts.square().sum(1).mean().item(), parts.mean(0).square().sum().item()
        estimate = gradient_noise_scale(small, large, small=2, large=4)
        signals.append(estimate.signal)
        noises.append(estimate.noise)
    assert sum(signals) / len(signals) == pytest.approx(true.square().sum().item())
    assert sum(noises) / len(noises) == pytest.approx(variance)


def test_where_no_signal_is_seen_the_batch_cannot_be_too_large() -> None:
    assert NoiseScale(signal=4.0, noise=8.0).batch_size == 2.0
    assert NoiseScale(signal=-1.0, noise=8.0).batch_size == math.inf
    assert NoiseScale(signal=0.0, noise=8.0).batch_size == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_grad_norm([], 0.0), "max_norm is 0.0, expected more than 0"),
        (lambda: clip_grad_norm([], math.nan), "max_norm is nan"),
        (lambda: clip_grad_value([], -1.0), "max_value is -1.0, expected more than 0"),
        (lambda: adaptive_clip([], 0.0), "ratio is 0.0, expected more than 0"),
        (lambda: adaptive_clip([], 0.1, eps=0.0), "eps is 0.0, expected more than 0"),
        (lambda: EMA(nn.Linear(1, 1), 1.5), "decay is 1.5, expected a number from 0 to 1"),
        (lambda: debiased_decay(0, decay=0.9), "n is 0, expected at least 1: updates count from 1"),
        (lambda: debiased_decay(1, decay=1.0), "decay is 1.0, expected at least 0 and less than 1"),
        (lambda: half_life(1.0), "decay is 1.0, expected more than 0 and less than 1"),
        (lambda: SpikeGuard(window=10, least=11), "window is 10, expected at least 11: least is 11"),
        (lambda: SpikeGuard(least=1), "least is 1, expected at least 2"),
        (lambda: SpikeGuard(patience=0), "patience is 0, expected at least 1"),
        (lambda: SpikeGuard(threshold=0.0), "threshold is 0.0, expected more than 0"),
        (lambda: gradient_noise_scale(1.0, 1.0, small=0, large=4), "small is 0, expected at least 1"),
        (lambda: gradient_noise_scale(1.0, 1.0, small=4, large=4), "large is 4, expected more than small = 4"),
    ],
)
def test_wrong_numbers_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_number_of_watched_values_may_not_change() -> None:
    guard = SpikeGuard()
    guard.accept(1.0, 2.0)
    with pytest.raises(ValueError, match="number of values is 1, number in the calls before is 2"):
        guard.accept(1.0)
