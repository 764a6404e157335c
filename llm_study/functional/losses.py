r"""Training losses on logits: cross-entropy in its stable and its memory-saving forms, and what is added to it.

Logits are ``(…, V)``: any leading shape, one number for each token of the vocabulary. Targets are ids ``(…)``; a target
equal to ``ignore_index`` counts neither in the sum nor in the number that it is divided by, and where no target counts
the loss is 0, not NaN. Softmax and sums are computed in float32 where the logits are bfloat16 or float16, and the
result is returned in the dtype of the logits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal

__all__ = [
    "token_logp_reference",
    "token_logp",
    "cross_entropy_reference",
    "cross_entropy",
    "linear_cross_entropy_reference",
    "linear_cross_entropy",
]

IGNORE_INDEX = -100
BLOCK = {"cpu": 2**16, "other": 2**26}  # logits worked on at a time: a core's cache holds 256 KiB; a GPU wants many


def token_logp_reference(logits: Tensor, ids: Tensor) -> Tensor:
    r"""Log-probability of each id, written as its equation; :func:`token_logp` is the fast twin.

    .. math:: \ln p_y = z_y - \ln \sum_v e^{z_v}

    Args:
        logits: ``(…, V)`` logits.
        ids: ``(…)`` the id whose log-probability is asked, at each place.

    Returns:
        ``(…)`` log-probabilities in nats, in the dtype of ``logits``.

    Raises:
        ValueError: if the shapes do not fit together, or ``ids`` are no integers from 0 to ``V - 1``.

    Cost: several tensors of the size of the logits.

    References:
        Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network Outputs: the softmax.

    Example:
        >>> token_logp_reference(torch.tensor([0.0, 0.0]), torch.tensor(1)).item()  # ln 1/2
        -0.693147...
    """
    _check_ids(logits, "ids", ids)
    logp = _widen(logits).log_softmax(dim=-1)  # (…, V)
    return logp.gather(-1, ids.long()[..., None])[..., 0].to(logits.dtype)


def token_logp(logits: Tensor, ids: Tensor) -> Tensor:
    r"""Log-probability of each id, without a second copy of the logits.

    .. math:: \ln p_y = z_y - \ln \sum_v e^{z_v}

    The logarithm of the sum is taken over a few rows at a time, which stay in the cache; so is the gradient, which is
    written where it belongs, row by row. Slices such as ``logits[:, :-1]`` are not copied either.

    Args:
        logits: ``(…, V)`` logits.
        ids: ``(…)`` the id whose log-probability is asked, at each place.

    Returns:
        ``(…)`` log-probabilities in nats, in the dtype of ``logits``.

    Raises:
        ValueError: if the shapes do not fit together, or ``ids`` are no integers from 0 to ``V - 1``.

    Cost: one pass over the logits; beside them, memory for a few rows. The gradient has the size of the logits.

    References:
        The formula is softmax's: Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network
        Outputs.

    Example:
        >>> token_logp(torch.tensor([0.0, 0.0]), torch.tensor(1)).item()  # ln 1/2
        -0.693147...
    """
    _check_ids(logits, "ids", ids)
    return _select(logits, ids)[0].to(logits.dtype)


def cross_entropy_reference(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Average of :math:`-\ln p` of the targets, written as its equation; :func:`cross_entropy` is the fast twin.

    .. math:: \ell = -\frac1N \sum_{t \,:\, y_t \ne \text{ignore}} \ln p_t(y_t)

    where :math:`N` is the number of targets that count.

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0 where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    References:
        Goodfellow, Bengio and Courville (2016), Deep Learning, section 6.2.2.3.

    Example:
        >>> cross_entropy_reference(torch.zeros(2, 4), torch.tensor([3, -100])).item()  # ln 4
        1.386294...
    """
    counted = _counted(logits, targets, ignore_index)
    logp = _widen(logits)[counted].log_softmax(dim=-1)  # (N, V)
    nll = -logp.gather(-1, targets[counted].long()[:, None])
    return (nll.sum() / max(1, nll.numel())).to(logits.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Cross-entropy from logits: the average of :math:`-\ln p` of the targets.

    .. math:: \ell = -\frac1N \sum_{t \,:\, y_t \ne \text{ignore}} \ln p_t(y_t)

    where :math:`N` is the number of targets that count. :func:`linear_cross_entropy` does without the logits.

    Args:
        logits: ``(…, V)`` logits.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``logits``; 0, with a gradient of 0, where no target counts.

    Raises:
        ValueError: if the shapes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    Cost: as :func:`token_logp`.

    References:
        Goodfellow, Bengio and Courville (2016), Deep Learning, section 6.2.2.3.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100])).item()  # ln 4
        1.386294...
    """
    counted = _counted(logits, targets, ignore_index)
    logp, _ = _select(logits, targets.where(counted, 0))
    return (-_mean(logp, counted)).to(logits.dtype)


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy of the logits :math:`xW^\top`; :func:`linear_cross_entropy` is the twin that saves memory.

    Args:
        x: ``(…, D)`` the last hidden states.
        weight: ``(V, D)`` the output matrix, in the dtype of ``x``.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``x``; 0 where no target counts.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or a target that counts is no integer from 0 to ``V - 1``.

    Cost: ``6 * N * D * V`` FLOPs with the gradients, and several tensors of ``N * V`` numbers.

    References:
        Wijmans et al. (2024), arXiv:2411.09009, section 3.

    Example:
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [3.0, 5.0]])
        >>> linear_cross_entropy_reference(x, weight, torch.tensor([0])).item()  # equal logits: ln 2
        0.693147...
    """
    _check_linear(x, weight)
    return cross_entropy_reference(x @ weight.T, targets, ignore_index=ignore_index)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = 256, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    r"""Cross-entropy of the logits :math:`xW^\top`, of which only ``chunk`` rows exist at a time.

    For each chunk :math:`C` of the rows that count, with probabilities :math:`P_C` and one-hot targets :math:`Y_C`,

    .. math::

        G_C = \tfrac1N (P_C - Y_C), \qquad \bar x_C = G_C W, \qquad \bar W = \sum_C G_C^\top x_C .

    Both gradients are computed on the way forward, while the logits of the chunk are there, and scaled on the way
    back. Rows that do not count cost nothing.

    Args:
        x: ``(…, D)`` the last hidden states.
        weight: ``(V, D)`` the output matrix, in the dtype of ``x``.
        targets: ``(…)`` the id that should come at each place, or ``ignore_index``.
        chunk: number of rows of logits that exist at a time; at least 1.
        ignore_index: the target that does not count.

    Returns:
        ``()`` the average in nats, in the dtype of ``x``; 0, with gradients of 0, where no target counts. It can be
        differentiated once.

    Raises:
        ValueError: if shapes or dtypes do not fit together, a target that counts is no integer from 0 to ``V - 1``, or
            ``chunk`` is below 1.

    Cost: ``6 * N * D * V`` FLOPs with the gradients, ``2 * N * D * V`` without; memory for ``chunk * V`` logits and the
    gradients.

    References:
        Wijmans et al. (2024), arXiv:2411.09009; Hsu et al. (2024), arXiv:2410.10989, for gradients on the way forward.

    Example:
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [3.0, 5.0]])
        >>> linear_cross_entropy(x, weight, torch.tensor([0])).item()  # equal logits: ln 2
        0.693147...
    """
    _check_linear(x, weight)
    check_at_least("chunk", chunk, 1, hint="it is the number of rows of logits that exist at a time")
    counted = _counted(x, targets, ignore_index, vocabulary=weight.shape[0])
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor] = _LinearCrossEntropy.apply
    return apply(x[counted], weight, targets[counted].long(), chunk).to(x.dtype)


class _Select(torch.autograd.Function):
    """Log-probabilities of ids and log-sums of all logits, with one pass over the logits in each direction."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        lse = torch.empty(logits.shape[:-1], dtype=_wide_dtype(logits), device=logits.device)
        for z, out in _blocks(logits, lse):
            torch.logsumexp(_widen(z), dim=-1, out=out)
        logp = _widen(logits.gather(-1, ids[..., None])[..., 0]) - lse
        ctx.save_for_backward(logits, ids, lse)
        return logp, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, ids, lse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: all of it in operations that autograd records
            return _select_gradient(logits, ids, lse, *grads), None
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for out, *block in _blocks(grad, logits, ids, lse, *grads):
            out.copy_(_select_gradient(*block))
        return grad, None


def _select_gradient(logits: Tensor, ids: Tensor, lse: Tensor, grad_logp: Tensor, grad_lse: Tensor) -> Tensor:
    """Return what the logits get: softmax times the one gradient, one-hot minus softmax times the other."""
    p = (logits - lse[..., None]).exp()
    grad = p * (grad_lse - grad_logp)[..., None]
    return grad.scatter_add_(-1, ids[..., None], grad_logp[..., None]).to(logits.dtype)


def _select(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability of ids that were checked, and the log-sum of all logits, both at least float32."""
    if logits.ndim == 1:
        logp, lse = _select(logits[None], ids[None])
        return logp[0], lse[0]
    apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _Select.apply
    return apply(logits, ids.long())


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of the same leading shape, the first of them ``(…, V)``, into views of a few rows."""
    if tensors[0].ndim > 2:  # not flattened, because that would copy a slice such as logits[:, :-1]
        for parts in zip(*tensors, strict=True):
            yield from _blocks(*parts)
    else:
        on_cpu = tensors[0].device.type == "cpu"
        size = BLOCK["cpu"] * torch.get_num_threads() if on_cpu else BLOCK["other"]
        rows = max(1, size // max(1, tensors[0].shape[-1]))
        yield from zip(*(torch.split(x, rows) for x in tensors), strict=True)


class _LinearCrossEntropy(torch.autograd.Function):
    """Average cross-entropy over all rows; the gradients are computed on the way forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=_wide_dtype(weight)) if wants_weight else None
        loss, share = torch.zeros((), dtype=_wide_dtype(x), device=x.device), 1 / max(1, len(x))
        for i in range(0, len(x), chunk):
            rows, ids = x[i : i + chunk], targets[i : i + chunk, None]
            logits = _widen(rows @ weight.T)  # (C, V)
            lse = logits.logsumexp(dim=-1, keepdim=True)
            loss += (lse - logits.gather(-1, ids)).sum() * share
            if not (wants_x or wants_weight):
                continue
            g = logits.sub_(lse).exp_().scatter_add_(-1, ids, -torch.ones_like(lse)).mul_(share).to(x.dtype)  # (C, V)
            if grad_x is not None:
                torch.mm(g, weight, out=grad_x[i : i + chunk])
            if grad_weight is not None:
                _add_product(grad_weight, g.T, rows)
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        grad_x = None if grad_x is None else grad_x * grad.to(grad_x.dtype)
        grad_weight = None if grad_weight is None else (grad_weight * grad).to(ctx.dtype)
        return grad_x, grad_weight, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product to a sum that may be kept in more precision than its factors."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the average of what counts, 0 where nothing does; what does not count may be infinite."""
    return values.where(counted, 0).sum() / counted.sum().clamp(min=1)


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))


def _counted(x: Tensor, targets: Tensor, ignore_index: int, *, vocabulary: int | None = None) -> Tensor:
    """Return where targets count, after checking those that do against the logits or the size of the vocabulary."""
    counted = targets != ignore_index
    check_equal("shape of targets", tuple(targets.shape), "shape before the last dimension", tuple(x.shape[:-1]))
    _check_range("targets", targets[counted], x.shape[-1] if vocabulary is None else vocabulary)
    return counted


def _check_ids(logits: Tensor, name: str, ids: Tensor) -> None:
    check_equal(f"shape of {name}", tuple(ids.shape), "shape before the last dimension", tuple(logits.shape[:-1]))
    _check_range(name, ids, logits.shape[-1])


def _check_range(name: str, ids: Tensor, vocabulary: int) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} have dtype {ids.dtype}, expected integers: pass ids, not probabilities or a mask")
    if ids.numel():
        least, most = (bound.item() for bound in ids.aminmax())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise ValueError(
                f"{name} contain {wrong}, expected ids from 0 to {vocabulary - 1}: the vocabulary has {vocabulary}; "
                f"mark what does not count with ignore_index"
            )


def _check_linear(x: Tensor, weight: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected 2 dimensions (V, D)")
    if x.ndim == 0:
        raise ValueError("x has no dimensions, expected (…, D)")
    check_equal("width of x", x.shape[-1], "width of weight", weight.shape[1], hint="weight is (V, D), as in nn.Linear")
    check_equal("dtype of x", x.dtype, "dtype of weight", weight.dtype)
