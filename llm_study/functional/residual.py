"""Ways to wire a sublayer into the residual stream: the constants of DeepNorm, its residual, and hyper-connections.

A sublayer ``f`` (attention or a feed-forward network) adds to a stream of vectors ``(…, D)``. These functions say with
which factors it does; the norms themselves are in :mod:`llm_study.functional.norms`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal
from llm_study.functional.norms import layer_norm

__all__ = [
    "deepnorm_constants",
    "deepnorm_encoder_constants",
    "deepnorm_residual",
    "hyper_connection",
    "static_hyper_weights",
]


def deepnorm_constants(n_layers: int, *, sublayers: int = 2) -> tuple[float, float]:
    r"""Constants of DeepNorm for one stack: how much to enlarge the residual, how much to shrink the weights.

    With ``S = sublayers * n_layers`` sublayers in the stack,

    .. math:: \alpha = S^{1/4}, \qquad \beta = (4S)^{-1/4},

    so that :math:`S \cdot 2\beta^2 / \alpha^2 = 1`: the update of the output does not grow with depth.

    Args:
        n_layers: layers of the stack, at least 1.
        sublayers: sublayers of a layer: 2 for an encoder-only or decoder-only model (attention and feed-forward), 3 for
            the decoder of an encoder–decoder (one more for cross-attention).

    Returns:
        α, the factor of the residual, and β, the gain of the initialization of the feed-forward weights and of the
        value and output projections of attention (the query and key projections keep 1).

    Raises:
        ValueError: if ``n_layers`` or ``sublayers`` is below 1.

    References:
        Wang et al. (2022), arXiv:2203.00555.

    Example:
        >>> deepnorm_constants(8)  # 16 ** (1/4) and 64 ** (-1/4)
        (2.0, 0.3535533905932738)
    """
    check_at_least("n_layers", n_layers, 1)
    check_at_least("sublayers", sublayers, 1)
    return (sublayers * n_layers) ** 0.25, (4 * sublayers * n_layers) ** -0.25


def deepnorm_encoder_constants(n_encoder_layers: int, n_decoder_layers: int) -> tuple[float, float]:
    r"""Constants of DeepNorm for the encoder of an encoder–decoder model.

    .. math:: \alpha = 0.81\,(N^4 M)^{1/16}, \qquad \beta = 0.87\,(N^4 M)^{-1/16}

    with :math:`N` layers in the encoder and :math:`M` in the decoder. The decoder takes
    ``deepnorm_constants(M, sublayers=3)``.

    Args:
        n_encoder_layers: layers :math:`N` of the encoder, at least 1.
        n_decoder_layers: layers :math:`M` of the decoder, at least 1.

    Returns:
        α and β, as in :func:`deepnorm_constants`.

    Raises:
        ValueError: if a number of layers is below 1.

    References:
        Wang et al. (2022), arXiv:2203.00555.

    Example:
        >>> alpha, beta = deepnorm_encoder_constants(6, 6)
        >>> round(alpha, 4), round(beta, 4)
        (1.4179, 0.497)
    """
    check_at_least("n_encoder_layers", n_encoder_layers, 1)
    check_at_least("n_decoder_layers", n_decoder_layers, 1)
    size = float(n_encoder_layers**4 * n_decoder_layers)
    return 0.81 * size ** (1 / 16), 0.87 * size ** (-1 / 16)


def deepnorm_residual(
    x: Tensor,
    branch: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    alpha: float,
    eps: float = 1e-5,
) -> Tensor:
    r"""Residual connection of DeepNorm: the stream is enlarged, the branch added, the sum normalized.

    .. math:: y = \operatorname{LayerNorm}\bigl(\alpha x + f(x)\bigr)

    With ``alpha = 1`` this is the post-norm of the Transformer of 2017.

    Args:
        x: ``(…, D)`` residual stream.
        branch: ``(…, D)``, what the sublayer made of ``x``: :math:`f(x)`.
        weight: ``(D,)`` factor of the norm. Default: 1.
        bias: ``(D,)`` term of the norm. Default: 0.
        alpha: factor of the residual, from :func:`deepnorm_constants`.
        eps: added to the variance.

    Returns:
        ``(…, D)``, the new residual stream.

    Raises:
        ValueError: if the shapes of ``x`` and ``branch`` differ, or the weight or bias does not fit.

    Cost: that of a LayerNorm.

    References:
        Wang et al. (2022), arXiv:2203.00555.

    Example:
        >>> x, branch = torch.tensor([1.0, 3.0]), torch.tensor([4.0, -4.0])
        >>> deepnorm_residual(x, branch, alpha=1.0, eps=0.0)  # 5, -1: the branch has the upper hand
        tensor([ 1., -1.])
        >>> deepnorm_residual(x, branch, alpha=5.0, eps=0.0)  # 9, 11
        tensor([-1.,  1.])
    """
    check_equal("shape of branch", tuple(branch.shape), "shape of x", tuple(x.shape))
    return layer_norm(alpha * x + branch, weight, bias, eps=eps)


def hyper_connection(
    streams: Tensor, layer: Callable[[Tensor], Tensor], *, read: Tensor, write: Tensor, mix: Tensor
) -> Tensor:
    r"""Hyper-connection: a sublayer that reads from ``n`` residual streams and writes to all of them.

    .. math:: \hat{H} = A_r^\top H + b\, f\bigl(a_m^\top H\bigr)

    where the rows of :math:`H` are the streams. With one stream and all weights 1 it is the plain residual
    :math:`x + f(x)`.

    Args:
        streams: ``(…, n, D)`` residual streams :math:`H`.
        layer: ``(…, D)`` to ``(…, D)``, the sublayer :math:`f` with its own norm.
        read: ``(n,)`` weights :math:`a_m` with which the streams are mixed into the input of the sublayer.
        write: ``(n,)`` weights :math:`b` with which its output is added to each stream.
        mix: ``(n, n)`` weights :math:`A_r`; ``mix[i, j]`` says how much of stream ``i`` goes into stream ``j``.

    Returns:
        ``(…, n, D)``, the new streams.

    Raises:
        ValueError: if ``streams`` has less than 2 dimensions, or the weights do not fit the number of streams.

    Cost: ``2 * n * (n + 2) * D`` FLOPs for a position, besides the sublayer.

    References:
        Zhu et al. (2024), arXiv:2409.19606.

    Example:
        >>> streams = torch.tensor([[1.0], [2.0]])  # two streams of width 1
        >>> read, write, mix = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.eye(2)
        >>> hyper_connection(streams, lambda x: 10 * x, read=read, write=write, mix=mix).flatten()
        tensor([11., 12.])
    """
    check_at_least("number of dimensions of streams", streams.ndim, 2, hint="the last two are (n, D)")
    n = streams.shape[-2]
    for name, weights, shape in (("read", read, (n,)), ("write", write, (n,)), ("mix", mix, (n, n))):
        check_equal(f"shape of {name}", tuple(weights.shape), f"shape for n = {n} streams", shape)
    out = layer(torch.einsum("n,...nd->...d", read, streams))
    kept = torch.einsum("nm,...nd->...md", mix, streams)
    return kept + write.unsqueeze(-1) * out.unsqueeze(-2)


def static_hyper_weights(n: int, sublayer: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weights that hyper-connections start from: pre-norm, read from one stream in turn.

    .. math:: a_m = e_{k \bmod n}, \qquad b = \mathbf{1}, \qquad A_r = I

    for sublayer :math:`k`. All streams stay equal as long as they start equal, so the network starts as the one with
    plain residual connections.

    Args:
        n: number of streams (the expansion rate), at least 1.
        sublayer: index :math:`k` of the sublayer, from 0.

    Returns:
        ``(n,)``, ``(n,)`` and ``(n, n)``: ``read``, ``write`` and ``mix`` of :func:`hyper_connection`.

    Raises:
        ValueError: if ``n`` is below 1 or ``sublayer`` is negative.

    References:
        Zhu et al. (2024), arXiv:2409.19606.

    Example:
        >>> read, write, mix = static_hyper_weights(2, sublayer=3)
        >>> read, write
        (tensor([0., 1.]), tensor([1., 1.]))
    """
    check_at_least("n", n, 1)
    check_at_least("sublayer", sublayer, 0)
    mix = torch.eye(n)
    return mix[sublayer % n].clone(), torch.ones(n), mix
