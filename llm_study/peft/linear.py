"""What the variants of LoRA have in common: a linear layer, a few tensors, and a weight difference computed from them.

A method derives from :class:`LinearMethod` and says three things: which tensors a layer of a given size gets, which
weight difference they make, and, where there is a shorter way than writing it out, how it acts on an input.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.peft.base import Adapter, Method, adapter_dtype, check_plain

__all__ = ["LinearAdapter", "LinearMethod"]


class LinearAdapter(Adapter):
    """A frozen linear layer with the tensors of a method beside it.

    Args:
        base_layer: the linear layer.
        method: how it is adapted.
        trained: ``(…)`` tensors of this layer, by the names that the method gives them.
        shared: ``(…)`` parameters that all layers use.

    Attributes:
        method: how the layer is adapted.

    Example:
        >>> from llm_study.peft.lowrank import MiSS
        >>> layer = LinearAdapter(nn.Linear(4, 1), MiSS(rank=2), {"miss_block": torch.tensor([[1.0], [2.0]])}, {})
        >>> layer.delta().detach()
        tensor([[1., 2., 1., 2.]])
    """

    def __init__(
        self,
        base_layer: nn.Module,
        method: "LinearMethod",
        trained: Mapping[str, Tensor],
        shared: Mapping[str, nn.Parameter],
    ) -> None:
        super().__init__(base_layer)
        self.method, self._own, self._shared = method, tuple(trained), tuple(shared)
        for name, tensor in trained.items():
            self.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=name not in method.frozen))
        for name, parameter in shared.items():
            self.register_parameter(name, parameter)

    @property
    def values(self) -> dict[str, Tensor]:
        """All tensors that the method computes with, by name."""
        return {name: self.get_parameter(name) for name in (*self._own, *self._shared)}

    def adapted(self, x: Tensor) -> Tensor:
        """Compute the layer and add the adapter.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output, in the dtype of the frozen layer's.
        """
        y: Tensor = self.base_layer(x)
        own = x.to(self.get_parameter(self._own[0]).dtype)
        return (y + self.method._apply(own, self.values, y.shape[-1])).to(y.dtype)

    def delta(self) -> Tensor:
        """Return the weight difference.

        Returns:
            ``(O, I)``.
        """
        rows, columns = self.base_layer.get_parameter("weight").shape
        return self.method._delta(self.values, (rows, columns))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored.

        Returns:
            ``(…)`` the tensors by the names that peft gives them.
        """
        stored = (*self._own, *(name for name in self._shared if name in self.method.repeated))
        return {self.method.stored.get(name, name): self.get_parameter(name) for name in stored}


class LinearMethod(Method, Protocol):
    """A method that adapts linear layers by a weight difference. Methods derive from it.

    Attributes:
        settings: the names that peft gives to the settings, by our names.
        fixed: further settings of peft with the only value that is supported here.
        ignored: further settings of peft that may have any value, since they do not concern what is computed.
        stored: the names that peft gives to tensors, where they differ from the names of the parameters.
        repeated: shared tensors that peft stores with each layer too.
        frozen: tensors of a layer that are stored, but not trained.

    Example:
        >>> from llm_study.peft.lowrank import MiSS
        >>> MiSS(rank=2).to_config()
        {'r': 2, 'init_weights': True}
        >>> MiSS.from_config({"peft_type": "MISS", "r": 2, "init_weights": True})
        MiSS(rank=2)
    """

    settings: ClassVar[Mapping[str, str]] = {"rank": "r"}
    fixed: ClassVar[Mapping[str, Any]] = {}
    ignored: ClassVar[tuple[str, ...]] = ()
    stored: ClassVar[Mapping[str, str]] = {}
    repeated: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()

    def build(
        self,
        module: nn.Module,
        *,
        name: str,
        shared: Mapping[str, nn.Parameter],
        generator: torch.Generator | None,
    ) -> Adapter:
        """Make the adapter of one layer, without changing the layer.

        Args:
            module: the linear layer.
            name: its name in the model.
            shared: ``(…)`` what all layers use.
            generator: source of random numbers, on the device of the model. Default: torch's own.

        Returns:
            The adapter.

        Raises:
            ValueError: if the settings do not fit the sizes of the layer.
        """
        weight = module.get_parameter("weight")
        with torch.no_grad():
            empty = torch.zeros(0, dtype=adapter_dtype(weight), device=weight.device)
            trained = self._tensors(name, weight, empty, generator)
        return LinearAdapter(module, self, trained, shared)

    def to_config(self) -> dict[str, Any]:
        """Say what ``adapter_config.json`` is to hold.

        Returns:
            The settings, under the names of peft.
        """
        return {**{theirs: getattr(self, ours) for ours, theirs in self.settings.items()}, **self.fixed}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read the settings from ``adapter_config.json``.

        Args:
            config: what the file says.

        Returns:
            The method, or None if the file is of another one.

        Raises:
            ValueError: if the file asks for something that the method does not have.
        """
        if config.get("peft_type") != cls.peft_type:
            return None
        for field, value in cls.fixed.items():
            if config.get(field, value) != value:
                raise ValueError(f"adapter_config.json asks for {field} = {config[field]!r}, expected {value!r}")
        check_plain(config, [*cls.settings.values(), *cls.fixed, *cls.ignored])
        return cls._read({ours: config[theirs] for ours, theirs in cls.settings.items() if theirs in config})

    @classmethod
    def _read(cls, settings: Mapping[str, Any]) -> Self:
        """Make the method from the settings of a file."""
        return cls(**settings)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Make the tensors of a layer with this weight, in the dtype and on the device of ``empty``."""
        raise NotImplementedError

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Return the weight difference that the tensors make."""
        raise NotImplementedError

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        """Return what the weight difference adds to the output, of this width."""
        return F.linear(x, self._delta(values, (width, x.shape[-1])))
