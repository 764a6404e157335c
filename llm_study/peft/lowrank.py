r"""Weight differences with structure: LoHa, LoKr, MoRA, MiSS and FourierFT.

All add a difference :math:`\Delta W` to the frozen weight of linear layers; they differ in how few numbers describe it,
and in how high its rank can be. The mathematics is in :mod:`llm_study.functional.lowrank`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least
from llm_study.functional import lowrank
from llm_study.peft.base import check_rank
from llm_study.peft.linear import LinearMethod

__all__ = ["FourierFT", "LoHa", "LoKr", "MiSS", "MoRA", "uniform"]


def uniform(empty: Tensor, *shape: int, generator: torch.Generator | None) -> Tensor:
    r"""Draw a matrix as torch draws the weight of a linear layer: uniform in :math:`\pm 1/\sqrt{n}` for ``n`` columns.

    Args:
        empty: ``(0,)`` any tensor with the dtype and the device that are wanted.
        shape: rows and columns.
        generator: source of random numbers. Default: torch's own.

    Returns:
        ``(…)`` tensor of that shape.

    Example:
        >>> x = uniform(torch.zeros(0), 2, 400, generator=torch.Generator().manual_seed(0))
        >>> x.shape, (x.abs() <= 0.05).all().item(), (x.abs() > 0.04).any().item()
        (torch.Size([2, 400]), True, True)
    """
    bound = 1 / math.sqrt(shape[-1])
    return empty.new_empty(shape).uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class LoHa(LinearMethod):
    r"""LoHa: the elementwise product of two low-rank matrices, :math:`\frac{\alpha}{r}(A_1B_1) \circ (A_2B_2)`.

    Args:
        rank: rank of each of the two; the rank of the product is up to its square.
        alpha: the scale is ``alpha / rank``.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Hyeon-Woo et al. (2022), arXiv:2108.06098; Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(8, 4)), LoHa(rank=2), ["0"])
        >>> sum(p.numel() for p in trainable(model).values())  # 2 · 2 · (8 + 4)
        48
    """

    peft_type: ClassVar[str] = "LOHA"
    settings: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "alpha"}
    fixed: ClassVar[Mapping[str, Any]] = {"init_weights": True}
    rank: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        (rows, columns), R = weight.shape, self.rank
        return {
            "hada_w1_a": uniform(empty, rows, R, generator=generator),
            "hada_w1_b": uniform(empty, R, columns, generator=generator),
            "hada_w2_a": uniform(empty, rows, R, generator=generator),
            "hada_w2_b": empty.new_zeros(R, columns),
        }

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        factors = (values[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
        return lowrank.loha_delta(*factors, scale=self.alpha / self.rank)


@dataclass(frozen=True)
class LoKr(LinearMethod):
    r"""LoKr: a Kronecker product :math:`\frac{\alpha}{r}\,W_1 \otimes W_2` of a small matrix and a low-rank one.

    Each width is split in two by :func:`llm_study.functional.lowrank.factor_pair`. :math:`W_2` is a product of rank
    ``rank`` if that is less than half of its larger side, else a whole matrix.

    Args:
        rank: rank of :math:`W_2`, or of both.
        alpha: the scale is ``alpha / rank``.
        decompose_both: whether :math:`W_1` is a low-rank product too, if that makes it smaller.
        decompose_factor: wanted size of :math:`W_1`; −1 for the most balanced split.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Yeh et al. (2024), arXiv:2309.14859.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(16, 24)), LoKr(rank=2), ["0"])
        >>> {name: tuple(x.shape) for name, x in model[0].tensors().items()}
        {'lokr_w1': (4, 4), 'lokr_w2_a': (6, 2), 'lokr_w2_b': (2, 4)}
    """

    peft_type: ClassVar[str] = "LOKR"
    settings: ClassVar[Mapping[str, str]] = {
        "rank": "r", "alpha": "alpha", "decompose_both": "decompose_both", "decompose_factor": "decompose_factor",
    }  # fmt: skip
    ignored: ClassVar[tuple[str, ...]] = ("init_weights",)
    rank: int = 8
    alpha: float = 8.0
    decompose_both: bool = False
    decompose_factor: int = -1

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        (O1, O2), (I1, I2) = (lowrank.factor_pair(n, near=self.decompose_factor) for n in weight.shape)
        R = self.rank
        tensors: dict[str, Tensor] = {}
        if self.decompose_both and max(O1, I1) / 2 > R:
            tensors["lokr_w1_a"], tensors["lokr_w1_b"] = (
                empty.new_zeros(O1, R),
                uniform(empty, R, I1, generator=generator),
            )
        else:
            tensors["lokr_w1"] = empty.new_zeros(O1, I1)
        if max(O2, I2) / 2 > R:
            tensors["lokr_w2_a"] = uniform(empty, O2, R, generator=generator)
            tensors["lokr_w2_b"] = uniform(empty, R, I2, generator=generator)
        else:
            tensors["lokr_w2"] = uniform(empty, O2, I2, generator=generator)
        return tensors

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return lowrank.lokr_delta(*self._factors(values), scale=self.alpha / self.rank)

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        return lowrank.kron_linear(x, *self._factors(values), scale=self.alpha / self.rank)

    def _factors(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = (
            values[w] if w in values else values[f"{w}_a"] @ values[f"{w}_b"] for w in ("lokr_w1", "lokr_w2")
        )
        return first, second


@dataclass(frozen=True)
class MoRA(LinearMethod):
    r"""MoRA: a square matrix between adding up groups of inputs and repeating outputs, of far higher rank than LoRA.

    The matrix has as many numbers as a LoRA of rank ``rank`` would have, rounded down. peft does not have the method.

    Args:
        rank: rank of the LoRA whose number of trained values is matched.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Jiang et al. (2024), arXiv:2405.12130, the variant that shares rows and columns.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(64, 64)), MoRA(rank=2), ["0"])
        >>> model[0].mora_matrix.shape  # 16 · 16 = 2 · (64 + 64)
        torch.Size([16, 16])
    """

    peft_type: ClassVar[str] = "MORA"
    rank: int = 8

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        rows, columns = weight.shape
        size = min(lowrank.mora_size(columns, rows, self.rank), rows, columns)
        return {"mora_matrix": empty.new_zeros(size, size)}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return lowrank.mora_delta(values["mora_matrix"], shape[1], shape[0])

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        return lowrank.mora_linear(x, values["mora_matrix"], width)


@dataclass(frozen=True)
class MiSS(LinearMethod):
    r"""MiSS: ``rank`` trained columns that are repeated over the width of the input; one matrix instead of LoRA's two.

    Args:
        rank: how many columns.

    Raises:
        ValueError: if the rank is below 1.

    References:
        Kang and Yin (2024), arXiv:2409.15371.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(8, 4)), MiSS(rank=2), ["0"])
        >>> {name: tuple(p.shape) for name, p in trainable(model).items()}
        {'0.miss_block': (2, 4)}
    """

    peft_type: ClassVar[str] = "MISS"
    fixed: ClassVar[Mapping[str, Any]] = {"init_weights": True}
    ignored: ClassVar[tuple[str, ...]] = ("mini_r",)  # of another variant
    rank: int = 64

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_rank(name, self.rank, weight.shape)
        return {"miss_block": empty.new_zeros(self.rank, weight.shape[0])}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return lowrank.miss_delta(values["miss_block"], shape[1])

    def _apply(self, x: Tensor, values: Mapping[str, Tensor], width: int) -> Tensor:
        return lowrank.miss_linear(x, values["miss_block"])


@dataclass(frozen=True)
class FourierFT(LinearMethod):
    r"""FourierFT: a few coefficients of the spectrum of :math:`\Delta W`, at frequencies drawn once from a seed.

    Args:
        n_frequency: how many coefficients for each layer.
        scaling: factor on the difference.
        random_loc_seed: seed of the frequencies, which are not stored.
        init_weights: whether the coefficients start at 0, so that a fresh adapter changes nothing. As in the paper,
            they are drawn from the standard normal distribution otherwise.

    Raises:
        ValueError: if there is no frequency.

    References:
        Gao et al. (2024), arXiv:2405.03003.

    Example:
        >>> from llm_study.peft.base import inject, trainable
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(8, 4)), FourierFT(n_frequency=5), ["0"])
        >>> {name: tuple(p.shape) for name, p in trainable(model).items()}
        {'0.fourierft_spectrum': (5,)}
    """

    peft_type: ClassVar[str] = "FOURIERFT"
    settings: ClassVar[Mapping[str, str]] = {
        name: name for name in ("n_frequency", "scaling", "random_loc_seed", "init_weights")
    }
    n_frequency: int = 1000
    scaling: float = 150.0
    random_loc_seed: int = 777
    init_weights: bool = False

    def __post_init__(self) -> None:
        check_at_least("n_frequency", self.n_frequency, 1)

    @property
    def identity(self) -> bool:
        """Whether the coefficients start at 0."""
        return self.init_weights

    def _tensors(
        self, name: str, weight: Tensor, empty: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        check_at_least(f"{name}: size of the weight", weight.numel(), self.n_frequency, hint="take fewer frequencies")
        start = empty.new_zeros(self.n_frequency)
        return {"fourierft_spectrum": start if self.init_weights else start.normal_(generator=generator)}

    def _delta(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        spectrum = values["fourierft_spectrum"]
        indices = _frequencies(shape, self.n_frequency, self.random_loc_seed).to(spectrum.device)
        return lowrank.fourier_delta(spectrum, indices, shape, scale=self.scaling)


def _frequencies(shape: tuple[int, int], n: int, seed: int) -> Tensor:
    """Draw ``n`` different entries of a matrix, as peft draws them."""
    flat = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(seed))[:n]
    return torch.stack([flat // shape[1], flat % shape[1]])
