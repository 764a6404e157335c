r"""AdaLoRA: the difference in the form of a singular value decomposition, and one budget of ranks for all layers.

Every layer starts with ``init_r`` triplets of a left vector, a value and a right vector. :class:`RankAllocator` follows
how important each of them is, and switches off the least important ones until ``target_r`` are left on average.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least
from llm_study.functional import lowrank
from llm_study.peft.base import adapters, check_rank
from llm_study.peft.linear import LinearAdapter, LinearMethod

__all__ = ["AdaLoRA", "RankAllocator", "orthogonality"]


@dataclass(frozen=True)
class AdaLoRA(LinearMethod):
    r"""AdaLoRA: :math:`s\,P \Lambda Q`, whose triplets are switched off one after the other while training.

    Args:
        init_r: triplets of each layer at the start.
        target_r: triplets of a layer at the end, on average.
        alpha: the scale is ``alpha / (init_r + 1e-5)``, as in peft; the paper has no scale.
        tinit: steps at the start with all triplets.
        tfinal: steps at the end with the final ones.
        delta_t: ``deltaT`` of peft, how many steps lie between two choices.
        beta1: how slowly the sensitivity follows.
        beta2: how slowly the uncertainty follows.
        total_step: steps of the whole training. Default: it never allocates.

    Raises:
        ValueError: if a rank is below 1 or the final one above that at the start.

    References:
        Zhang et al. (2023), arXiv:2303.10512.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 6)), AdaLoRA(init_r=3, target_r=2), ["0"])
        >>> {name: tuple(x.shape) for name, x in model[0].tensors().items()}
        {'lora_A': (3, 8), 'lora_E': (3, 1), 'lora_B': (6, 3)}
    """

    peft_type: ClassVar[str] = "ADALORA"
    settings: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("init_r", "target_r", "tinit", "tfinal", "beta1", "beta2", "total_step")},
        "alpha": "lora_alpha",
        "delta_t": "deltaT",
    }
    ignored: ClassVar[tuple[str, ...]] = (
        "r", "init_lora_weights", "orth_reg_weight", "megatron_core", "qalora_group_size",
    )  # fmt: skip
    init_r: int = 12
    target_r: int = 8
    alpha: float = 8.0
    tinit: int = 0
    tfinal: int = 0
    delta_t: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    total_step: int | None = None

    def __post_init__(self) -> None:
        check_at_least("target_r", self.target_r, 1)
        check_at_least("init_r", self.init_r, self.target_r, hint="the rank only falls")
        check_at_least("delta_t", self.delta_t, 1)

    @property
    def scale(self) -> float:
        """Factor on the difference; it does not change when triplets are switched off."""
        return self.alpha / (self.init_r + 1e-5)

    def to_config(self) -> dict[str, Any]:
        """Say what ``adapter_config.json`` is to hold.

        Returns:
            The settings, under the names of peft, which wants to know the number of steps, 1 if it is not known.
        """
        return {**super().to_config(), "total_step": self.total_step or self.tinit + self.tfinal + 1}

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.init_r, weight.shape)
        (rows, columns), R = weight.shape, self.init_r
        return {
            "lora_A": empty.new_empty(R, columns).normal_(0, 0.02, generator=generator),
            "lora_E": empty.new_zeros(R, 1),
            "lora_B": empty.new_empty(rows, R).normal_(0, 0.02, generator=generator),
        }

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return lowrank.svd_delta(values["lora_A"], values["lora_E"], values["lora_B"], scale=self.scale)

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        return self.scale * F.linear(F.linear(x, values["lora_A"]) * values["lora_E"][:, 0], values["lora_B"])


class RankAllocator:
    """Follow the importance of all triplets of a model, and switch off those beyond the budget.

    Call :meth:`step` after each step of the optimizer, before the gradients are set to zero.

    Args:
        model: a model with adapters of :class:`AdaLoRA`.

    Raises:
        ValueError: if the model has no such adapters, or the method does not say how long the training is.

    Example:
        >>> from llm_study.peft.base import inject
        >>> _ = torch.manual_seed(0)
        >>> method = AdaLoRA(init_r=3, target_r=1, total_step=2)
        >>> model = inject(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8)), method, ["0", "1"])
        >>> _ = [nn.init.normal_(model[i].lora_E) for i in (0, 1)]
        >>> allocator = RankAllocator(model)
        >>> for step in (1, 2):
        ...     model(torch.randn(4, 8)).square().sum().backward()
        ...     print(allocator.step(step), allocator.ranks())
        2 {'0': 2, '1': 0}
        2 {'0': 2, '1': 0}
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers, self.method = _adalora(model)
        if self.method.total_step is None:
            raise ValueError("total_step of AdaLoRA is None: say how many steps the training has")
        self.mean = {key: torch.zeros_like(p) for key, p in self._parameters()}
        self.spread = {key: torch.zeros_like(p) for key, p in self._parameters()}
        self.keep = {name: torch.ones_like(layer.lora_E[:, 0], dtype=torch.bool) for name, layer in self.layers.items()}

    def step(self, step: int) -> int:
        """Take the gradients into account, and switch triplets off where it is time to.

        Args:
            step: number of the step, from 1 or from 0.

        Returns:
            The budget, which says how many triplets may be on.
        """
        method, total = self.method, self.method.total_step or 0
        n, last = len(self.layers), total - method.tfinal
        budget = lowrank.rank_budget(
            step, total=total, initial=method.init_r * n, final=method.target_r * n, warmup=method.tinit,
            cooldown=method.tfinal,
        )  # fmt: skip
        scores = self._scores() if step < last else None
        if step == last or (method.tinit < step < last and step % method.delta_t == 0):
            self._choose(
                scores or self._triplets({key: self.mean[key] * self.spread[key] for key in self.mean}), budget
            )
            self._switch_off()
        elif step > last:
            self._switch_off()
        return budget

    def ranks(self) -> dict[str, int]:
        """Say how many triplets are left.

        Returns:
            The number for each layer, by its name.
        """
        return {name: int(keep.sum()) for name, keep in self.keep.items()}

    def _parameters(self) -> list[tuple[tuple[str, str], Tensor]]:
        names = ("lora_A", "lora_E", "lora_B")
        return [((name, part), layer.get_parameter(part)) for name, layer in self.layers.items() for part in names]

    def _scores(self) -> dict[str, Tensor]:
        """Update the averages with the gradients, and return the importance of the triplets of each layer."""
        betas = {"beta1": self.method.beta1, "beta2": self.method.beta2}
        importance = {}
        for key, p in self._parameters():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            found = lowrank.smoothed_importance(p.detach(), gradient, self.mean[key], self.spread[key], **betas)
            importance[key] = found[0]
            for held, new in ((self.mean, found[1]), (self.spread, found[2])):
                held[key].copy_(new)  # in place, so that who stores these tensors has them as they are now
        return self._triplets(importance)

    def _triplets(self, importance: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        parts = ("lora_A", "lora_E", "lora_B")
        return {name: lowrank.triplet_importance(*(importance[name, part] for part in parts)) for name in self.layers}

    def _choose(self, scores: Mapping[str, Tensor], budget: int) -> None:
        masks = lowrank.keep_most_important(list(scores.values()), budget)
        for name, mask in zip(scores, masks, strict=True):
            self.keep[name].copy_(mask)

    @torch.no_grad()
    def _switch_off(self) -> None:
        for name, layer in self.layers.items():
            layer.lora_E.mul_(self.keep[name][:, None])


def orthogonality(model: nn.Module) -> Tensor:
    """Add up how far the factors of all layers are from orthonormal; to be added to the loss, with a small weight.

    Args:
        model: a model with adapters of :class:`AdaLoRA`.

    Returns:
        ``()`` the sum of :func:`llm_study.functional.lowrank.orthogonality_penalty` over the layers.

    Raises:
        ValueError: if the model has no such adapters.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 6)), AdaLoRA(init_r=3, target_r=2), ["0"])
        >>> round(orthogonality(model).item())  # small factors: 3 for either identity
        6
    """
    layers, _ = _adalora(model)
    penalties = [lowrank.orthogonality_penalty(layer.lora_A, layer.lora_B) for layer in layers.values()]
    return torch.stack(penalties).sum()


def _adalora(model: nn.Module) -> tuple[dict[str, LinearAdapter], AdaLoRA]:
    layers: dict[str, LinearAdapter] = {}
    method: AdaLoRA | None = None
    for name, layer in adapters(model).items():
        if isinstance(layer, LinearAdapter) and isinstance(layer.method, AdaLoRA):
            layers[name], method = layer, layer.method
    if method is None:
        raise ValueError("the model has 0 adapters of AdaLoRA, expected at least 1: call inject with AdaLoRA(…) first")
    return layers, method
