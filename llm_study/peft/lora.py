r"""LoRA: the update of a frozen weight as a product of two thin matrices, and what is close to it.

:class:`LoRA` adapts linear layers, embeddings and convolutions. :class:`RSLoRA` scales by the root of the rank,
:class:`LoRAFA` trains one of the two matrices, :func:`lora_plus_groups` gives them learning rates of their own, and
:func:`batched_lora` serves many adapters in one batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal, check_ndim
from llm_study.peft.base import Adapter, Method, adapter_dtype, check_plain, check_rank, trainable

__all__ = [
    "LoRA",
    "LoRAFA",
    "RSLoRA",
    "LoRAConv",
    "LoRAEmbedding",
    "LoRALinear",
    "batched_lora",
    "batched_lora_reference",
    "lora_delta",
    "lora_linear",
    "lora_linear_reference",
    "lora_plus_groups",
]


# --- functions


def lora_delta(A: Tensor, B: Tensor, *, scale: float) -> Tensor:
    r"""Weight difference of LoRA, of rank ``R`` at most.

    .. math:: \Delta W = s\,BA

    Args:
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor :math:`s`.

    Returns:
        ``(O, I)`` what is added to the weight of a linear layer.

    Cost: ``2 * O * R * I`` FLOPs.

    References:
        Hu et al. (2022), arXiv:2106.09685, equation (3).

    Example:
        >>> lora_delta(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), scale=0.5)
        tensor([[1.5000, 3.0000],
                [2.0000, 4.0000]])
    """
    return scale * (B @ A)


def lora_linear_reference(
    x: Tensor, weight: Tensor, A: Tensor, B: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    r"""Linear layer with LoRA, by its definition: the weight difference is made, and added to the weight.

    .. math:: y = x\,(W + s\,BA)^\top + b

    Args:
        x: ``(…, I)`` input.
        weight: ``(O, I)`` frozen weight.
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor :math:`s`.
        bias: ``(O,)`` bias. Default: none.

    Returns:
        ``(…, O)`` output.

    References:
        Hu et al. (2022), arXiv:2106.09685, equation (3).

    Example:
        >>> A, B = torch.ones(1, 2), torch.ones(1, 1)
        >>> lora_linear_reference(torch.tensor([1.0, 2.0]), torch.zeros(1, 2), A, B, scale=2.0)
        tensor([6.])
    """
    return F.linear(x, weight + lora_delta(A, B, scale=scale), bias)


def lora_linear(y: Tensor, x: Tensor, A: Tensor, B: Tensor, *, scale: float) -> Tensor:
    r"""Add what LoRA adds to the output of a linear layer, through the narrow place: :math:`y + s\,(xA^\top)B^\top`.

    Args:
        y: ``(…, O)`` output of the frozen layer.
        x: ``(…, I)`` its input.
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor :math:`s`.

    Returns:
        ``(…, O)``, in the dtype of ``y``.

    Cost: ``2 * R * (I + O)`` FLOPs for each input, in two kernels; the sum is made within the second.

    References:
        Hu et al. (2022), arXiv:2106.09685, equation (3).

    Example:
        >>> A, B = torch.ones(1, 2), torch.ones(1, 1)
        >>> lora_linear(torch.tensor([0.5]), torch.tensor([1.0, 2.0]), A, B, scale=2.0)
        tensor([6.5000])
    """
    h = F.linear(x.to(A.dtype), A)  # (…, R)
    if y.dtype != B.dtype:
        return (y + scale * F.linear(h, B)).to(y.dtype)
    flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1]), B.mT, alpha=scale)
    return flat.view(y.shape)
