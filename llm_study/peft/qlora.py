r"""QLoRA and LoftQ: LoRA beside a weight that is frozen in 4 bits.

:class:`QLoRA` quantizes the layers that it adapts. :class:`LoftQ` chooses codes and factors together, so that at the
start they make up for each other. :func:`quantize_base` quantizes without adapting, for instance before an adapter is
loaded, and :func:`stored_bytes` counts what a model keeps.

Files are those of LoRA, for peft too: the quantization belongs to the base and is not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least
from llm_study.functional.codebooks import BlockQuantized, DoubleQuantized, dequantize_blockwise
from llm_study.functional.lowrank import loftq_factors
from llm_study.peft.base import Adapter, adapter_dtype, check_fresh, check_plain, check_rank, check_untied, matched
from llm_study.peft.lora import LoRA, LoRALinear, lora_delta, lora_linear
from llm_study.peft.quantized import CODEBOOKS, QuantizedLinear, quantize_weight

__all__ = ["LoftQ", "LoftQLinear", "Memory", "QLoRA", "QuantizedLoRALinear", "quantize_base", "stored_bytes"]

_M = TypeVar("_M", bound=nn.Module)


class Memory(NamedTuple):
    """Bytes that a model keeps, each tensor counted once.

    Args:
        quantized: codes and factors of quantized layers.
        frozen: parameters that are not trained, and buffers.
        trained: parameters that are trained.

    Example:
        >>> stored_bytes(quantize_base(nn.Sequential(nn.Linear(64, 64)), ["0"]))
        Memory(quantized=2120, frozen=0, trained=256)
    """

    quantized: int
    frozen: int
    trained: int


def stored_bytes(model: nn.Module) -> Memory:
    """Count the bytes that a model keeps: codes, what is frozen, what is trained.

    Gradients, the state of the optimizer and activations come on top.

    Args:
        model: any module.

    Returns:
        The bytes of each kind; codebooks, which are constants, do not count.

    Example:
        >>> from llm_study.peft.base import inject
        >>> stored_bytes(inject(nn.Sequential(nn.Linear(64, 64)), QLoRA(rank=2), ["0"]))
        Memory(quantized=2120, frozen=256, trained=1024)
    """
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    quantized = sum(layer.quantized.nbytes for layer in layers)
    codes = {id(buffer) for layer in layers for buffer in layer.buffers()}
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    return Memory(quantized, frozen + sum(b.nbytes for b in model.buffers() if id(b) not in codes), trained)


def quantize_base(model: _M, targets: Sequence[str], *, method: "QLoRA | None" = None) -> _M:
    """Replace linear layers by quantized ones, without adapters.

    Nothing is changed unless everything fits.

    Args:
        model: any module without adapters; it is changed in place.
        targets: which layers: names, last parts of names, or patterns, as for :func:`llm_study.peft.base.inject`.
        method: says how to quantize. Default: ``QLoRA()``.

    Returns:
        The model itself.

    Raises:
        ValueError: if the model has adapters already, a target matches no linear layer, or a weight is not finite or
            is used elsewhere too.

    Example:
        >>> quantize_base(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), ["0"])
        Sequential(
          (0): QuantizedLinear(in_features=8, out_features=16, bias=True)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=4, bias=True)
        )
    """
    check_fresh(model)
    how = QLoRA() if method is None else method
    names = matched(model, how, targets)
    check_untied(model, {name: model.get_submodule(name) for name in names}, what="replacing one would part them")
    layers = {name: how.quantized(model.get_submodule(name), name) for name in names}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


class QuantizedLoRALinear(LoRALinear):
    """A linear layer with LoRA whose weight is replaced by a quantized one when it is attached.

    Args:
        base_layer: the linear layer.
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor on the product of the two.
        dropout: probability with which a number of the input is dropped on its way through ``A``, when training.
        quantized: the layer that takes the place of ``base_layer``.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), QLoRA(rank=2), ["0"])
        >>> type(model[0]).__name__, type(model[0].base_layer).__name__
        ('QuantizedLoRALinear', 'QuantizedLinear')
    """

    replaces: ClassVar[bool] = True

    def __init__(
        self,
        base_layer: nn.Module,
        A: Tensor,
        B: Tensor,
        *,
        scale: float,
        dropout: float = 0.0,
        quantized: QuantizedLinear,
    ) -> None:
        super().__init__(base_layer, A, B, scale=scale, dropout=dropout)
        self._waiting: tuple[QuantizedLinear] | None = (quantized,)  # the tuple keeps it out of the submodules

    def attach(self) -> None:
        """Let the quantized layer take the place of the layer, whose weight is let go."""
        if self._waiting is not None:
            self.base_layer, self._waiting = self._waiting[0], None


class LoftQLinear(QuantizedLoRALinear):
    """A quantized linear layer with LoRA whose factors make up for what the quantization lost.

    Args:
        base_layer: the linear layer.
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor on the product of the two.
        dropout: probability with which a number of the input is dropped on its way through ``A``, when training.
        quantized: the layer that takes the place of ``base_layer``.

    Example:
        >>> from llm_study.peft.base import inject
        >>> layer = nn.Linear(64, 64)
        >>> weight = layer.weight.detach().clone()
        >>> model = inject(nn.Sequential(layer), LoftQ(rank=8), ["0"])
        >>> (model[0].merged_weight() - weight).norm() < (model[0].base_layer.weight - weight).norm()
        tensor(True)
    """

    def __init__(
        self,
        base_layer: nn.Module,
        A: Tensor,
        B: Tensor,
        *,
        scale: float,
        dropout: float = 0.0,
        quantized: QuantizedLinear,
    ) -> None:
        super().__init__(base_layer, A, B, scale=scale, dropout=dropout, quantized=quantized)
        self.register_buffer("initial_A", A.clone(), persistent=False)
        self.register_buffer("initial_B", B.clone(), persistent=False)

    def original(self, x: Tensor) -> Tensor:
        """Compute the layer with the factors of the start, which is what is left of the layer before.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output.
        """
        return lora_linear(
            self.base_layer(x), x, self.get_buffer("initial_A"), self.get_buffer("initial_B"), scale=self.scale
        )

    def detach(self) -> None:
        """Make a plain layer of what is left of the layer before: the codes and the factors of the start."""
        if isinstance(self.base_layer, QuantizedLinear):
            start = lora_delta(self.get_buffer("initial_A"), self.get_buffer("initial_B"), scale=self.scale)
            weight = self.base_layer.weight
            self.base_layer = self.base_layer.dense((weight + start).to(weight.dtype))
            self.base_layer.get_parameter("weight").requires_grad_(True)


@dataclass(frozen=True)
class QLoRA(LoRA):
    r"""QLoRA: LoRA beside a weight of 4 bits, :math:`\hat W + \frac{\alpha}{r} BA`.

    Linear layers can be adapted. Injecting replaces their weights by codes, which :func:`llm_study.peft.base.unload`
    does not undo: the numbers are gone. Merging makes plain layers again, in the dtype they had.

    A fresh adapter leaves the *quantized* model as it is. Files are those of LoRA: to load one, quantize the base by
    :func:`quantize_base` first, or leave it as it is.

    Args:
        rank: :math:`r`, ``r`` in files of peft.
        alpha: :math:`\alpha`, ``lora_alpha`` in files of peft.
        lora_dropout: probability with which a number of the input is dropped on its way through the adapter.
        quant_type: codebook of the weight, ``nf4`` or ``fp4``.
        block: numbers of a weight that share a factor.
        double_quant: whether the factors are quantized too.

    Raises:
        ValueError: if ``rank`` or ``block`` is below 1, the probability not in [0, 1), or there is no such codebook.

    References:
        Dettmers et al. (2023), arXiv:2305.14314.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(nn.Sequential(nn.Linear(64, 64)), QLoRA(rank=2), ["0"])
        >>> list(trainable(model)), 8 * model[0].base_layer.quantized.nbytes / 64**2
        (['0.lora_A', '0.lora_B'], 4.140625)
    """

    quant_type: str = "nf4"
    block: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("block", self.block, 1)
        if self.quant_type not in CODEBOOKS:
            raise ValueError(f"quant_type is {self.quant_type!r}, expected one of {', '.join(CODEBOOKS)}")

    @property
    def identity(self) -> bool:
        """False, since quantizing changes the outputs of the model."""
        return False

    def takes(self, module: nn.Module) -> bool:
        """Say whether a module can have this adapter.

        Args:
            module: any module.

        Returns:
            Whether it is a linear layer, quantized already or not.
        """
        return type(module) in (nn.Linear, QuantizedLinear)

    def quantized(self, module: nn.Module, name: str) -> QuantizedLinear:
        """Quantize a layer, which stays as it is.

        Args:
            module: the linear layer.
            name: its name, for messages.

        Returns:
            The quantized layer; the layer itself if it is quantized already.

        Raises:
            ValueError: if the weight is not finite.
        """
        if isinstance(module, QuantizedLinear):
            return module
        return _layer(self._quantize(name, module.get_parameter("weight")), module)

    def build(
        self,
        module: nn.Module,
        *,
        name: str,
        shared: Mapping[str, nn.Parameter],
        generator: torch.Generator | None,
    ) -> Adapter:
        """Make the adapter of one layer; the quantized layer takes its place when all adapters are built.

        Args:
            module: the linear layer.
            name: its name, for messages.
            shared: ``(…)`` nothing: layers of LoRA share no tensors.
            generator: source of random numbers. Default: torch's own.

        Returns:
            The adapter.

        Raises:
            ValueError: if the rank is larger than the smaller side of the weight, or the weight is not finite.
        """
        plain = super().build(module, name=name, shared=shared, generator=generator)
        A, B = plain.get_parameter("lora_A").data, plain.get_parameter("lora_B").data
        return QuantizedLoRALinear(
            module, A, B, scale=self.scale, dropout=self.lora_dropout, quantized=self.quantized(module, name)
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read the settings from ``adapter_config.json``.

        Args:
            config: what the file says.

        Returns:
            None: a file of LoRA says nothing of the base, and is read as LoRA.
        """
        return None

    def _quantize(self, name: str, weight: Tensor) -> BlockQuantized | DoubleQuantized:
        try:
            return quantize_weight(weight, quant_type=self.quant_type, block=self.block, double_quant=self.double_quant)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


@dataclass(frozen=True)
class LoftQ(QLoRA):
    r"""LoftQ: QLoRA whose codes and factors are chosen together, so that :math:`\hat W + s\,B_0A_0 \approx W`.

    Each of the ``loftq_iter`` steps quantizes what the factors leave of the weight, and takes new factors from what the
    quantization leaves, as :func:`llm_study.functional.lowrank.loftq_factors` does it. Files keep the trained factors,
    as for PiSSA: loading quantizes the weight of the model anew, in the same way. peft would need bitsandbytes to read
    them.

    Args:
        rank: :math:`r`, ``r`` in files of peft.
        alpha: :math:`\alpha`, ``lora_alpha`` in files of peft; the start is the same for any.
        lora_dropout: probability with which a number of the input is dropped on its way through the adapter.
        quant_type: codebook of the weight, ``nf4`` or ``fp4``.
        block: numbers of a weight that share a factor.
        double_quant: whether the factors are quantized too.
        loftq_iter: how many steps to take.

    Raises:
        ValueError: if ``rank``, ``block`` or ``loftq_iter`` is below 1, or there is no such codebook.

    References:
        Li et al. (2023), arXiv:2310.08659.

    Example:
        >>> LoftQ(rank=4).to_config()["loftq_config"]
        {'loftq_bits': 4, 'loftq_iter': 1, 'quant_type': 'nf4', 'block': 64, 'double_quant': False}
    """

    double_quant: bool = False
    loftq_iter: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("loftq_iter", self.loftq_iter, 1)

    def takes(self, module: nn.Module) -> bool:
        """Say whether a module can have this adapter.

        Args:
            module: any module.

        Returns:
            Whether it is a linear layer that is not quantized yet.
        """
        return type(module) is nn.Linear

    def build(
        self,
        module: nn.Module,
        *,
        name: str,
        shared: Mapping[str, nn.Parameter],
        generator: torch.Generator | None,
    ) -> Adapter:
        """Make the adapter of one layer; the quantized layer takes its place when all adapters are built.

        Args:
            module: the linear layer.
            name: its name, for messages.
            shared: ``(…)`` nothing: layers of LoRA share no tensors.
            generator: not used: the weight decides.

        Returns:
            The adapter.

        Raises:
            ValueError: if the rank is larger than the smaller side of the weight, or the weight is not finite.
        """
        weight = module.get_parameter("weight").detach()
        check_rank(name, self.rank, weight.shape)
        kept: list[BlockQuantized | DoubleQuantized] = []

        def quantize(x: Tensor) -> Tensor:
            kept[:] = [self._quantize(name, x.to(weight.dtype))]
            return dequantize_blockwise(kept[0]).to(x.dtype)

        wide = weight.to(adapter_dtype(weight))
        _, A, B = loftq_factors(wide, self.rank, quantize=quantize, scale=self.scale, steps=self.loftq_iter)
        layer = _layer(kept[0], module)
        return LoftQLinear(
            module, A.contiguous(), B.contiguous(), scale=self.scale, dropout=self.lora_dropout, quantized=layer
        )

    def to_config(self) -> dict[str, Any]:
        """Say what ``adapter_config.json`` is to hold.

        Returns:
            The settings, under the names of peft; what peft does not have stands in ``loftq_config`` too.
        """
        how = {name: getattr(self, name) for name in ("loftq_iter", "quant_type", "block", "double_quant")}
        return {**super().to_config(), "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, **how}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read the settings from ``adapter_config.json``.

        Args:
            config: what the file says.

        Returns:
            The method, or None if the file is of another one.

        Raises:
            ValueError: if the file asks for something that is not supported, such as other bits than 4.
        """
        if config.get("peft_type") != "LORA" or config.get("init_lora_weights") != "loftq":
            return None
        check_plain(config, ("r", "lora_alpha", "lora_dropout", "init_lora_weights", "loftq_config", "megatron_core"))
        how = {"loftq_bits": 4, **(config.get("loftq_config") or {})}
        if (bits := how.pop("loftq_bits")) != 4:
            raise ValueError(f"adapter_config.json asks for loftq_bits = {bits}, expected 4")
        return cls(rank=config["r"], alpha=config["lora_alpha"], lora_dropout=config.get("lora_dropout", 0.0), **how)


def _layer(weight: BlockQuantized | DoubleQuantized, module: nn.Module) -> QuantizedLinear:
    """Return a layer with this weight, and with the bias and the mode of another."""
    bias = module.bias if isinstance(module.bias, nn.Parameter) else None
    return QuantizedLinear(weight, bias).train(module.training)
