"""A linear layer whose weight is kept in 4 bits and never trained: the layer below an adapter."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.functional.codebooks import (
    BlockQuantized,
    DoubleQuantized,
    dequantize_blockwise,
    double_quantize,
    fp4_codebook,
    nf4_codebook,
    quantize_blockwise,
)

__all__ = ["CODEBOOKS", "QuantizedLinear", "quantize_weight"]

CODEBOOKS: dict[str, Callable[[], Tensor]] = {"nf4": nf4_codebook, "fp4": fp4_codebook}


def quantize_weight(
    weight: Tensor, *, quant_type: str = "nf4", block: int = 64, double_quant: bool = True
) -> BlockQuantized | DoubleQuantized:
    """Quantize the weight of a layer to 4 bits.

    Args:
        weight: ``(O, I)`` weight.
        quant_type: which codebook to use, ``nf4`` or ``fp4``.
        block: numbers that share a factor.
        double_quant: whether the factors are quantized too.

    Returns:
        The codes and their factors.

    Raises:
        ValueError: if there is no such codebook, ``block`` is below 1, or the weight is not finite.

    Example:
        >>> quantize_weight(torch.ones(64, 64), double_quant=False).nbytes  # 64 * 64 / 2 of codes, 64 * 4 of factors
        2304
    """
    if quant_type not in CODEBOOKS:
        raise ValueError(f"quant_type is {quant_type!r}, expected one of {', '.join(CODEBOOKS)}")
    quantized = quantize_blockwise(weight.detach(), codebook=CODEBOOKS[quant_type]().to(weight.device), block=block)
    return double_quantize(quantized) if double_quant else quantized


class QuantizedLinear(nn.Module):
    r"""A linear layer that keeps its weight as codes: :math:`y = x \hat W^\top + b`.

    The weight is made when it is needed and forgotten afterwards; the backward pass makes it anew. The input gets its
    gradient, :math:`\partial \ell / \partial x = (\partial \ell / \partial y)\, \hat W`; codes and factors get none.
    The bias is that of the layer before, the same parameter.

    Moving the layer to another dtype changes that of the weight it makes, not that of the factors it keeps.

    Args:
        quantized: the weight, of shape ``(O, I)``.
        bias: ``(O,)`` bias. Default: none.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        bias: ``(O,)`` bias, or None.

    Example:
        >>> layer = QuantizedLinear.of(nn.Linear(64, 64))
        >>> layer.nbytes, layer(torch.ones(1, 64)).shape  # 2048 of codes, 64 of factors, 4 + 4, and 256 of the bias
        (2376, torch.Size([1, 64]))
    """

    codes: Tensor

    def __init__(self, quantized: BlockQuantized | DoubleQuantized, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        self.block, self.second_block = quantized.block, 0
        self.bias = bias
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("like", quantized.codes.new_empty(0, dtype=quantized.dtype), persistent=False)
        if isinstance(quantized, DoubleQuantized):
            factors, self.second_block = quantized.absmax.absmax, quantized.absmax.block
            self.register_buffer("factor_codes", quantized.absmax.codes)
            self._keep(mean=quantized.mean, factor_codebook=quantized.absmax.codebook.float())
        else:
            factors = quantized.absmax
        self.wide = factors.dtype
        self._keep(factors=factors, codebook=quantized.codebook.float())

    @classmethod
    def of(cls, linear: nn.Linear, *, quant_type: str = "nf4", block: int = 64, double_quant: bool = True) -> Self:
        """Quantize a linear layer, which stays as it is.

        Args:
            linear: the layer.
            quant_type: which codebook to use, ``nf4`` or ``fp4``.
            block: numbers that share a factor.
            double_quant: whether the factors are quantized too.

        Returns:
            The quantized layer.
        """
        quantized = quantize_weight(linear.weight, quant_type=quant_type, block=block, double_quant=double_quant)
        return cls(quantized, linear.bias).train(linear.training)

    @property
    def quantized(self) -> BlockQuantized | DoubleQuantized:
        """The codes and the factors as :mod:`llm_study.functional.codebooks` knows them."""
        shape, factors, codebook = (self.out_features, self.in_features), self._kept("factors"), self._kept("codebook")
        plain = BlockQuantized(
            codes=self.codes, absmax=factors, codebook=codebook, block=self.block, shape=shape, dtype=self.dtype
        )
        if not self.second_block:
            return plain
        inner = BlockQuantized(
            codes=self.get_buffer("factor_codes"),
            absmax=factors,
            codebook=self._kept("factor_codebook"),
            block=self.second_block,
            shape=(-(-self.out_features * self.in_features // self.block),),
            dtype=self.wide,
        )
        return DoubleQuantized(
            codes=self.codes,
            absmax=inner,
            mean=self._kept("mean")[0],
            codebook=codebook,
            block=self.block,
            shape=shape,
            dtype=self.dtype,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight that is made."""
        return self.get_buffer("like").dtype

    @property
    def weight(self) -> Tensor:
        """The weight ``(O, I)``, made from its codes anew each time it is asked for."""
        return dequantize_blockwise(self.quantized)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the factors and the bias."""
        return self.quantized.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def dense(self, weight: Tensor) -> nn.Linear:
        """Make a plain linear layer with this bias, for instance of a merged weight.

        Args:
            weight: ``(O, I)`` weight.

        Returns:
            The plain layer; its weight is frozen, its bias is that of this layer.
        """
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, bias=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output.
        """
        product: Callable[[Tensor, QuantizedLinear], Tensor] = _Product.apply
        y = product(x, self)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Say what the layer is.

        Returns:
            The sizes, as those of a linear layer.
        """
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _keep(self, **tensors: Tensor) -> None:
        """Keep tensors as bytes, which moving the layer to another dtype leaves alone."""
        for name, x in tensors.items():
            self.register_buffer(name, x.reshape(-1).view(torch.uint8), persistent="codebook" not in name)

    def _kept(self, name: str) -> Tensor:
        numbers: Tensor = self.get_buffer(name).view(torch.float32 if "codebook" in name else self.wide)
        return numbers


class _Product(torch.autograd.Function):
    """Multiply by the weight of a quantized layer, and keep no tensor for the backward pass but those of the layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight: Tensor = ctx.layer.weight
        return grad @ weight.to(grad.dtype), None
