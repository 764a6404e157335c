r"""LoRA: the update of a frozen weight as a product of two thin matrices, and what is close to it.

:class:`LoRA` adapts linear layers, embeddings and convolutions. :class:`RSLoRA` scales by the root of the rank,
:class:`LoRAFA` trains one of the two matrices, :func:`lora_plus_groups` gives them learning rates of their own, and
:func:`batched_lora` serves many adapters in one batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal, check_ndim
from llm_study.peft.base import Adapter, Method, adapter_dtype, check_plain, check_rank, trainable, weight_of
from llm_study.peft.quantized import QuantizedLinear

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


def batched_lora_reference(x: Tensor, A: Tensor, B: Tensor, index: Tensor) -> Tensor:
    r"""What LoRA adds, each sequence of a batch with an adapter of its own, one sequence after the other.

    .. math:: y_b = x_b A_{i_b}^\top B_{i_b}^\top, \qquad y_b = 0 \text{ where } i_b = -1

    Args:
        x: ``(B, T, I)`` input.
        A: ``(N, R, I)`` down-projections of ``N`` adapters.
        B: ``(N, O, R)`` up-projections; the scale of each adapter is multiplied into it.
        index: ``(B,)`` which adapter a sequence has; -1 is none.

    Returns:
        ``(B, T, O)`` what is added to the output of the shared layer.

    References:
        Chen et al. (2023), Punica, arXiv:2310.18547.

    Example:
        >>> x, A, B = torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.tensor([[[3.0]], [[5.0]]])
        >>> batched_lora_reference(x, A, B, torch.tensor([1, -1])).flatten()
        tensor([5., 0.])
    """
    y = x.new_zeros(*x.shape[:-1], B.shape[1])
    for b, i in enumerate(index.tolist()):
        if i >= 0:
            y[b] = x[b] @ A[i].mT @ B[i].mT
    return y


def batched_lora(x: Tensor, A: Tensor, B: Tensor, index: Tensor) -> Tensor:
    r"""What LoRA adds, each sequence of a batch with an adapter of its own, all at once.

    The matrices that the batch needs are gathered, and two batched products do the rest: two calls, where
    :func:`batched_lora_reference` makes ``2 * B``. The layer itself, which all sequences share, is one product for the
    whole batch; that is what sequences with adapters gain over sequences with weights of their own.

    Args:
        x: ``(B, T, I)`` input.
        A: ``(N, R, I)`` down-projections of ``N`` adapters.
        B: ``(N, O, R)`` up-projections; the scale of each adapter is multiplied into it.
        index: ``(B,)`` which adapter a sequence has; -1 is none.

    Returns:
        ``(B, T, O)`` what is added to the output of the shared layer.

    Raises:
        ValueError: if shapes do not fit, or an index is below -1 or not below ``N``.

    Cost: ``2 * B * T * R * (I + O)`` FLOPs, and ``B * R * (I + O)`` numbers are copied.

    References:
        Chen et al. (2023), Punica, arXiv:2310.18547.

    Example:
        >>> x, A, B = torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.tensor([[[3.0]], [[5.0]]])
        >>> batched_lora(x, A, B, torch.tensor([1, -1])).flatten()
        tensor([5., 0.])
    """
    check_ndim("x", x.shape, ("B", "T", "I"), hint="one token of each sequence is (B, 1, I)")
    check_ndim("A", A.shape, ("N", "R", "I"))
    check_ndim("B", B.shape, ("N", "O", "R"))
    check_equal("width of x", x.shape[-1], "width of A", A.shape[-1])
    check_equal("(N, R) of A", tuple(A.shape[:2]), "(N, R) of B", (B.shape[0], B.shape[2]))
    check_equal("shape of index", tuple(index.shape), "batch of x", (x.shape[0],))
    if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < len(A):
        raise ValueError(f"index has {index.tolist()}, expected -1 to {len(A) - 1}: there are {len(A)} adapters")
    own = index.clamp(min=0)
    h = torch.bmm(x, A[own].mT).masked_fill(index[:, None, None] < 0, 0.0)  # (B, T, R)
    return torch.bmm(h, B[own].mT)


def lora_plus_groups(model: nn.Module, *, lr: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    r"""Parameter groups of LoRA+: every matrix :math:`B` learns faster than :math:`A`.

    .. math:: \eta_B = \lambda\,\eta_A

    Args:
        model: a model with adapters.
        lr: learning rate :math:`\eta_A`, also of all that is trained and is no :math:`B`. The factors of embeddings
            are of that kind: they start the other way around.
        ratio: :math:`\lambda`, above 1 where the model is wide.

    Returns:
        Two groups for an optimizer, the second with the :math:`B`\ s.

    Raises:
        ValueError: if the model has no adapters, or none of them trains a ``lora_B``.

    References:
        Hayou et al. (2024), arXiv:2402.12354.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRA(rank=2), targets=["0"])
        >>> optimizer = torch.optim.AdamW(lora_plus_groups(model, lr=1e-4))
        >>> [(group["lr"], tuple(group["params"][0].shape)) for group in optimizer.param_groups]
        [(0.0001, (2, 8)), (0.0016, (4, 2))]
    """
    up = {name: x for name, x in trainable(model).items() if name.rpartition(".")[2] == "lora_B"}
    if not up:
        raise ValueError("no trainable tensor is called lora_B: LoRA+ is for LoRA of linear layers and convolutions")
    down = [x for name, x in trainable(model).items() if name not in up]
    groups = [{"params": down, "lr": lr}, {"params": list(up.values()), "lr": lr * ratio}]
    return [group for group in groups if group["params"]]


# --- layers


def _dropped(x: Tensor, p: float, *, training: bool) -> Tensor:
    return F.dropout(x, p) if p and training else x


class LoRALinear(Adapter):
    r"""Linear layer with LoRA: :math:`y = xW^\top + b + s\,(xA^\top)B^\top`.

    Args:
        base_layer: the linear layer.
        A: ``(R, I)`` down-projection.
        B: ``(O, R)`` up-projection.
        scale: factor :math:`s`.
        dropout: probability with which a number of the input is dropped on its way through ``A``, when training.

    Attributes:
        lora_A: ``(R, I)`` down-projection.
        lora_B: ``(O, R)`` up-projection.

    Example:
        >>> layer = LoRALinear(nn.Linear(2, 1, bias=False), torch.ones(1, 2), torch.ones(1, 1), scale=2.0)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> (layer(x) - layer.base_layer(x)).detach().round(decimals=4)
        tensor([[6.]])
    """

    def __init__(self, base_layer: nn.Module, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer)
        self.scale, self.dropout = scale, dropout
        self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(B)

    def adapted(self, x: Tensor) -> Tensor:
        """Compute the layer and add the adapter.

        Args:
            x: ``(…, I)`` input.

        Returns:
            ``(…, O)`` output.
        """
        return lora_linear(
            self.base_layer(x),
            _dropped(x, self.dropout, training=self.training),
            self.lora_A,
            self.lora_B,
            scale=self.scale,
        )

    def delta(self) -> Tensor:
        """Return the weight difference.

        Returns:
            ``(O, I)``.
        """
        return lora_delta(self.lora_A, self.lora_B, scale=self.scale)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored.

        Returns:
            ``(R, I)`` and ``(O, R)``, the two matrices.
        """
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}


class LoRAEmbedding(Adapter):
    r"""Embedding with LoRA: id :math:`i` gets :math:`E_i + s\,(A_{:,i})^\top B^\top`. Dropout does not act here.

    Args:
        base_layer: the embedding.
        A: ``(R, V)`` one column for each id.
        B: ``(D, R)`` up-projection.
        scale: factor :math:`s`.

    Attributes:
        lora_embedding_A: ``(R, V)`` one column for each id.
        lora_embedding_B: ``(D, R)`` up-projection.

    Example:
        >>> A, B = torch.tensor([[0.0, 3.0]]), torch.ones(2, 1)
        >>> layer = LoRAEmbedding(nn.Embedding.from_pretrained(torch.zeros(2, 2)), A, B, scale=2.0)
        >>> layer(torch.tensor([0, 1])).detach()
        tensor([[0., 0.],
                [6., 6.]])
    """

    def __init__(self, base_layer: nn.Module, A: Tensor, B: Tensor, *, scale: float) -> None:
        super().__init__(base_layer)
        self.scale = scale
        self.lora_embedding_A, self.lora_embedding_B = nn.Parameter(A), nn.Parameter(B)

    def adapted(self, x: Tensor) -> Tensor:
        """Look the ids up and add the adapter.

        Args:
            x: ``(…)`` ids.

        Returns:
            ``(…, D)`` vectors.
        """
        h = F.embedding(x, self.lora_embedding_A.mT)  # (…, R)
        y: Tensor = self.base_layer(x)
        return (y + self.scale * F.linear(h, self.lora_embedding_B)).to(y.dtype)

    def delta(self) -> Tensor:
        """Return the difference of the table of vectors.

        Returns:
            ``(V, D)``.
        """
        return lora_delta(self.lora_embedding_A, self.lora_embedding_B, scale=self.scale).mT

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored.

        Returns:
            ``(R, V)`` and ``(D, R)``, the two matrices.
        """
        return {"lora_embedding_A": self.lora_embedding_A, "lora_embedding_B": self.lora_embedding_B}


class LoRAConv(Adapter):
    """Convolution with LoRA: one with few channels, of the same kernel, stride and padding, then one of width 1.

    Args:
        base_layer: the convolution, without groups.
        A: ``(R, I, …)`` kernel of the first.
        B: ``(O, R, 1, …)`` kernel of the second.
        scale: factor on what is added.
        dropout: probability with which a number of the input is dropped on its way through ``A``, when training.

    Attributes:
        lora_A: ``(R, I, …)`` kernel of the first.
        lora_B: ``(O, R, 1, …)`` kernel of the second.

    Example:
        >>> base = nn.Conv1d(1, 1, 2, bias=False)
        >>> layer = LoRAConv(base, torch.ones(1, 1, 2), torch.ones(1, 1, 1), scale=2.0)
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> (layer(x) - base(x)).detach().round(decimals=4)
        tensor([[[ 6., 10.]]])
    """

    base_layer: nn.Conv1d | nn.Conv2d

    def __init__(
        self, base_layer: nn.Conv1d | nn.Conv2d, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base_layer)
        self.scale, self.dropout = scale, dropout
        self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(B)

    def adapted(self, x: Tensor) -> Tensor:
        """Compute the convolution and add the adapter.

        Args:
            x: ``(B, I, …)`` input.

        Returns:
            ``(B, O, …)`` output.
        """
        y: Tensor = self.base_layer(x)
        h = self.base_layer._conv_forward(
            _dropped(x, self.dropout, training=self.training).to(self.lora_A.dtype), self.lora_A, None
        )  # (B, R, …)
        added = torch.einsum("or,br...->bo...", self.lora_B.flatten(1), h)
        return (y + self.scale * added).to(y.dtype)

    def delta(self) -> Tensor:
        """Return the difference of the kernel.

        Returns:
            ``(O, I, …)``.
        """
        return self.scale * torch.einsum("or,r...->o...", self.lora_B.flatten(1), self.lora_A)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored.

        Returns:
            ``(R, I, …)`` and ``(O, R, 1, …)``, the two kernels.
        """
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}


# --- methods


@dataclass(frozen=True)
class LoRA(Method):
    r"""LoRA: a frozen weight learns an update of rank ``rank``, :math:`W + \frac{\alpha}{r} BA`.

    Linear layers, embeddings, and convolutions of one or two dimensions without groups can be adapted. At the start
    :math:`A` is uniform in :math:`\pm 1/\sqrt{I}` and :math:`B` is 0; for embeddings :math:`A` is 0 and :math:`B`
    standard normal.

    Args:
        rank: :math:`r`, ``r`` in files of peft.
        alpha: :math:`\alpha`, ``lora_alpha`` in files of peft.
        lora_dropout: probability with which a number of the input is dropped on its way through the adapter.

    Raises:
        ValueError: if ``rank`` is below 1 or the probability not in [0, 1).

    References:
        Hu et al. (2022), arXiv:2106.09685.

    Example:
        >>> LoRA(rank=8, alpha=16).scale, LoRA(rank=64, alpha=16).scale
        (2.0, 0.25)
    """

    peft_type: ClassVar[str] = "LORA"
    mergeable: ClassVar[bool] = True
    rank: int = 8
    alpha: float = 16.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}, expected a probability below 1")

    @property
    def scale(self) -> float:
        r"""Factor on the product of the two matrices, :math:`\alpha / r`."""
        return self.alpha / self.rank

    def takes(self, module: nn.Module) -> bool:
        """Say whether a module can have this adapter.

        Args:
            module: any module.

        Returns:
            Whether it is a linear layer, quantized or not, an embedding, or a convolution without groups, and no
            subclass of them.
        """
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1:
            return False
        return type(module) in (nn.Linear, QuantizedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d)

    def build(
        self,
        module: nn.Module,
        *,
        name: str,
        shared: Mapping[str, nn.Parameter],
        generator: torch.Generator | None,
    ) -> Adapter:
        """Make the adapter of one layer.

        Args:
            module: the layer.
            name: its name, for messages.
            shared: ``(…)`` nothing: layers of LoRA share no tensors.
            generator: source of random numbers. Default: torch's own.

        Returns:
            The adapter.

        Raises:
            ValueError: if the rank is larger than the smaller side of the weight.
        """
        weight = weight_of(module)
        outer, inner = weight.shape[0], weight[0].numel()
        check_rank(name, self.rank, (outer, inner))
        empty = partial(torch.empty, dtype=adapter_dtype(weight), device=weight.device)
        if isinstance(module, nn.Embedding):
            up = empty(inner, self.rank).normal_(generator=generator)
            return LoRAEmbedding(module, empty(self.rank, outer).zero_(), up, scale=self.scale)
        bound = 1 / math.sqrt(inner)
        A = empty(self.rank, *weight.shape[1:]).uniform_(-bound, bound, generator=generator)
        B = empty(outer, self.rank, *[1] * (weight.ndim - 2)).zero_()
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return LoRAConv(module, A, B, scale=self.scale, dropout=self.lora_dropout)
        return LoRALinear(module, A, B, scale=self.scale, dropout=self.lora_dropout)

    def to_config(self) -> dict[str, Any]:
        """Say what ``adapter_config.json`` is to hold.

        Returns:
            The settings, under the names of peft.
        """
        own = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.lora_dropout}
        return {**own, "use_rslora": isinstance(self, RSLoRA), "bias": "none"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Read the settings from ``adapter_config.json``.

        Args:
            config: what the file says.

        Returns:
            The method, or None if the file is of another one.

        Raises:
            ValueError: if the file asks for something that is not supported, such as ranks that differ by layer.
        """
        plain = config.get("init_lora_weights", True) in (True, False, "gaussian") and not config.get("use_dora")
        if config.get("peft_type") != "LORA" or not plain or bool(config.get("use_rslora")) != issubclass(cls, RSLoRA):
            return None
        check_plain(config, _KNOWN)
        return cls(rank=config["r"], alpha=config["lora_alpha"], lora_dropout=config.get("lora_dropout", 0.0))


@dataclass(frozen=True)
class RSLoRA(LoRA):
    r"""LoRA with the scale :math:`\alpha/\sqrt r`, at which updates of any rank are of one size.

    References:
        Kalajdzievski (2023), arXiv:2312.03732.

    Example:
        >>> RSLoRA(rank=4, alpha=16).scale, RSLoRA(rank=64, alpha=16).scale
        (8.0, 2.0)
    """

    @property
    def scale(self) -> float:
        r"""Factor on the product of the two matrices, :math:`\alpha / \sqrt r`."""
        return self.alpha / math.sqrt(self.rank)


@dataclass(frozen=True)
class LoRAFA(LoRA):
    r"""LoRA whose random :math:`A` is frozen: only :math:`B` is trained, and nothing wide is kept for its gradient.

    It is stored as LoRA is, and loaded as LoRA.

    References:
        Zhang et al. (2023), arXiv:2308.03303.

    Example:
        >>> from llm_study.peft.base import inject
        >>> model = inject(nn.Sequential(nn.Linear(8, 4)), LoRAFA(rank=2), targets=["0"])
        >>> list(trainable(model))
        ['0.lora_B']
    """

    def takes(self, module: nn.Module) -> bool:
        """Say whether a module can have this adapter.

        Args:
            module: any module.

        Returns:
            Whether it is a linear layer or a convolution without groups. The :math:`A` of an embedding is 0 at the
            start, so it would learn nothing.
        """
        return super().takes(module) and type(module) is not nn.Embedding

    def build(
        self,
        module: nn.Module,
        *,
        name: str,
        shared: Mapping[str, nn.Parameter],
        generator: torch.Generator | None,
    ) -> Adapter:
        """Make the adapter of one layer.

        Args:
            module: the layer.
            name: its name, for messages.
            shared: ``(…)`` nothing: layers of LoRA share no tensors.
            generator: source of random numbers. Default: torch's own.

        Returns:
            The adapter, its :math:`A` frozen.
        """
        adapter = super().build(module, name=name, shared=shared, generator=generator)
        adapter.get_parameter("lora_A").requires_grad_(False)
        return adapter


_KNOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "megatron_core", "qalora_group_size")
