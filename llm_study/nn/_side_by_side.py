"""Linear layers that read the same input, kept in one matrix, so that decoding reads them by one product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SideBySide:
    """The matrices of some layers of a module in one matrix, column by column, for as long as they lie there.

    The layers stay what they are; this object only knows where their parameters were put, and looks each time whether
    they still lie there. A copy of it, as in a copy of the module, knows of no place.
    """

    def __init__(self, *names: str) -> None:
        self._names = names  # of the layers, in the module that owns them
        self._whole: list[Tensor] = []  # the matrix of all, and the bias if there is one
        self._places: list[int] = []  # where each parameter lies in them

    def __reduce__(self) -> tuple[type["SideBySide"], tuple[str, ...]]:
        return type(self), self._names

    def put(self, owner: nn.Module) -> None:
        """Put the layers side by side, if all are plain linear layers, and all have a bias or none has."""
        parameters = self._parameters(owner)
        count = len(self._names)
        if len(parameters) not in (count, 2 * count) or self._holds(parameters):
            return
        weights, biases = [p.detach() for p in parameters[:count]], [p.detach() for p in parameters[count:]]
        weight = torch.cat(weights).t().contiguous().t()
        parts, self._whole = list(torch.split(weight, [len(x) for x in weights])), [weight]
        if biases:
            bias = torch.cat(biases)
            parts, self._whole = [*parts, *torch.split(bias, [len(x) for x in biases])], [weight, bias]
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part
        self._places = [part.data_ptr() for part in parts]

    def product(self, owner: nn.Module, x: Tensor) -> Tensor | None:
        """Return ``(…, sum of outputs)``, what the layers make of ``x``; None where each has to be asked.

        That is so where gradients are to flow, a layer has hooks or is no plain one any more, or a parameter has moved.
        """
        if not self._whole or torch.is_grad_enabled() or not self._holds(self._parameters(owner)):
            return None
        return F.linear(x, *self._whole)

    def settled(self, owner: nn.Module) -> "SideBySide":
        """Return one that looks no more whether the layers lie here, if they do now."""
        return _Settled(self._whole) if self._holds(self._parameters(owner)) else self

    def _holds(self, parameters: list[Tensor]) -> bool:
        return bool(self._places) and [p.data_ptr() for p in parameters] == self._places

    def _parameters(self, owner: nn.Module) -> list[Tensor]:
        """Return the weights of all layers, then the biases of those that have one; none if a layer is not plain."""
        weights, biases = [], []
        for name in self._names:  # asked for every token: past the attributes, at the dictionaries
            layer = owner._modules[name]
            if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
                return []
            weights.append(layer._parameters["weight"])
            biases.append(layer._parameters["bias"])
        return [p for p in (*weights, *biases) if p is not None]


class _Settled(SideBySide):
    """The matrix of layers that stay where they are."""

    def __init__(self, whole: list[Tensor]) -> None:
        self._whole = whole

    def product(self, owner: nn.Module, x: Tensor) -> Tensor:
        """Return ``(…, sum of outputs)``, what the layers make of ``x``."""
        return F.linear(x, *self._whole)
