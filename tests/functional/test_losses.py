"""The laws of the losses: equal to their references and to second formulas, with gradients, at the edges too."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_study.functional import losses as L
from llm_study.functional.attention import softmax_jacobian
from tests.bench.bench_losses import peak_mib

law = settings(max_examples=40, derandomize=True, deadline=None)


@dataclass(frozen=True)
class Case:
    """Logits, targets of which some do not count, and hidden states with an output matrix."""

    logits: Tensor
    targets: Tensor
    x: Tensor
    weight: Tensor

    def __repr__(self) -> str:
        return f"Case(logits {tuple(self.logits.shape)}, x {tuple(self.x.shape)}, targets {self.targets.tolist()})"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a leading shape of any number of dimensions, sizes of zero among them."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    V, D = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = 5 * torch.randn(*shape, V, dtype=torch.float64, generator=generator)
    targets = torch.randint(V, shape, generator=generator)
    ignored = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    x, weight = (torch.randn(*s, D, dtype=torch.float64, generator=generator) for s in (shape, (V,)))
    return Case(logits, targets.masked_fill(ignored, -100), x, 3 * weight)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def with_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the value and the gradients of a fixed functional of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    direction = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3)) + 2
    return y.detach(), *torch.autograd.grad(y, inputs, direction)


def assert_same(first: Callable[..., Tensor], second: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Fail unless two functions agree in value and gradients."""
    for a, b in zip(with_gradient(first, *inputs), with_gradient(second, *inputs), strict=True):
        assert close(a, b)


# --- fast equals reference, value and gradient


@given(case=cases())
@law
def test_token_logp(case: Case) -> None:
    ids = case.targets.clamp(min=0)
    assert_same(lambda z: L.token_logp(z, ids), lambda z: L.token_logp_reference(z, ids), case.logits)


PAIRS: list[tuple[Any, Any, dict[str, float]]] = [
    (L.cross_entropy, L.cross_entropy_reference, {}),
    (L.label_smoothing_loss, L.label_smoothing_loss_reference, {"epsilon": 0.0}),
    (L.label_smoothing_loss, L.label_smoothing_loss_reference, {"epsilon": 0.3}),
    (L.label_smoothing_loss, L.label_smoothing_loss_reference, {"epsilon": 1.0}),
    (L.focal_loss, L.focal_loss_reference, {"gamma": 2.0}),
    (L.focal_loss, L.focal_loss_reference, {"gamma": 0.5}),
]


@pytest.mark.parametrize(("fast", "reference", "options"), PAIRS)
@given(case=cases())
@law
def test_fast_equals_reference(fast: Any, reference: Any, options: dict[str, float], case: Case) -> None:
    if case.logits.shape[-1] == 1 and fast is L.focal_loss:
        return  # p is 1 exactly: the reference has no gradient there, see below
    y = case.targets
    assert_same(lambda z: fast(z, y, **options), lambda z: reference(z, y, **options), case.logits)


@given(case=cases(), chunk=st.integers(1, 7))
@law
def test_linear_cross_entropy(case: Case, chunk: int) -> None:
    y = case.targets
    assert_same(
        lambda x, w: L.linear_cross_entropy(x, w, y, chunk=chunk),
        lambda x, w: L.linear_cross_entropy_reference(x, w, y),
        case.x,
        case.weight,
    )


@given(case=cases())
@law
def test_z_loss(case: Case) -> None:
    mask = case.targets >= 0
    assert_same(lambda z: L.z_loss(z, mask=mask), lambda z: L.z_loss_reference(z, mask=mask), case.logits)
    assert_same(L.z_loss, L.z_loss_reference, case.logits)


@given(case=cases(), seed=st.integers(0, 2**32))
@law
def test_unlikelihood(case: Case, seed: int) -> None:
    negatives = torch.rand(case.logits.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    negatives &= (case.logits < case.logits.max(-1, keepdim=True).values + 1) & (case.logits.shape[-1] > 1)
    assert_same(
        lambda z: L.unlikelihood_loss(z / 3, negatives),
        lambda z: L.unlikelihood_loss_reference(z / 3, negatives),
        case.logits,
    )


@pytest.mark.parametrize("T", [0, 1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_multi_token_prediction(T: int, n: int) -> None:
    torch.manual_seed(10 * T + n)
    logits, targets = torch.randn(2, T, n, 6, dtype=torch.float64), torch.randint(6, (2, T))
    targets[:, ::3] = -100
    if n:
        pair = L.multi_token_prediction_loss, L.multi_token_prediction_loss_reference
        assert_same(*(lambda z, f=f: f(z, targets) for f in pair), logits)
    for k, loss in enumerate(L.multi_token_prediction_loss(logits, targets)):
        sees = [(b, t) for b in range(2) for t in range(T - k) if targets[b, t + k] != -100]
        terms = [-logits[b, t, k].log_softmax(0)[targets[b, t + k]].item() for b, t in sees]
        assert loss.item() == pytest.approx(sum(terms) / max(1, len(terms)))


# --- what the formulas say


@given(case=cases())
@law
def test_gradient_is_p_minus_y(case: Case) -> None:
    counted = case.targets != -100
    z = case.logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(L.cross_entropy(z, case.targets), z)
    one_hot = torch.zeros_like(z).scatter_(-1, case.targets.clamp(min=0)[..., None], 1.0)
    expected = (z.softmax(-1) - one_hot) * counted[..., None] / max(1, int(counted.sum()))
    assert close(grad, expected.detach())


def test_hessian_is_the_jacobian_of_softmax() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda z: L.cross_entropy(z, torch.tensor(2)), z)
    assert close(hessian, softmax_jacobian(z.softmax(-1)))


@pytest.mark.parametrize("block", [1, 7, 2**17])
def test_gradients_by_finite_differences(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(L.BLOCK, "cpu", block)
    torch.manual_seed(0)
    z, y = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (2, 3))
    negatives = torch.rand(2, 3, 5) < 0.4
    for function in (
        lambda z: L.token_logp(z, y),
        L.z_loss,
        lambda z: L.focal_loss(z, y),
        lambda z: L.label_smoothing_loss(z, y),
        lambda z: L.unlikelihood_loss(z, negatives),
    ):
        assert torch.autograd.gradcheck(function, (z,))
        assert torch.autograd.gradgradcheck(function, (z,))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_linear_gradients_by_finite_differences(chunk: int) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    y = torch.tensor([0, 4, -100, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda x, w: 3 * L.linear_cross_entropy(x, w, y, chunk=chunk), (x, weight))
    for frozen in (0, 1):  # only one of the two gradients is wanted
        pair = [x, weight]
        pair[frozen] = pair[frozen].detach()
        (grad,) = torch.autograd.grad(L.linear_cross_entropy(*pair, y, chunk=chunk), pair[1 - frozen])
        (expected,) = torch.autograd.grad(L.linear_cross_entropy_reference(*pair, y), pair[1 - frozen])
        assert close(grad, expected)
    loss = L.linear_cross_entropy(x, weight, y)
    first, again = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_smoothing_is_least_at_its_optimum() -> None:
    V, epsilon = 7, 0.2
    gap = math.log((1 - epsilon + epsilon / V) / (epsilon / V))
    z = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        z[3] = gap
    (grad,) = torch.autograd.grad(L.label_smoothing_loss(z, torch.tensor(3), epsilon=epsilon), z)
    assert close(grad, torch.zeros(V, dtype=torch.float64))


def test_focal_without_focus_is_cross_entropy() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(4, 5, dtype=torch.float64), torch.randint(5, (4,))
    assert_same(lambda z: L.focal_loss(z, y, gamma=0.0), lambda z: L.cross_entropy(z, y), z)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [-200.0, 40.0, 200.0])
def test_focal_loss_at_the_ends(gamma: float, gap: float) -> None:
    z = torch.tensor([[gap, 0.0]], requires_grad=True)
    loss = L.focal_loss(z, torch.tensor([0]), gamma=gamma)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.isfinite().all()
    assert loss.item() == pytest.approx(max(0.0, -gap), abs=1e-6)


def test_unlikelihood_where_one_token_has_it_all() -> None:
    z = torch.tensor([[60.0, 0.0, -5.0]], requires_grad=True)
    loss = L.unlikelihood_loss(z, torch.tensor([[True, False, True]]))
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(60 - math.log1p(math.exp(-5)), rel=1e-6)
    assert grad[0].tolist() == pytest.approx([1.0, -1 / (1 + math.exp(-5)), -1 / (1 + math.exp(5))], rel=1e-5)


def test_repeated_tokens() -> None:
    targets = torch.tensor([[1, 1, 2, -100, 1, 0], [3, 3, 3, 3, 3, 3]])
    marked = L.repeated_tokens(targets, 4)
    sets = [[set(place.nonzero().flatten().tolist()) for place in row] for row in marked]
    assert sets == [[set(), set(), {1}, set(), {2}, {1, 2}], [set()] * 6]


# --- means


def test_means_and_their_difference() -> None:
    values = torch.tensor([[4.0, 1.0, 1.0, math.inf], [2.0, math.nan, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert L.token_mean(values, mask).item() == 2.0
    assert L.sequence_mean(values, mask).item() == 2.0
    assert L.token_mean(values, mask, total=16).item() == 0.5
    assert L.sequence_mean(values[:, 1:], mask[:, 1:]).item() == 1.0  # the second row has nothing: it does not count
    for mean in (L.token_mean, L.sequence_mean):
        assert mean(values, torch.zeros_like(mask)).item() == 0.0


def test_accumulated_token_means_with_the_total_are_the_whole() -> None:
    torch.manual_seed(0)
    values, mask = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5) < 0.5
    total = int(mask.sum())
    parts = [L.token_mean(v, m, total=total) for v, m in zip(values.split(2), mask.split(2), strict=True)]
    assert close(torch.stack(parts).sum(), L.token_mean(values, mask))
    plain = [L.token_mean(v, m) for v, m in zip(values.split(2), mask.split(2), strict=True)]
    assert not close(torch.stack(plain).mean(), L.token_mean(values, mask), 1e-3)


# --- edges


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0), (2, 3)])
def test_nothing_that_counts_gives_zero_and_no_gradient(shape: tuple[int, ...]) -> None:
    y = torch.full(shape, -100)
    z, w = torch.randn(*shape, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    for loss in (
        L.cross_entropy(z, y),
        L.label_smoothing_loss(z, y),
        L.focal_loss(z, y),
        L.z_loss(z, mask=y >= 0),
        L.linear_cross_entropy(z, w, y),
    ):
        (grad,) = torch.autograd.grad(loss, z)
        assert loss.item() == 0.0
        assert torch.equal(grad, torch.zeros_like(z))


def test_another_ignore_index() -> None:
    z, y = torch.randn(4, 5), torch.tensor([0, 3, 0, 2])
    assert L.cross_entropy(z, y, ignore_index=0).item() == pytest.approx(L.cross_entropy(z[1::2], y[1::2]).item())
    w = torch.randn(6, 5)
    ignoring = L.linear_cross_entropy(z, w, y, ignore_index=0)
    assert ignoring.item() == pytest.approx(L.linear_cross_entropy(z[1::2], w, y[1::2]).item())


def test_what_does_not_count_may_be_infinite() -> None:
    z = torch.tensor([[1.0, 2.0], [-math.inf, 0.0]], requires_grad=True)
    loss = L.cross_entropy(z, torch.tensor([0, -100]))
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert L.cross_entropy(z, torch.tensor([0, 0])).item() == math.inf


def test_large_logits_do_not_overflow() -> None:
    z = torch.tensor([[1e4, 1e4 - 1, 0.0]])
    right = -1 - math.log1p(math.exp(-1))  # z - lse would be wrong in the third decimal: 1e4 has no more of them
    assert L.token_logp(z, torch.tensor([1])).item() == pytest.approx(right, rel=1e-6)
    assert L.linear_cross_entropy(z, torch.eye(3), torch.tensor([1])).item() == pytest.approx(-right, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z, y = (3 * torch.randn(50, 300)).to(dtype).requires_grad_(), torch.randint(300, (50,))
    loss, exact = L.cross_entropy(z, y), L.cross_entropy_reference(z.double(), y)
    assert loss.dtype == dtype
    assert loss.item() == exact.to(dtype).item()
    (grad,), (right,) = torch.autograd.grad(loss, z), torch.autograd.grad(exact, z)
    assert grad.dtype == dtype
    assert (grad.double() - right.double()).abs().max() <= torch.finfo(dtype).eps * right.abs().max()


def test_linear_cross_entropy_keeps_its_sum_in_single_precision() -> None:
    torch.manual_seed(0)
    x, w = (torch.randn(n, 8).bfloat16().requires_grad_() for n in (512, 20))
    y = torch.randint(20, (512,))
    grads = torch.autograd.grad(L.linear_cross_entropy(x, w, y, chunk=1), (x, w))
    exact = torch.autograd.grad(L.cross_entropy_reference(x.double() @ w.double().T, y), (x, w))
    for grad, right in zip(grads, exact, strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad.double() - right.double()).abs().max() <= 2**-6 * right.double().abs().max()


def test_linear_cross_entropy_loses_no_small_probability_in_half_precision() -> None:
    torch.manual_seed(0)
    N, V = 4096, 500  # a probability over N is about 5e-7: float16 has four steps below that
    x, w = torch.randn(N, 4).half().requires_grad_(), (0.1 * torch.randn(V, 4)).half().requires_grad_()
    y, scale = torch.randint(V, (N,)), 2.0**14  # of a gradient scaler
    grads = torch.autograd.grad(scale * L.linear_cross_entropy(x, w, y).float(), (x, w))
    exact = torch.autograd.grad(scale * L.cross_entropy_reference(x.double() @ w.double().T, y), (x, w))
    for grad, right in zip(grads, exact, strict=True):
        error = (grad.double() - right.double()).norm() / right.double().norm()
        assert error <= torch.finfo(torch.float16).eps


# --- memory: the largest tensor that an operation makes


class Largest(TorchDispatchMode):
    """Remember the most numbers that any operation's new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in old:
                self.numel = max(self.numel, x.numel())
        return out


def largest(function: Callable[[], object]) -> int:
    """Return the size of the largest tensor that is made on the way."""
    with Largest() as mode:
        function()
    return mode.numel


def test_no_second_copy_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(L.BLOCK, "cpu", 64)
    z, y = torch.randn(4, 33, 50), torch.randint(50, (4, 32))
    sliced = z[:, :-1]  # not contiguous: flattening it would copy
    assert largest(lambda: L.token_logp_reference(sliced, y)) == sliced.numel()
    few = 64 * torch.get_num_threads()
    for function in (L.token_logp, L.cross_entropy, L.label_smoothing_loss, L.focal_loss):
        assert largest(lambda f=function: f(sliced, y)) <= max(few, 2 * y.numel())
    assert largest(lambda: L.z_loss(sliced)) <= max(few, 2 * y.numel())


def test_linear_cross_entropy_never_holds_all_logits() -> None:
    x, w, y = torch.randn(64, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True), torch.randint(50, (64,))
    assert largest(lambda: L.linear_cross_entropy_reference(x, w, y).backward()) == 64 * 50
    assert largest(lambda: L.linear_cross_entropy(x, w, y, chunk=8).backward()) == 8 * 50


@pytest.mark.parametrize("training", [True, False])
def test_linear_cross_entropy_holds_one_copy_of_a_chunk(training: bool) -> None:
    N, D, V, chunk = 256, 8, 2000, 64
    x, w = (torch.randn(n, D, requires_grad=training) for n in (N, V))
    y = torch.randint(V, (N,))
    gradients = training * (N * D + V * D)
    most = 4 * (gradients + chunk * V + 8 * N)  # bytes: gradients, chunk, ids and masks; all rows count, and lie there
    assert peak_mib(lambda: L.linear_cross_entropy(x, w, y, chunk=chunk)) * 2**20 <= most


@pytest.mark.parametrize(("device", "width", "rows"), [("cpu", 2048, 256), ("meta", 2048, 2048), ("meta", 64, 256)])
def test_chunks_are_as_large_as_the_gradient_of_the_matrix_or_small(
    device: str, width: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    monkeypatch.setattr(L._LinearCrossEntropy, "apply", lambda x, w, y, chunk: chunks.append(chunk) or x.sum())
    monkeypatch.setattr(L, "_counted", lambda x, *_, **__: torch.ones(len(x), dtype=torch.bool))
    x, weight = torch.zeros(1, width, device=device), torch.zeros(3, width, device=device)
    L.linear_cross_entropy(x, weight, torch.zeros(1, dtype=torch.long))
    assert chunks == [rows]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_linear_cross_entropy_holds_half_a_copy_more_in_half_precision() -> None:
    N, D, V, chunk = 256, 8, 2000, 64
    x, w = (torch.randn(n, D, dtype=torch.bfloat16, requires_grad=True) for n in (N, V))
    y = torch.randint(V, (N,))
    single, half = 2 * V * D + chunk * V + 8 * N, N * D + chunk * V + V * D  # a product is widened to be added
    with torch.backends.mkldnn.flags(enabled=False):  # it has memory of its own
        assert peak_mib(lambda: L.linear_cross_entropy(x, w, y, chunk=chunk)) * 2**20 <= 4 * single + 2 * half


# --- bad input


Z, Y, W = torch.zeros(2, 3), torch.tensor([0, 2]), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L.token_logp(Z, torch.tensor([0, 3])), "ids contain 3, expected ids from 0 to 2"),
        (lambda: L.token_logp(Z, torch.tensor([0, -100])), "ids contain -100, expected ids from 0 to 2"),
        (lambda: L.token_logp(Z, torch.tensor([0.0, 1.0])), "ids have dtype torch.float32"),
        (lambda: L.token_logp(Z, torch.tensor([True, False])), "ids have dtype torch.bool"),
        (lambda: L.token_logp(Z, torch.tensor([0])), r"shape of ids is \(1,\), shape .* is \(2,\)"),
        (lambda: L.cross_entropy(Z, torch.tensor([-1, 2])), "targets contain -1"),
        (lambda: L.cross_entropy_reference(Z, torch.tensor([0, 3])), "targets contain 3"),
        (lambda: L.cross_entropy(Z, Y[:1]), "shape of targets"),
        (lambda: L.linear_cross_entropy(Z, W, torch.tensor([0, 5])), "targets contain 5, expected ids from 0 to 4"),
        (lambda: L.linear_cross_entropy(Z, W, Y, chunk=0), "chunk is 0, expected at least 1"),
        (lambda: L.linear_cross_entropy(Z, W.T, Y), "width of x is 3, width of weight is 5"),
        (lambda: L.linear_cross_entropy(Z, W[0], Y), r"weight has shape \(3,\), expected 2 dimensions"),
        (lambda: L.linear_cross_entropy(Z, W.double(), Y), "dtype of x"),
        (lambda: L.linear_cross_entropy(torch.tensor(1.0), W, torch.tensor(1)), "x has no dimensions"),
        (lambda: L.label_smoothing_loss(Z, Y, epsilon=1.5), "epsilon is 1.5, expected a share from 0 to 1"),
        (lambda: L.label_smoothing_loss(Z, Y, epsilon=math.nan), "epsilon is nan"),
        (lambda: L.focal_loss(Z, Y, gamma=-1.0), "gamma is -1.0, expected at least 0"),
        (lambda: L.z_loss(Z, mask=torch.ones(3, dtype=torch.bool)), "shape of mask"),
        (lambda: L.z_loss(Z, mask=torch.ones(2)), "mask has dtype torch.float32"),
        (lambda: L.unlikelihood_loss(Z, torch.zeros(2, dtype=torch.bool)), "shape of negatives"),
        (lambda: L.unlikelihood_loss(Z, torch.zeros(2, 3)), "negatives has dtype"),
        (lambda: L.repeated_tokens(Y, 3), r"expected 2 dimensions \(B, T\)"),
        (lambda: L.repeated_tokens(Y[None], 2), "targets contain 2, expected ids from 0 to 1"),
        (lambda: L.multi_token_prediction_loss(Z, Y), "expected 4 dimensions"),
        (lambda: L.multi_token_prediction_loss(torch.zeros(1, 2, 3, 4), Y), "shape of targets"),
        (lambda: L.token_mean(Z, torch.ones(2, 3)), "mask has dtype"),
        (lambda: L.token_mean(Z, Z[0] == 0), "shape of mask"),
        (lambda: L.token_mean(Z, Z == 0, total=0), "total is 0, expected at least 1"),
        (lambda: L.sequence_mean(Z, Z[0] == 0), "shape of mask"),
    ],
)
def test_bad_input_is_a_clear_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
