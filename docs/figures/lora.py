"""Figures of finetuning/lora."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_study.peft.base import inject, trainable
from llm_study.peft.lora import LoRA, RSLoRA, lora_delta

Translate = Callable[[str], str]
FROZEN, TRAINED = "C7", "C0"


def _matrix(ax: Any, x: float, y: float, width: float, height: float, color: str, text: str) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, facecolor=(*to_rgb(color), 0.25), edgecolor=color, linewidth=1.2))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def _arrow(ax: Any, *points: tuple[float, float]) -> None:
    xs, ys = zip(*points, strict=True)
    ax.plot(xs[:-1], ys[:-1], color=FROZEN, linewidth=1.2)
    ax.annotate(
        "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": FROZEN, "linewidth": 1.2, "shrinkA": 0}
    )


def structure(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.2, 4.2))
    _matrix(ax, 0, 2, 3, 3, FROZEN, _("W₀\nm × n\n冻结"))
    _matrix(ax, 4.6, 2, 3, 0.6, TRAINED, _("A：r × n"))
    _matrix(ax, 5.8, 3.2, 0.6, 1.8, TRAINED, "B")
    ax.text(6.6, 4.1, "m × r", ha="left", va="center")
    ax.text(3.8, 0.15, "x", ha="center", va="center")
    _arrow(ax, (3.8, 0.5), (3.8, 1.2), (1.5, 1.2), (1.5, 2))
    _arrow(ax, (3.8, 1.2), (6.1, 1.2), (6.1, 2))
    _arrow(ax, (6.1, 2.6), (6.1, 3.2))
    ax.text(6.35, 2.9, _("r 个数"), ha="left", va="center")
    _arrow(ax, (1.5, 5), (1.5, 5.9), (3.5, 5.9))
    _arrow(ax, (6.1, 5), (6.1, 5.9), (4.1, 5.9))
    ax.text(5.1, 6.15, "× s", ha="center", va="center")
    ax.text(3.8, 5.9, "+", ha="center", va="center", fontsize=16)
    _arrow(ax, (3.8, 6.2), (3.8, 6.9))
    ax.text(3.8, 7.15, "y", ha="center", va="center")
    ax.set(xlim=(-0.2, 8), ylim=(0, 7.4), aspect="equal")
    ax.axis("off")
    return fig


def _errors(difference: Tensor, rank: int, steps: int) -> list[float]:
    """Return the squared distance from the goal after each step of gradient descent."""
    layer = nn.Linear(difference.shape[1], difference.shape[0], bias=False).double()
    goal = layer.weight.detach() + difference
    seed = torch.Generator().manual_seed(1)
    net = inject(nn.Sequential(layer), LoRA(rank=rank, alpha=rank), targets=["0"], generator=seed)
    optimizer = torch.optim.SGD(trainable(net).values(), lr=0.1)
    errors = []
    for _ in range(steps):
        loss = (layer.weight + net[0].delta() - goal).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return errors


def convergence(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(16, 4, generator=generator, dtype=torch.float64)).Q for _side in range(2)
    )
    sigma = torch.tensor([3.0, 2.0, 1.5, 1.0], dtype=torch.float64)
    difference = left * sigma @ right.mT
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for rank in (1, 2, 3, 4):
        ax.plot(_errors(difference, rank, 200), color=f"C{rank - 1}", label=_("秩 {}").format(rank))
        if rank < 4:
            ax.axhline(sigma[rank:].square().sum().item(), color=f"C{rank - 1}", linestyle=":", linewidth=1)
    ax.set(yscale="log", ylim=(1e-6, 30), xlabel=_("步"), ylabel=_("离目标的距离的平方"))
    ax.set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.000001", "0.0001", "0.01", "1"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig


def _changes(rank: int, adam: bool) -> tuple[float, float]:
    """Return how much the output changes by the first step, with the scales of LoRA and of rsLoRA."""
    generator = torch.Generator().manual_seed(0)
    x, slope = torch.randn(64, generator=generator), torch.randn(32, generator=generator)
    A = torch.randn(200, rank, 64, generator=generator) / 8
    h = A @ x  # (200, R)
    change = []
    for scale in (LoRA(rank=rank, alpha=1).scale, RSLoRA(rank=rank, alpha=1).scale):
        gradient = scale * slope[:, None] * h[:, None]  # of B: (200, 32, R)
        B = -torch.sign(gradient) if adam else -gradient
        change.append((lora_delta(A, B, scale=scale) @ x).abs().mean().item())
    return change[0], change[1]


def scaling(plt: Any, _: Translate) -> Any:
    ranks = [1, 4, 16, 64, 256]
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), layout="constrained")
    for ax, adam, title in ((axes[0], False, _("梯度下降的第一步")), (axes[1], True, _("Adam 的第一步"))):
        changes = [_changes(rank, adam) for rank in ranks]
        for label, index, marker in ((_("除以 r"), 0, "s"), (_("除以 √r"), 1, "o")):
            ax.plot(ranks, [c[index] / changes[0][index] for c in changes], marker=marker, label=label)
        ax.set(xscale="log", yscale="log", xlabel=_("秩 r"), ylabel=_("输出的改动"), title=title)
        ax.set_xticks(ranks, [str(r) for r in ranks])
        ax.set_yticks(*([[0.01, 0.1, 1], ["0.01", "0.1", "1"]] if not adam else [[1, 10], ["1", "10"]]))
        ax.minorticks_off()
        ax.legend(frameon=False)
    return fig


def merging(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    weight, direction = (torch.randn(20000, generator=generator, dtype=torch.float64) for _side in range(2))
    ratios = torch.logspace(-5, -0.2, 25, dtype=torch.float64)
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float32, "float32")):
        stored = weight.to(dtype).double()
        lost = []
        for ratio in ratios:
            delta = ratio * direction.sign() * stored.abs()
            merged = (stored + delta).to(dtype).double() - stored
            lost.append(((merged - delta).norm() / delta.norm()).item())
        ax.plot(ratios, lost, label=name)
    ax.set(xscale="log", yscale="log", xlabel=_("改动 / 权重"), ylabel=_("改动的相对误差"))
    ax.set_xticks([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.00001", "0.0001", "0.001", "0.01", "0.1", "1"])
    ax.set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.000001", "0.0001", "0.01", "1"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig
