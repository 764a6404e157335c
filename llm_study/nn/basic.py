"""Norms and feed-forward layers as modules: parameters around :mod:`llm_study.functional.norms` and activations.

A module here holds its parameters, under the names that Hugging Face models use, and calls one function.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least
from llm_study.functional.norms import gemma_rms_norm, layer_norm, rms_norm, rms_norm_late_cast
from llm_study.nn._side_by_side import SideBySide

__all__ = ["LayerNorm", "RMSNorm", "LateCastRMSNorm", "GemmaRMSNorm", "FeedForward", "GatedFeedForward"]


class LayerNorm(nn.Module):
    """Layer normalization: each vector gets mean 0 and variance 1, then a learned scale and shift.

    Args:
        d: width ``D`` of the vectors.
        eps: what is added to the variance.
        bias: whether there is a shift.

    Attributes:
        weight: ``(D,)`` scale, at first 1.
        bias: ``(D,)`` shift, at first 0; None without one.

    Raises:
        ValueError: if ``d`` is below 1.

    References:
        Ba et al. (2016), arXiv:1607.06450.

    Example:
        >>> LayerNorm(2, eps=0.0)(torch.tensor([1.0, 5.0])).detach()
        tensor([-1.,  1.])
    """

    bindable = True

    def __init__(self, d: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        check_at_least("d", d, 1)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each vector.

        Args:
            x: ``(…, D)`` vectors.

        Returns:
            ``(…, D)``, in the dtype of ``x``.
        """
        return layer_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the layer.

        Returns:
            Width, eps, and whether there is a shift.
        """
        return f"{self.weight.numel()}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(nn.Module):
    """Root-mean-square normalization: each vector gets root mean square 1, then a learned scale.

    The normalized vector is rounded to the dtype of the input before it is scaled, as in Llama, Mistral and Qwen.

    Args:
        d: width ``D`` of the vectors.
        eps: what is added to the mean square.

    Attributes:
        weight: ``(D,)`` scale, at first 1.

    Raises:
        ValueError: if ``d`` is below 1.

    References:
        Zhang and Sennrich (2019), arXiv:1910.07467.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([1.0, 7.0])).detach()  # root mean square 5
        tensor([0.2000, 1.4000])
    """

    bindable = True

    def __init__(self, d: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        check_at_least("d", d, 1)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each vector.

        Args:
            x: ``(…, D)`` vectors.

        Returns:
            ``(…, D)``, in the dtype of ``x``.
        """
        return rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the layer.

        Returns:
            Width and eps.
        """
        return f"{self.weight.numel()}, eps={self.eps}"


class LateCastRMSNorm(RMSNorm):
    """:class:`RMSNorm` that scales in float32 and rounds to the dtype of the input last, as in OLMo 2.

    In float32 and float64 both are the same; in bfloat16 this one rounds once, :class:`RMSNorm` twice.

    Args:
        d: width ``D`` of the vectors.
        eps: what is added to the mean square.

    Raises:
        ValueError: if ``d`` is below 1.

    References:
        OLMo Team (2024), arXiv:2501.00656; the order is that of its code.

    Example:
        >>> x = torch.linspace(-1, 1, 64)
        >>> torch.equal(LateCastRMSNorm(64)(x), RMSNorm(64)(x))
        True
    """

    bindable = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each vector.

        Args:
            x: ``(…, D)`` vectors.

        Returns:
            ``(…, D)``, in the dtype of ``x``.
        """
        return rms_norm_late_cast(x, self.weight, eps=self.eps)


class GemmaRMSNorm(RMSNorm):
    """:class:`RMSNorm` whose scale is ``1 + weight``, applied in float32 before rounding, as in Gemma.

    Weight decay then pulls the scale toward 1 instead of 0, and what is stored near 0 keeps more digits in bfloat16.

    Args:
        d: width ``D`` of the vectors.
        eps: what is added to the mean square.

    Attributes:
        weight: ``(D,)`` scale less 1, at first 0.

    Raises:
        ValueError: if ``d`` is below 1.

    References:
        Gemma Team (2024), arXiv:2403.08295; the formula is that of its code.

    Example:
        >>> GemmaRMSNorm(2, eps=0.0)(torch.tensor([1.0, 7.0])).detach()  # the weight is 0
        tensor([0.2000, 1.4000])
    """

    bindable = True

    def __init__(self, d: int, *, eps: float = 1e-6) -> None:
        super().__init__(d, eps=eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each vector.

        Args:
            x: ``(…, D)`` vectors.

        Returns:
            ``(…, D)``, in the dtype of ``x``.
        """
        return gemma_rms_norm(x, self.weight, eps=self.eps)


class FeedForward(nn.Module):
    r"""Two linear layers with an activation between them, applied to each position alone.

    .. math:: \operatorname{FFN}(x) = \phi(x W_{\mathrm{up}} + b_{\mathrm{up}})\, W_{\mathrm{down}} + b_{\mathrm{down}}

    Args:
        d_model: width ``D`` of the input and the output.
        d_ff: width ``F`` between the layers.
        activation: ``(…, F) → (…, F)``, the activation :math:`\phi`.
        bias: whether the layers have a bias.

    Attributes:
        up_proj: ``(D → F)`` the first layer.
        down_proj: ``(F → D)`` the second layer.

    Raises:
        ValueError: if a width is below 1.

    Cost: ``4 * D * F`` FLOPs for each position, without biases.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, equation (2).

    Example:
        >>> layer = FeedForward(8, 32, activation=torch.relu)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> sum(p.numel() for p in layer.parameters())  # 2 * 8 * 32, and biases
        552
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        check_at_least("d_model", d_model, 1)
        check_at_least("d_ff", d_ff, 1)
        self.activation = activation
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position alone.

        Args:
            x: ``(…, D)`` input.

        Returns:
            ``(…, D)`` output.
        """
        y: Tensor = self.down_proj(self.activation(self.up_proj(x)))
        return y


class GatedFeedForward(nn.Module):
    r"""Feed-forward layer whose hidden features are multiplied by gates, applied to each position alone.

    .. math:: \operatorname{GLU}(x) = \bigl(\phi(x W_{\mathrm{gate}}) \circ x W_{\mathrm{up}}\bigr)\, W_{\mathrm{down}}

    With SiLU as the activation it is SwiGLU, with GELU GEGLU, with the sigmoid the original gated linear unit.

    Args:
        d_model: width ``D`` of the input and the output.
        d_ff: width ``F`` between the layers.
        activation: ``(…, F) → (…, F)``, the activation :math:`\phi` of the gates.
        bias: whether the three layers have a bias.

    Attributes:
        gate_proj: ``(D → F)`` makes the gates.
        up_proj: ``(D → F)`` makes what they gate.
        down_proj: ``(F → D)`` leads back to the width of the model.

    Raises:
        ValueError: if a width is below 1.

    Cost: ``6 * D * F`` FLOPs for each position, without biases.

    References:
        Shazeer (2020), arXiv:2002.05202, equations (5) and (6).

    Example:
        >>> layer = GatedFeedForward(8, 32, activation=torch.nn.functional.silu)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> sum(p.numel() for p in layer.parameters())  # 3 * 8 * 32
        768
    """

    bindable = True

    def __init__(self, d_model: int, d_ff: int, *, activation: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        check_at_least("d_model", d_model, 1)
        check_at_least("d_ff", d_ff, 1)
        self.activation = activation
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self._side_by_side = SideBySide("gate_proj", "up_proj")

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position alone.

        Args:
            x: ``(…, D)`` input.

        Returns:
            ``(…, D)`` output.
        """
        both = self._side_by_side.product(self, x)
        gate, up = (self.gate_proj(x), self.up_proj(x)) if both is None else both.chunk(2, dim=-1)
        y: Tensor = self.down_proj(self.activation(gate) * up)
        return y

    def put_side_by_side(self) -> None:
        """Store the matrices of the gates and of what they gate in one, so that one product reads both.

        What :meth:`llm_study.nn.attention.MultiHeadAttention.put_side_by_side` says of its three layers holds for these
        two.
        """
        self._side_by_side.put(self)
