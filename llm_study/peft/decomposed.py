r"""Methods that take the frozen weight apart: DoRA, PiSSA, OLoRA and LoRA-GA.

:class:`DoRA` trains the length and the direction of each row separately. The other three are LoRA with another start:
:class:`PiSSA` and :class:`OLoRA` take the factors out of the weight, :class:`LoRAGA` out of its gradient. All leave the
outputs as they are at the start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal
from llm_study.functional import lowrank
from llm_study.peft.base import Adapter, adapter_dtype, check_rank
from llm_study.peft.linear import LinearAdapter, LinearMethod
from llm_study.peft.lora import lora_delta
from llm_study.peft.lowrank import uniform

__all__ = ["DoRA", "DoRALinear", "Factored", "LoRAGA", "OLoRA", "PiSSA", "ResidualLinear"]


@dataclass(frozen=True)
class Factored(LinearMethod):
    """Two factors beside a linear layer, stored as those of LoRA; the methods of this module derive from it.

    Args:
        rank: rank of the factors.
        alpha: the scale is ``alpha / rank``.

    Raises:
        ValueError: if the rank is below 1.

    Example:
        >>> DoRA(rank=4, alpha=6).scale
        1.5
    """

    peft_type: ClassVar[str] = "LORA"
    settings: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "lora_alpha"}
    ignored: ClassVar[tuple[str, ...]] = ("megatron_core", "qalora_group_size")
    stored: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    @property
    def scale(self) -> float:
        """Factor on the product of the two factors."""
        return self.alpha / self.rank

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
        mine = all(config.get(name) == value for name, value in cls.fixed.items())
        return super().from_config(config) if mine else None

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        (rows, columns), R = weight.shape, self.rank
        return {"lora_A": uniform(empty, R, columns, generator=generator), "lora_B": empty.new_zeros(rows, R)}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return lora_delta(values["lora_A"], values["lora_B"], scale=self.scale)

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        y: Tensor = self.scale * F.linear(F.linear(x, values["lora_A"]), values["lora_B"])
        return y


class DoRALinear(LinearAdapter):
    """A linear layer with DoRA: the rows keep a trained length, and a low-rank difference turns them.

    Args:
        base_layer: the linear layer.
        method: how it is adapted.
        trained: ``(…)`` factors ``lora_A`` and ``lora_B``, and ``lora_magnitude_vector``.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), DoRA(rank=2), ["0"])
        >>> {name: tuple(x.shape) for name, x in model[0].tensors().items()}
        {'lora_A.weight': (2, 8), 'lora_B.weight': (4, 2), 'lora_magnitude_vector': (4,)}
    """

    def __init__(self, base_layer: nn.Module, method: "DoRA", trained: Mapping[str, Tensor]) -> None:
        super().__init__(base_layer, method, trained, {})

    def adapted(self, x: Tensor) -> Tensor:
        """Compute the layer; the norm of the direction gets no gradient, as in section 4.3 of the paper.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output, in the dtype of the frozen layer's.
        """
        own, weight = x.to(self.lora_A.dtype), self._weight()
        with torch.no_grad():
            norm = torch.linalg.vector_norm(weight + super().delta(), dim=1)
        update = self.method._apply(own, self.values, weight.shape[0])
        y: Tensor = F.linear(x, self.base_layer.get_parameter("weight"))
        y = (self.lora_magnitude_vector / norm * (y + update)).to(y.dtype)
        bias = self.base_layer.bias
        return y + bias if isinstance(bias, Tensor) else y

    def delta(self) -> Tensor:
        """Return the weight difference, turned and stretched.

        Returns:
            ``(O, I)``.
        """
        weight = self._weight()
        return lowrank.dora_weight_detached(weight, super().delta(), self.lora_magnitude_vector) - weight

    def _weight(self) -> Tensor:
        return self.base_layer.get_parameter("weight").to(self.lora_A.dtype)


@dataclass(frozen=True)
class DoRA(Factored):
    r"""DoRA: :math:`m \circ \frac{W + sBA}{\lVert W + sBA \rVert}`, the length and the direction of each row apart.

    Args:
        rank: rank of the difference that turns the rows.
        alpha: the scale is ``alpha / rank``.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Liu et al. (2024), arXiv:2402.09353.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), DoRA(rank=2), ["0"])
        >>> sum(p.numel() for p in trainable(model).values())  # 2 · (8 + 4) + 4
        28
    """

    fixed: ClassVar[Mapping[str, Any]] = {"use_dora": True}
    ignored: ClassVar[tuple[str, ...]] = (*Factored.ignored, "init_lora_weights")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read the settings from ``adapter_config.json``.

        Args:
            config: what the file says.

        Returns:
            The method, or None if the file is of another one. A DoRA that starts from factors of the weight is another.

        Raises:
            ValueError: if the file asks for something that the method does not have.
        """
        plain = config.get("init_lora_weights", True) in (True, False, "gaussian")
        return super().from_config(config) if plain else None

    def build(
        self, module: nn.Module, *, name: str, shared: Mapping[str, nn.Parameter], generator: torch.Generator | None
    ) -> Adapter:
        """Make the adapter of one layer, without changing the layer.

        Args:
            module: the linear layer.
            name: its name in the model.
            shared: ``(…)`` nothing: layers of DoRA share no tensors.
            generator: source of random numbers, on the device of the model. Default: torch's own.

        Returns:
            The adapter.

        Raises:
            ValueError: if the rank is above the smaller side of the weight, or a row is 0 and has no direction.
        """
        weight = module.get_parameter("weight")
        with torch.no_grad():
            empty = torch.zeros(0, dtype=adapter_dtype(weight), device=weight.device)
            trained = self._tensors(name, weight, empty, generator)
            magnitude = torch.linalg.vector_norm(weight.to(empty.dtype), dim=1)
        if not magnitude.all():
            raise ValueError(f"{name}: row {int(magnitude.argmin())} of the weight is 0 and has no direction")
        return DoRALinear(module, self, {**trained, "lora_magnitude_vector": magnitude})


class ResidualLinear(LinearAdapter):
    """A linear layer whose factors were taken out of its weight, which keeps the rest.

    Args:
        base_layer: the linear layer.
        method: how it is adapted.
        trained: ``(…)`` factors ``lora_A`` and ``lora_B``; what they make is taken out of the weight by :meth:`attach`.

    Example:
        >>> from llm_study.peft.base import inject
        >>> layer = nn.Linear(8, 4)
        >>> before = layer.weight.detach().clone()
        >>> model = inject(nn.Sequential(layer), PiSSA(rank=2), ["0"])
        >>> torch.allclose(model[0].base_layer.weight + model[0].delta(), before, atol=1e-6)
        True
    """

    def __init__(self, base_layer: nn.Module, method: "PiSSA", trained: Mapping[str, Tensor]) -> None:
        super().__init__(base_layer, method, trained, {})
        for name, tensor in trained.items():
            self.register_buffer(f"initial_{name}", tensor.detach().clone(), persistent=False)

    def attach(self) -> None:
        """Take what the factors make out of the weight."""
        self._shift(-1)

    def detach(self) -> None:
        """Put what the factors made at the start back into the weight."""
        self._shift(1)

    def original(self, x: Tensor) -> Tensor:
        """Compute the layer as it was before it was adapted.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output, up to rounding that of the layer before.
        """
        y: Tensor = self.base_layer(x)
        return (y + self.method._apply(x.to(self.lora_A.dtype), self._start(), y.shape[-1])).to(y.dtype)

    def _start(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"initial_{name}") for name in self._own}

    @torch.no_grad()
    def _shift(self, sign: int) -> None:
        weight, start = self.base_layer.get_parameter("weight"), self._start()
        rows, columns = weight.shape
        weight.copy_(weight.to(self.lora_A.dtype) + sign * self.method._delta(start, (rows, columns)))


@dataclass(frozen=True)
class PiSSA(Factored):
    r"""PiSSA: LoRA that starts from the principal part of the weight, while the rest is frozen.

    The factors are those of :func:`llm_study.functional.lowrank.principal_factors`. In files, as in peft's, only the
    trained factors are kept: loading computes the rest from the weight of the model anew.

    Args:
        rank: how many singular values to train.
        alpha: the scale is ``alpha / rank``; the start is the same for any.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Meng et al. (2024), arXiv:2404.02948.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), PiSSA(rank=4), ["0"])
        >>> model[0].base_layer.weight.abs().max().item() < 1e-6  # at full rank nothing is left
        True
    """

    fixed: ClassVar[Mapping[str, Any]] = {"init_lora_weights": "pissa"}

    def build(
        self, module: nn.Module, *, name: str, shared: Mapping[str, nn.Parameter], generator: torch.Generator | None
    ) -> Adapter:
        """Make the adapter of one layer; the weight is changed when all adapters are built.

        Args:
            module: the linear layer.
            name: its name in the model.
            shared: ``(…)`` nothing: layers share no tensors.
            generator: not used: the weight decides.

        Returns:
            The adapter.

        Raises:
            ValueError: if the rank is above the smaller side of the weight.
        """
        weight = module.get_parameter("weight").detach()
        check_rank(name, self.rank, weight.shape)
        a, b = self._start(weight.to(adapter_dtype(weight)))
        return ResidualLinear(module, self, {"lora_A": a.clone(), "lora_B": b.clone()})

    def _start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return lowrank.principal_factors(weight, self.rank, scale=self.scale)


@dataclass(frozen=True)
class OLoRA(PiSSA):
    r"""OLoRA: LoRA that starts from a QR decomposition of the weight, so that :math:`B` has orthonormal columns.

    The factors are those of :func:`llm_study.functional.lowrank.orthonormal_factors`; files are kept as for
    :class:`PiSSA`.

    References:
        Büyükakyüz (2024), arXiv:2406.01775.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), OLoRA(rank=2), ["0"])
        >>> (model[0].lora_B.mT @ model[0].lora_B).detach().round(decimals=4) + 0.0
        tensor([[1., 0.],
                [0., 1.]])
    """

    fixed: ClassVar[Mapping[str, Any]] = {"init_lora_weights": "olora"}

    def _start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return lowrank.orthonormal_factors(weight, self.rank)


@dataclass(frozen=True)
class LoRAGA(Factored):
    r"""LoRA-GA: LoRA whose first step follows the full gradient as closely as its rank allows.

    The factors start as :func:`llm_study.functional.lowrank.gradient_factors` says, from gradients of the frozen
    weights on a few batches. What they make at the start is subtracted: the difference is :math:`s\,(BA - B_0A_0)`, a
    LoRA of rank ``2 * rank``. Files hold both pairs, and peft does not read them.

    Args:
        rank: rank of the factors; twice the rank is at most the smaller side of a weight.
        alpha: the scale is ``alpha / rank``.
        gamma: the larger, the smaller the start.
        gradients: ``(O, I)`` gradient of the loss for the weight of each layer, by the name of the layer.
        stored_start: True where the tensors are loaded afterwards, so that no gradient is needed.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Wang et al. (2024), arXiv:2407.05000.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> model(torch.ones(1, 8)).square().sum().backward()
        >>> model = inject(model, LoRAGA(rank=1, gradients={"0": model[0].weight.grad}), ["0"])
        >>> model[0].delta().detach().abs().max().item()
        0.0
    """

    peft_type: ClassVar[str] = "LORA_GA"
    settings: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "lora_alpha", "gamma": "stable_gamma"}
    fixed: ClassVar[Mapping[str, Any]] = {"init_lora_weights": "lora_ga"}
    frozen: ClassVar[tuple[str, ...]] = ("initial_A", "initial_B")
    gamma: float = 16.0
    gradients: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    stored_start: bool = field(default=False, repr=False, compare=False)

    @classmethod
    def _read(cls, settings: Mapping[str, Any]) -> Self:
        return cls(**settings, stored_start=True)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, 2 * self.rank, weight.shape)
        if name in self.gradients:
            gradient = self.gradients[name].to(empty)
            check_equal(f"{name}: shape of the gradient", tuple(gradient.shape), "of the weight", tuple(weight.shape))
        elif self.stored_start:
            gradient = torch.zeros_like(weight).to(empty)
        else:
            known = ", ".join(self.gradients) or "none"
            raise ValueError(f"{name}: no gradient for this layer, only for {known}: run a backward pass first")
        a, b = lowrank.gradient_factors(gradient, self.rank, gamma=self.gamma)
        return {"lora_A": a, "lora_B": b, "initial_A": a.clone(), "initial_B": b.clone()}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        start = lora_delta(values["initial_A"], values["initial_B"], scale=self.scale)
        return super()._delta(values, shape) - start

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        start = F.linear(F.linear(x, values["initial_A"]), values["initial_B"])
        return super()._apply(x, values, width) - self.scale * start
