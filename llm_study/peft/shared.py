r"""Methods whose layers share tensors: VeRA and RandLoRA frozen random matrices, VB-LoRA a trained bank of vectors.

What all layers share is made once, as large as the largest layer needs it; smaller layers use the upper left part.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_divides
from llm_study.functional import lowrank
from llm_study.peft.base import adapter_dtype, check_rank
from llm_study.peft.linear import LinearMethod

__all__ = ["RandLoRA", "VBLoRA", "VeRA"]


@dataclass(frozen=True)
class VeRA(LinearMethod):
    r"""VeRA: frozen random matrices for all layers, two trained vectors for each, :math:`\Lambda_b B \Lambda_d A`.

    Args:
        rank: rank of the random matrices; it costs one trained number for each layer, so it can be large.
        d_initial: value of :math:`\Lambda_d` at the start; :math:`\Lambda_b` is 0.
        projection_prng_key: seed of the random matrices.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Kopiczko et al. (2024), arXiv:2310.11454.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 6))
        >>> model = inject(model, VeRA(rank=2), ["0", "1"])
        >>> sum(p.numel() for p in trainable(model).values()), model[0].vera_A is model[1].vera_A
        (14, True)
    """

    peft_type: ClassVar[str] = "VERA"
    settings: ClassVar[Mapping[str, str]] = {
        "rank": "r", "d_initial": "d_initial", "projection_prng_key": "projection_prng_key",
    }  # fmt: skip
    fixed: ClassVar[Mapping[str, Any]] = {"save_projection": True}
    ignored: ClassVar[tuple[str, ...]] = ("init_weights",)
    rank: int = 256
    d_initial: float = 0.1
    projection_prng_key: int = 0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def share(self, modules: Mapping[str, nn.Module], *, generator: torch.Generator | None) -> dict[str, nn.Parameter]:
        """Draw the two random matrices, from the seed of the method.

        Args:
            modules: the layers, by name.
            generator: not used: the seed decides, so that they need not be stored.

        Returns:
            ``(R, I)`` and ``(O, R)`` frozen matrices, for the largest ``I`` and the largest ``O``.
        """
        outer, inner = _largest(modules)
        source = torch.Generator().manual_seed(self.projection_prng_key)
        a, b = (
            torch.empty(rows, columns).uniform_(-math.sqrt(6 / columns), math.sqrt(6 / columns), generator=source)
            for rows, columns in ((self.rank, inner), (outer, self.rank))
        )
        return _frozen(modules, vera_A=a, vera_B=b)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        start = empty.new_full((self.rank,), self.d_initial)
        return {"vera_lambda_b": empty.new_zeros(weight.shape[0]), "vera_lambda_d": start}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        a, b = values["vera_A"][:, : shape[1]], values["vera_B"][: shape[0]]
        return lowrank.vera_delta(a, b, values["vera_lambda_d"], values["vera_lambda_b"])

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        a, b = values["vera_A"][:, : x.shape[-1]], values["vera_B"][:width]
        return values["vera_lambda_b"] * F.linear(values["vera_lambda_d"] * F.linear(x, a), b)


@dataclass(frozen=True)
class RandLoRA(LinearMethod):
    r"""RandLoRA: as many frozen random low-rank matrices as full rank needs, weighted by trained scales.

    Args:
        rank: rank of each random matrix; a larger rank means fewer of them and *fewer* trained numbers.
        alpha: the scale is ``alpha / rank``.
        projection_prng_key: seed of the random matrices.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Albert et al. (2025), arXiv:2502.00987.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(8, 12)), RandLoRA(rank=4), ["0"])
        >>> {name: tuple(p.shape) for name, p in trainable(model).items()}
        {'0.randlora_lambda': (4, 2), '0.randlora_gamma': (2, 8)}
    """

    peft_type: ClassVar[str] = "RANDLORA"
    settings: ClassVar[Mapping[str, str]] = {
        "rank": "r", "alpha": "randlora_alpha", "projection_prng_key": "projection_prng_key",
    }  # fmt: skip
    fixed: ClassVar[Mapping[str, Any]] = {"save_projection": True}
    ignored: ClassVar[tuple[str, ...]] = ("init_weights", "sparse", "very_sparse")  # the matrices are stored
    repeated: ClassVar[tuple[str, ...]] = ("randlora_A", "randlora_B")
    rank: int = 32
    alpha: float = 640.0
    projection_prng_key: int = 0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def share(self, modules: Mapping[str, nn.Module], *, generator: torch.Generator | None) -> dict[str, nn.Parameter]:
        """Draw the random matrices, from the seed of the method, each of standard deviation 1.

        Args:
            modules: the layers, by name.
            generator: not used: the seed decides.

        Returns:
            ``(R, 1, M)`` and ``(L, N, R)`` frozen tensors, for the largest of the smaller and of the larger sides.
        """
        small, large = sorted(_largest(modules))
        source = torch.Generator().manual_seed(self.projection_prng_key)
        a = torch.empty(self.rank, 1, small).uniform_(-1, 1, generator=source)
        b = torch.empty(large, self._bases(small), self.rank).uniform_(-1, 1, generator=source)
        return _frozen(modules, randlora_A=a / a.std(), randlora_B=b / b.std())

    def _bases(self, small: int) -> int:
        return -(-small // self.rank)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        small = min(weight.shape)
        N = self._bases(small)
        gamma = empty.new_full((N, small), 1 / max(N, small))
        return {"randlora_lambda": empty.new_zeros(self.rank, N), "randlora_gamma": gamma}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        a, b = self._factors(values, *shape)
        return self.alpha / self.rank * (b @ a)

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        a, b = self._factors(values, width, x.shape[-1])
        return self.alpha / self.rank * F.linear(F.linear(x, a), b)

    def _factors(self, values: Mapping[str, Tensor], outer: int, inner: int) -> tuple[Tensor, Tensor]:
        """Return the factors that read the input and write the output; the trained scales are on the smaller one."""
        small, large = sorted((outer, inner))
        a, b = values["randlora_A"][..., :small], values["randlora_B"][:large, : self._bases(small)]
        a, b = lowrank.randlora_factors(a, b, values["randlora_lambda"], values["randlora_gamma"])
        return (a, b) if inner == small else (b.mT, a.mT)


@dataclass(frozen=True)
class VBLoRA(LinearMethod):
    r"""VB-LoRA: the factors of LoRA, pieced together from mixtures of the vectors of one bank for all layers.

    Args:
        rank: rank of the factors.
        num_vectors: how many vectors the bank has.
        vector_length: length of a vector; it divides both widths of every layer.
        topk: how many vectors a piece mixes.
        init_vector_bank_bound: the bank is uniform within plus and minus this at the start.
        init_logits_std: standard deviation of the logits at the start.

    Raises:
        ValueError: if one of the numbers is below 1, or ``topk`` is above the number of vectors.

    References:
        Li et al. (2024), arXiv:2405.15179.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> method = VBLoRA(rank=2, num_vectors=16, vector_length=4)
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(8, 4)), method, ["0"])
        >>> {name: tuple(p.shape) for name, p in trainable(model).items()}  # doctest: +NORMALIZE_WHITESPACE
        {'0.vblora_logits_A': (2, 2, 16), '0.vblora_logits_B': (1, 2, 16), '0.vblora_vector_bank': (16, 4)}
    """

    peft_type: ClassVar[str] = "VBLORA"
    settings: ClassVar[Mapping[str, str]] = {
        "rank": "r", "num_vectors": "num_vectors", "vector_length": "vector_length", "topk": "topk",
        "init_vector_bank_bound": "init_vector_bank_bound", "init_logits_std": "init_logits_std",
    }  # fmt: skip
    rank: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    init_vector_bank_bound: float = 0.02
    init_logits_std: float = 0.1

    def __post_init__(self) -> None:
        for name in ("rank", "num_vectors", "vector_length", "topk"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_vectors", self.num_vectors, self.topk, hint="a mixture takes each vector once")

    @property
    def identity(self) -> bool:
        """Never, since neither factor is 0 at the start, only small."""
        return False

    def share(self, modules: Mapping[str, nn.Module], *, generator: torch.Generator | None) -> dict[str, nn.Parameter]:
        """Make the bank, which is trained.

        Args:
            modules: the layers, by name.
            generator: source of random numbers, on the device of the model. Default: torch's own.

        Returns:
            ``(N, C)`` the bank.
        """
        weight = next(iter(modules.values())).get_parameter("weight")
        bound, shape = self.init_vector_bank_bound, (self.num_vectors, self.vector_length)
        bank = torch.empty(shape, dtype=adapter_dtype(weight), device=weight.device)
        return {"vblora_vector_bank": nn.Parameter(bank.uniform_(-bound, bound, generator=generator))}

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        (rows, columns), C, N = weight.shape, self.vector_length, self.num_vectors
        check_rank(name, self.rank, weight.shape)
        check_divides("vector_length", C, f"{name}: width of the input", columns)
        check_divides("vector_length", C, f"{name}: width of the output", rows)
        a, b = empty.new_empty(self.rank, columns // C, N), empty.new_empty(rows // C, self.rank, N)
        std = self.init_logits_std
        return {
            "vblora_logits_A": a.normal_(0, std, generator=generator),
            "vblora_logits_B": b.normal_(0, std, generator=generator),
        }

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        logits = values["vblora_logits_A"], values["vblora_logits_B"]
        return lowrank.vblora_delta(*logits, values["vblora_vector_bank"], topk=self.topk)

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        logits = values["vblora_logits_A"], values["vblora_logits_B"]
        a, b = lowrank.vblora_factors(*logits, values["vblora_vector_bank"], topk=self.topk)
        return F.linear(F.linear(x, a), b)


def _largest(modules: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Return the largest width of an output and of an input."""
    shapes = [module.get_parameter("weight").shape for module in modules.values()]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _frozen(modules: Mapping[str, nn.Module], **tensors: Tensor) -> dict[str, nn.Parameter]:
    """Turn tensors into frozen parameters, on the device of the layers and in the dtype of their adapters."""
    weight = next(iter(modules.values())).get_parameter("weight")
    dtype, device = adapter_dtype(weight), weight.device
    return {name: nn.Parameter(x.to(device, dtype), requires_grad=False) for name, x in tensors.items()}
