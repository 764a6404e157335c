"""What all adapters have in common: put into a model, trained alone, merged, taken out, saved and loaded.

A *method* says how a layer is adapted: a small frozen dataclass such as :class:`llm_study.peft.lora.LoRA`, which
follows the protocol :class:`Method`. :func:`inject` lets it build an :class:`Adapter` around every layer that the
targets name. An adapter holds the layer that it adapts, frozen, and a few tensors of its own.

To write a method, derive from :class:`Method` and from :class:`Adapter`:

- ``Method.build`` makes the adapter of one layer and changes nothing outside it: layers may follow that cannot be
  adapted, and then the model stays as it was. What has to change the frozen weights, as PiSSA does, waits for
  ``Adapter.attach``, which is called when every adapter is built.
- ``Method.share`` makes tensors that all layers use, such as the projections of VeRA. They are parameters, with
  ``requires_grad=False`` where they are not trained, so that they stay one tensor when the model is moved.
- ``Adapter.adapted`` computes the adapted layer; ``Adapter.delta`` says by how much it changes the weights, from which
  merging follows.
- ``Adapter.tensors`` names what is stored, as peft names it, and ``Method.to_config`` and ``Method.from_config`` write
  and read ``adapter_config.json``.
"""

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least
from llm_study.peft.quantized import QuantizedLinear

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "Adapter",
    "Method",
    "adapter_dtype",
    "adapter_state_dict",
    "adapters",
    "check_fresh",
    "check_plain",
    "check_rank",
    "check_untied",
    "disabled",
    "inject",
    "inject_into",
    "load_adapter_state_dict",
    "matched",
    "merge",
    "save_adapter",
    "trainable",
    "unload",
    "unmerge",
    "weight_of",
]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHOWN = 3  # how many of each kind of problem a message lists
_M = TypeVar("_M", bound=nn.Module)


class Adapter(nn.Module):
    """A frozen layer with a few tensors of its own beside it. Methods derive from it.

    A subclass makes its tensors, as parameters, after ``super().__init__(base_layer)``, and says in :meth:`adapted`,
    :meth:`delta` and :meth:`tensors` what they do. Facts of the layer, such as ``in_features``, can be asked of the
    adapter too; its tensors cannot, since code that reads ``weight`` would miss what the adapter adds.

    Args:
        base_layer: the layer that is adapted.

    Attributes:
        base_layer: the layer that is adapted.
        merged: whether the weights of the layer contain the adapter at the moment.
        enabled: False within :func:`disabled`.
        replaces: whether :meth:`attach` puts another layer in the place of ``base_layer``.

    Example:
        >>> class Shift(Adapter):
        ...     def __init__(self, base_layer):
        ...         super().__init__(base_layer)
        ...         self.shift = nn.Parameter(torch.ones_like(base_layer.weight))
        ...     def delta(self):
        ...         return self.shift
        ...     def tensors(self):
        ...         return {"shift": self.shift}
        >>> layer = nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> (Shift(layer)(x) - layer(x)).detach()
        tensor([[3.]])
    """

    base_layer: nn.Module
    replaces: ClassVar[bool] = False

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged, self.enabled = False, True
        self._original: Tensor | tuple[nn.Module] | None = None  # the tuple keeps a module out of the parameters
        self._injection: _Injection | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = None if name == "base_layer" else getattr(self.base_layer, name, None)
            if isinstance(found, int | float | str | tuple):
                return found
            raise

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer: adapted, or as it was where the adapter is disabled.

        Args:
            x: ``(…)`` what the layer takes.

        Returns:
            ``(…)`` what the layer gives.
        """
        if self.merged:
            y: Tensor = self.base_layer(x)
            return y
        return self.adapted(x) if self.enabled else self.original(x)

    def adapted(self, x: Tensor) -> Tensor:
        """Compute the adapted layer; here, for linear layers, by the weight difference. Methods have a shorter way.

        Args:
            x: ``(…)`` what the layer takes.

        Returns:
            ``(…)`` what the layer gives.
        """
        y: Tensor = self.base_layer(x) + nn.functional.linear(x, self.delta().to(x.dtype))
        return y

    def original(self, x: Tensor) -> Tensor:
        """Compute the layer as it was before it was adapted; to be replaced where :meth:`attach` changes its weights.

        Args:
            x: ``(…)`` what the layer takes.

        Returns:
            ``(…)`` what the layer gives.
        """
        y: Tensor = self.base_layer(x)
        return y

    def delta(self) -> Tensor:
        """Return the difference between the adapted weight and that of ``base_layer``, which is not merged.

        Returns:
            ``(…)``, of the shape of the weight. A method that cannot be merged need not have it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no weight difference")

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored of this layer; tensors that layers share are stored by the method.

        Returns:
            ``(…)`` tensors by the names that peft gives them behind the name of the layer, such as ``lora_A.weight``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it stores")

    def merged_weight(self) -> Tensor:
        """Return the weight of a layer that does what the adapted layer does; here the weight plus :meth:`delta`.

        Returns:
            ``(…)``, of the shape and dtype of the weight, added in the wider of the two dtypes and rounded once.
        """
        weight, delta = weight_of(self.base_layer), self.delta()
        return (weight + delta).to(weight.dtype)

    def _put(self, weight: Tensor) -> None:
        """Give ``base_layer`` the merged weight; a quantized layer makes room for a plain one."""
        if isinstance(self.base_layer, QuantizedLinear):
            self._original, self.base_layer = (self.base_layer,), self.base_layer.dense(weight)
        else:
            parameter = self.base_layer.get_parameter("weight")
            self._original, parameter.data = parameter.data, weight
        self.merged = True

    def _take_back(self) -> None:
        """Undo :meth:`_put`; the layer may have been moved meanwhile."""
        weight, original = self.base_layer.get_parameter("weight"), self._original
        if isinstance(original, tuple):
            self.base_layer = original[0].to(weight)
        elif original is not None:
            weight.data = original.to(weight)
        self._original, self.merged = None, False

    def attach(self) -> None:
        """Change the weights of ``base_layer`` where the method needs it; called once all adapters are built."""

    def detach(self) -> None:
        """Undo :meth:`attach`; called when the adapter is taken out unmerged."""


class Method(Protocol):
    """How layers are adapted: a frozen dataclass with the settings of a method derives from it.

    Attributes:
        peft_type: name of the method in ``adapter_config.json``, such as ``LORA``.
        mergeable: whether the adapted layer is a layer with other weights.
    """

    peft_type: ClassVar[str]
    mergeable: ClassVar[bool] = True

    @property
    def identity(self) -> bool:
        """Whether a fresh adapter leaves the outputs of the model as they are."""
        return True

    def takes(self, module: nn.Module) -> bool:
        """Say whether the method adapts modules of this kind; here linear layers, no subclass of them.

        Args:
            module: any module.

        Returns:
            Whether it can have an adapter. That its sizes do not fit is for :meth:`build` to say.
        """
        return type(module) is nn.Linear

    def share(self, modules: Mapping[str, nn.Module], *, generator: torch.Generator | None) -> dict[str, nn.Parameter]:
        """Make the tensors that all layers use; here none.

        Args:
            modules: the modules that will be adapted, by name.
            generator: source of random numbers, on the device of the model. Default: torch's own.

        Returns:
            ``(…)`` parameters by the names that peft gives them, such as ``vera_A``.
        """
        return {}

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
            module: the layer.
            name: its name in the model.
            shared: ``(…)`` what :meth:`share` made.
            generator: source of random numbers, on the device of the model. Default: torch's own.

        Returns:
            The adapter; its tensors are on the device of the layer, in the dtype that :func:`adapter_dtype` says.

        Raises:
            ValueError: if the settings do not fit the sizes of the layer.
        """
        ...

    def to_config(self) -> dict[str, Any]:
        """Say what ``adapter_config.json`` is to hold, but for ``peft_type`` and the targets.

        Returns:
            The settings, under the names of peft.
        """
        ...

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
        ...


class _Injection:
    """What the adapters of a model have in common: the method, what it shares, the targets, and what was frozen."""

    def __init__(self, method: Method, targets: list[str], shared: dict[str, nn.Parameter]) -> None:
        self.method, self.targets, self.shared = method, targets, shared
        self.frozen: list[nn.Parameter] = []


# --- into a model and out of it


def inject(model: _M, method: Method, targets: Sequence[str], *, generator: torch.Generator | None = None) -> _M:
    """Put an adapter around every layer that the targets name, and freeze everything else.

    Nothing is changed unless everything fits.

    Args:
        model: any module; it is changed in place.
        method: how its layers are adapted.
        targets: which ones: full names of modules; their last parts, such as ``q_proj`` or ``self_attn.q_proj``; or
            patterns with ``*`` for the full name, such as ``*.layers.0.*``, which pass over modules of other kinds.
        generator: source of random numbers, on the device of the model. Default: torch's own.

    Returns:
        The model itself.

    Raises:
        ValueError: if the model has adapters already, a target matches no module, or a module that the method does not
            adapt, one module has two names, a weight that would be replaced is used elsewhere too, or the settings of
            the method do not fit a layer.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> _ = inject(model, LoRA(rank=2), targets=["0", "2"])
        >>> [name for name in trainable(model)]
        ['0.lora_A', '0.lora_B', '2.lora_A', '2.lora_B']
        >>> inject(nn.Sequential(nn.Linear(8, 16)), LoRA(rank=2), targets=["q_proj"])
        Traceback (most recent call last):
        ValueError: target 'q_proj' matches no module that can be adapted: LoRA adapts 0
    """
    check_fresh(model)
    return inject_into(model, method, matched(model, method, targets), targets=targets, generator=generator)


def inject_into(
    model: _M,
    method: Method,
    names: Sequence[str],
    *,
    targets: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> _M:
    """Put adapters around the layers with exactly these names; :func:`inject` finds the names first.

    Args:
        model: any module; it is changed in place.
        method: how its layers are adapted.
        names: full names of modules.
        targets: what to say of the targets in ``adapter_config.json``. Default: the names.
        generator: source of random numbers, on the device of the model. Default: torch's own.

    Returns:
        The model itself.

    Raises:
        ValueError: if the model has adapters already, there are no names, one module has two names, a weight that
            would be replaced is used elsewhere too, or the settings of the method do not fit a layer.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject_into(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), ["0"])
        >>> model[0].lora_A.shape, model[0].lora_B.shape
        (torch.Size([2, 8]), torch.Size([4, 2]))
    """
    check_at_least("number of layers to adapt", len(names), 1)
    check_fresh(model)
    _check_unique(model, names)
    modules = {name: model.get_submodule(name) for name in names}
    shared = method.share(modules, generator=generator)
    built = {
        name: method.build(module, name=name, shared=shared, generator=generator) for name, module in modules.items()
    }
    gone = {name: modules[name] for name, adapter in built.items() if adapter.replaces}
    check_untied(model, gone, what="replacing one would part them")
    said = names if targets is None or any("*" in target for target in targets) else targets
    injection = _Injection(method, list(said), shared)
    injection.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in injection.frozen:
        parameter.requires_grad_(False)
    for name, adapter in built.items():
        adapter.train(modules[name].training)
        adapter._injection = injection
        model.set_submodule(name, adapter)
        adapter.attach()
    there = {id(parameter) for parameter in model.parameters()}
    injection.frozen = [
        parameter for parameter in injection.frozen if id(parameter) in there
    ]  # quantized ones are gone
    return model


def unload(model: _M) -> _M:
    """Take all adapters out: the layers stay as they are, merged or not, and train again if they did before.

    Args:
        model: a model with adapters; it is changed in place.

    Returns:
        The model itself, without adapters.

    Raises:
        ValueError: if the model has no adapters.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> unload(merge(model))
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
        )
    """
    found = adapters(model)
    for name, adapter in found.items():
        if not adapter.merged:
            adapter.detach()
        elif isinstance(adapter._original, tuple):
            adapter.base_layer.get_parameter("weight").requires_grad_(True)
        model.set_submodule(name, adapter.base_layer)
    for parameter in _injection(found).frozen:
        parameter.requires_grad_(True)
    return model


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Find the adapters of a model.

    Args:
        model: any module.

    Returns:
        The adapters by the names of the layers that they adapt.

    Raises:
        ValueError: if there are none.

    Example:
        >>> adapters(nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: the model has 0 adapters, expected at least 1: call inject or load_adapter first
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}
    if not found:
        raise ValueError("the model has 0 adapters, expected at least 1: call inject or load_adapter first")
    return found


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Find what an optimizer is to train: after :func:`inject`, tensors of the adapters and nothing else.

    Args:
        model: a model with adapters.

    Returns:
        ``(…)`` the parameters that require gradients, by name; ``AdamW(trainable(model).values())`` trains them.

    Raises:
        ValueError: if the model has no adapters.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> sum(x.numel() for x in trainable(model).values()), sum(x.numel() for x in model.parameters())
        (24, 60)
    """
    adapters(model)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- merging


def merge(model: _M) -> _M:
    """Write the adapters into the weights of their layers, so that they cost nothing more when the model runs.

    The layers keep a copy of the weights as they were, for :func:`unmerge`; :func:`unload` lets it go. A quantized
    layer makes room for a plain one with the merged weight: rounded to codes again, it would lose most of the adapter.

    Args:
        model: a model with adapters; it is changed in place.

    Returns:
        The model itself.

    Raises:
        ValueError: if the model has no adapters, they are merged already, the method cannot be merged, or another
            module uses the same weight, as tied embeddings do. Then nothing has changed.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> _ = merge(model)
        >>> merge(model)
        Traceback (most recent call last):
        ValueError: the adapters are merged already: a second time would add them twice
    """
    found = adapters(model)
    method = _injection(found).method
    if any(adapter.merged for adapter in found.values()):
        raise ValueError("the adapters are merged already: a second time would add them twice")
    if not method.mergeable:
        raise ValueError(f"{type(method).__name__} cannot be merged: its layers are no plain layers with other weights")
    check_untied(model, {name: x.base_layer for name, x in found.items()}, what="merging would change both")
    with torch.no_grad():
        new = {name: adapter.merged_weight() for name, adapter in found.items()}
    for name, adapter in found.items():
        adapter._put(new[name])
    return model


def unmerge(model: _M) -> _M:
    """Give the layers the weights back that they had before :func:`merge`, bit for bit.

    Args:
        model: a model whose adapters are merged; it is changed in place.

    Returns:
        The model itself.

    Raises:
        ValueError: if the model has no adapters, or they are not merged.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> before = model[0].base_layer.weight.clone()
        >>> torch.equal(unmerge(merge(model))[0].base_layer.weight, before)
        True
    """
    found = adapters(model)
    if not all(adapter.merged for adapter in found.values()):
        raise ValueError("the adapters are not merged, so there is nothing to undo")
    for adapter in found.values():
        adapter._take_back()
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it did before it had adapters, for instance as the reference of a preference loss.

    Merged adapters are taken out for the time being. Contexts within each other are fine.

    Args:
        model: a model with adapters.

    Yields:
        Nothing.

    Raises:
        ValueError: if the model has no adapters.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> _ = nn.init.normal_(model[0].lora_B)
        >>> x = torch.ones(1, 8)
        >>> with disabled(model):
        ...     torch.equal(model(x), model[0].base_layer(x))
        True
    """
    found = adapters(model)
    merged, before = all(x.merged for x in found.values()), [x.enabled for x in found.values()]
    if merged:
        unmerge(model)
    for adapter in found.values():
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter, enabled in zip(found.values(), before, strict=True):
            adapter.enabled = enabled
        if merged:
            merge(model)


# --- tensors and files


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Collect the tensors of the adapters, without those of the model.

    Args:
        model: a model with adapters.

    Returns:
        ``(…)`` tensors by the names that peft gives them, such as ``base_model.model.0.lora_A.weight``; they share
        their memory with the model.

    Raises:
        ValueError: if the model has no adapters.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> {name: tuple(x.shape) for name, x in adapter_state_dict(model).items()}
        {'base_model.model.0.lora_A.weight': (2, 8), 'base_model.model.0.lora_B.weight': (4, 2)}
    """
    found = adapters(model)
    own = {
        f"base_model.model.{name}.{part}": x for name, adapter in found.items() for part, x in adapter.tensors().items()
    }
    shared = {f"base_model.{name}": x for name, x in _injection(found).shared.items()}
    return {name: x.detach() for name, x in {**own, **shared}.items()}


def load_adapter_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], *, source: object = "the given tensors"
) -> None:
    """Copy stored tensors into the adapters of a model; not one too few, too many or too wide.

    A file of peft may hold the weight of an adapted embedding too. Such a weight must be that of the model.

    Args:
        model: a model with adapters, which are not merged.
        tensors: ``(…)`` tensors by the names that :func:`adapter_state_dict` gives them.
        source: where they are from, for messages.

    Raises:
        ValueError: if there are no adapters, they are merged, or a tensor does not fit; then nothing has changed.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> load_adapter_state_dict(model, {"base_model.model.0.lora_A.weight": torch.zeros(2, 8)})
        Traceback (most recent call last):
        ValueError: the given tensors: lacks base_model.model.0.lora_B.weight of shape (4, 2)
    """
    if any(adapter.merged for adapter in adapters(model).values()):
        raise ValueError("the adapters are merged, so loading would not change the weights: call unmerge first")
    wanted = adapter_state_dict(model)
    weights = {f"base_model.model.{name}": x for name, x in model.named_parameters() if ".base_layer." in name}
    carried = {name: x for name, x in tensors.items() if name in weights}
    found = {name: x for name, x in tensors.items() if name not in weights}
    shape, right = ({name: tuple(x.shape) for name, x in some.items()} for some in (found, wanted))
    wrong = [name for name in wanted if name in found and shape[name] != right[name]]
    apart = [name for name, x in carried.items() if not _same(x, weights[name])]
    problems = [
        _listed("lacks ", [f"{name} of shape {right[name]}" for name in wanted if name not in found]),
        _listed("has, beyond what the adapters have, ", [name for name in found if name not in wanted]),
        _listed("", [f"{name} has shape {shape[name]}, expected {right[name]}" for name in wrong]),
        _listed("", [f"{name} is not the weight of this model" for name in apart]),
    ]
    if any(problems):
        raise ValueError(f"{source}: {'; '.join(filter(None, problems))}")
    for name, x in wanted.items():
        x.copy_(found[name])


def save_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as peft does, without the model itself.

    Each file is first written under another name and then moved into its place.

    Args:
        model: a model with adapters, merged or not.
        folder: path of the folder, which is made if need be.

    Raises:
        ValueError: if the model has no adapters.

    Example:
        >>> import tempfile
        >>> from llm_study.peft.lora import LoRA
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(model, folder)
        ...     sorted(os.listdir(folder))
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    from safetensors.torch import save_file

    injection, folder = _injection(adapters(model)), Path(folder)
    about = {"peft_type": injection.method.peft_type, "target_modules": injection.targets, "inference_mode": True}
    tensors = {name: x.cpu().contiguous().clone() for name, x in adapter_state_dict(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = (folder / f".{name}.{os.getpid()}.tmp" for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG))
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(json.dumps({**injection.method.to_config(), **about}, indent=2) + "\n", "utf-8")
        os.replace(weights, folder / ADAPTER_WEIGHTS)
        os.replace(config, folder / ADAPTER_CONFIG)
    finally:
        for file in (weights, config):
            file.unlink(missing_ok=True)


# --- for those who write methods


def adapter_dtype(weight: Tensor) -> torch.dtype:
    """Say in which dtype an adapter is kept: that of the weight, but float32 for a weight in half precision.

    An update of relative size 1e-3 is lost when it is rounded to bfloat16, so what is trained is kept wider.

    Args:
        weight: ``(…)`` weight of the layer.

    Returns:
        The dtype.

    Example:
        >>> adapter_dtype(torch.zeros(1, dtype=torch.bfloat16)), adapter_dtype(torch.zeros(1, dtype=torch.float64))
        (torch.float32, torch.float64)
    """
    return torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype


def check_untied(model: nn.Module, layers: Mapping[str, nn.Module], *, what: str) -> None:
    """Check that no other module uses the weights of some layers.

    Args:
        model: the model that the layers are in.
        layers: the layers by name; quantized ones have a weight of their own.
        what: what would happen to both, for the message.

    Raises:
        ValueError: if a weight is used at two places, as that of tied embeddings is.

    Example:
        >>> model = nn.ModuleList([nn.Embedding(4, 8), nn.Linear(8, 4, bias=False)])
        >>> model[1].weight = model[0].weight
        >>> check_untied(model, {"1": model[1]}, what="merging would change both")
        Traceback (most recent call last):
        ValueError: 0.weight and 1.weight are one tensor: merging would change both; give each its own copy first
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    for layer in layers.values():
        where = [] if isinstance(layer, QuantizedLinear) else places[id(layer.get_parameter("weight"))]
        if len(where) > 1:
            raise ValueError(f"{' and '.join(where)} are one tensor: {what}; give each its own copy first")


def matched(model: nn.Module, method: Method, targets: Sequence[str]) -> list[str]:
    """Find the modules that the targets mean.

    Args:
        model: any module.
        method: says which modules it adapts.
        targets: names, last parts of names, or patterns, as for :func:`inject`.

    Returns:
        Full names of modules, in the order of the model.

    Raises:
        ValueError: if a target matches no module, or a module that the method does not adapt.

    Example:
        >>> from llm_study.peft.lora import LoRA
        >>> matched(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8)), LoRA(), ["*"])
        ['0', '2']
    """
    if isinstance(targets, str):
        raise ValueError(f"targets is the string {targets!r}, expected a list: write [{targets!r}]")
    check_at_least("number of targets", len(targets), 1)
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: set[str] = set()
    for target in targets:
        wild = "*" in target
        hits = [name for name in modules if (fnmatch.fnmatchcase(name, target) if wild else _ends(name, target))]
        fit = [name for name in hits if method.takes(modules[name])]
        if not hits or (wild and not fit):
            raise ValueError(f"target {target!r} matches no module that can be adapted: {_nearby(modules, method)}")
        if not wild and len(fit) < len(hits):
            name = next(name for name in hits if name not in fit)
            wrong = f"{name}, a {type(modules[name]).__name__}"
            raise ValueError(f"target {target!r} matches {wrong}, which {type(method).__name__} does not adapt")
        chosen.update(fit)
    return [name for name in modules if name in chosen]


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a layer, made from its codes where the layer is quantized.

    Args:
        layer: a layer with a weight.

    Returns:
        ``(…)`` the parameter, or a tensor that is made anew.

    Example:
        >>> layer = QuantizedLinear.of(nn.Linear(8, 4))
        >>> weight_of(layer).shape
        torch.Size([4, 8])
    """
    return layer.weight if isinstance(layer, QuantizedLinear) else layer.get_parameter("weight")


def check_fresh(model: nn.Module) -> None:
    """Check that a model has no adapters yet.

    Args:
        model: any module.

    Raises:
        ValueError: if it has.

    Example:
        >>> check_fresh(nn.Linear(2, 2))
    """
    if found := next((name for name, x in model.named_modules() if isinstance(x, Adapter)), None):
        raise ValueError(f"the model has an adapter already, {found}: merge it, and take it out with unload")


def check_rank(name: str, rank: int, shape: Sequence[int]) -> None:
    """Check that a rank is at least 1 and no larger than the smaller side of a matrix.

    Args:
        name: name of the layer, for the message.
        rank: the rank.
        shape: rows and columns of its weight.

    Raises:
        ValueError: if the rank is too small or too large.

    Example:
        >>> check_rank("0", 9, (4, 8))
        Traceback (most recent call last):
        ValueError: 0: rank is 9, expected at most 4, the smaller side of a weight of shape (4, 8)
    """
    check_at_least("rank", rank, 1)
    if rank > min(shape):
        text = f"{name}: rank is {rank}, expected at most {min(shape)}"
        raise ValueError(f"{text}, the smaller side of a weight of shape {tuple(shape)}")


def check_plain(config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check that ``adapter_config.json`` asks for nothing beyond the fields that a method knows.

    Args:
        config: what the file says.
        known: fields that the method reads, or may leave out of account.

    Raises:
        ValueError: if another field is switched on: is anything but null, false, 0, empty or ``"none"``.

    Example:
        >>> check_plain({"r": 4, "bias": "none", "rank_pattern": {}}, ["r"])
        >>> check_plain({"r": 4, "bias": "all"}, ["r"])
        Traceback (most recent call last):
        ValueError: adapter_config.json asks for bias = 'all', which is not supported here
    """
    for field, value in config.items():
        if value and value != "none" and field not in known and field not in _ABOUT:
            raise ValueError(f"{ADAPTER_CONFIG} asks for {field} = {value!r}, which is not supported here")


_ABOUT = (
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    ),
    *("exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"),
)  # where the adapter is from and where it goes: its tensors say that too, by their names


def _injection(found: Mapping[str, Adapter]) -> _Injection:
    injection = next(iter(found.values()))._injection
    if injection is None:
        raise ValueError(f"the adapter {next(iter(found))} was not put there by inject")
    return injection


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _nearby(modules: Mapping[str, nn.Module], method: Method) -> str:
    """Say which last names the modules have that the method adapts."""
    names = dict.fromkeys(name.rpartition(".")[2] for name, module in modules.items() if method.takes(module))
    return (
        f"{type(method).__name__} adapts {', '.join(names)}" if names else f"{type(method).__name__} adapts none here"
    )


def _check_unique(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse to adapt a module that stands at two places of a model: only one of them would be replaced."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    for name in names:
        where = places[id(model.get_submodule(name))]
        if len(where) > 1:
            raise ValueError(f"{' and '.join(where)} are one module: adapting it at one place would change the other")


def _same(stored: Tensor, weight: Tensor) -> bool:
    return stored.shape == weight.shape and torch.equal(stored.to(weight), weight)


def _listed(what: str, items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what}{', '.join(items[:SHOWN])}{more}" if items else ""
