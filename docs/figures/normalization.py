"""Figures of algorithms/normalization."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.functional.mup import Scales, mup_scales, standard_scales
from llm_study.functional.norms import rms_norm
from llm_study.functional.residual import deepnorm_constants, deepnorm_residual

Translate = Callable[[str], str]
SUBLAYER, NORM, NEUTRAL = "C0", "C1", "C7"


def _box(plt: Any, ax: Any, x: float, y: float, text: str, color: str) -> None:
    from matplotlib.colors import to_rgb

    ax.add_patch(
        plt.Rectangle((x - 0.8, y - 0.3), 1.6, 0.6, facecolor=(*to_rgb(color), 0.22), edgecolor=color, linewidth=1.2)
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def _column(plt: Any, ax: Any, x: float, title: str, boxes: list[tuple[str, str]], plus: int) -> None:
    """Draw a column of boxes from below; the residual joins after ``plus`` of them, at a circle."""
    y, arrow = 0.0, {"arrowstyle": "-|>", "color": NEUTRAL, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    heights = []
    for i in range(len(boxes) + 1):
        ax.annotate("", (x, y + 0.5), (x, y), arrowprops=arrow)
        y += 0.5
        if i == plus:
            heights.append(y + 0.2)
            ax.add_patch(plt.Circle((x, y + 0.2), 0.2, fill=False, edgecolor=NEUTRAL, linewidth=1.2))
            ax.text(x, y + 0.2, "+", ha="center", va="center", fontsize=10)
            y += 0.4
            if i < len(boxes):
                ax.annotate("", (x, y + 0.5), (x, y), arrowprops=arrow)
                y += 0.5
        if i < len(boxes):
            _box(plt, ax, x, y + 0.3, *boxes[i])
            y += 0.6
    if plus < len(boxes):
        ax.annotate("", (x, y + 0.5), (x, y), arrowprops=arrow)
    else:
        ax.annotate("", (x, y + 0.5), (x, y), arrowprops=arrow)
    side = x + 1.05
    ax.plot([x, side, side], [0.22, 0.22, heights[0]], color=NEUTRAL, linewidth=1.1)
    ax.annotate("", (x + 0.2, heights[0]), (side, heights[0]), arrowprops=arrow)
    ax.text(x, -0.45, title, ha="center", va="center", weight="bold", fontsize=9)


def placements(plt: Any, _: Translate) -> Any:
    norm, layer = (_("归一化"), NORM), (_("子层"), SUBLAYER)
    columns = [
        (_("后归一化"), [layer, norm], 1),
        (_("前归一化"), [norm, layer], 2),
        (_("夹层"), [norm, layer, norm], 3),
        ("OLMo 2", [layer, norm], 2),
    ]
    fig, ax = plt.subplots(figsize=(5.4, 3.0))
    for i, (title, boxes, plus) in enumerate(columns):
        _column(plt, ax, 2.5 * i, title, boxes, plus)
    ax.set(xlim=(-1.0, 8.9), ylim=(-0.8, 4.9), aspect="equal")
    ax.axis("off")
    return fig


def stream(plt: Any, _: Translate) -> Any:
    D, L = 256, 48
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(32, D, generator=generator)
    names = [_("前归一化"), _("前归一化，支路缩小"), _("后归一化")]
    states = [start] * 3
    squares: list[list[float]] = [[1.0] for _name in names]
    shares: list[list[float]] = [[1.0] for _name in names]
    for _layer in range(L):
        up, down = (torch.randn(D, D, generator=generator) / math.sqrt(D) for _side in range(2))

        def f(h: Tensor, gain: float = 1.0, up: Tensor = up, down: Tensor = down) -> Tensor:
            return gain * (h @ up).relu() @ down * math.sqrt(2)

        pre, small, post = states
        states = [pre + f(rms_norm(pre)), small + f(rms_norm(small), L**-0.5), rms_norm(post + f(post))]
        for i, h in enumerate(states):
            squares[i].append(h.square().mean().item())
            shares[i].append(torch.nn.functional.cosine_similarity(h, start, dim=-1).mean().item())
    depth = range(L + 1)
    theory = [
        ([1.0 + n for n in depth], [(1 + n) ** -0.5 for n in depth]),
        ([1.0 + n / L for n in depth], [(1 + n / L) ** -0.5 for n in depth]),
        ([1.0 for _n in depth], [2 ** (-n / 2) for n in depth]),
    ]
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.4), layout="constrained")
    for i, name in enumerate(names):
        for ax, measured, line in ((axes[0], squares, theory[i][0]), (axes[1], shares, theory[i][1])):
            ax.plot(depth, line, color=f"C{i}", linewidth=1.2)
            ax.plot(depth[::4], measured[i][::4], "os^"[i], color=f"C{i}", markersize=5, label=name)
    axes[0].set(title=_("残差流的均方"), yscale="log")
    axes[1].set(title=_("与输入的相似度"), xlabel=_("子层数 l"), ylim=(-0.1, 1.05))
    axes[0].legend(frameon=False)
    return fig


def _update(n_layers: int, alpha: float, beta: float, width: int = 32, eta: float = 1e-6) -> float:
    """Return the change of the output in one step of gradient descent, divided by the learning rate."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2 * n_layers, 2, width, width, generator=generator, dtype=torch.float64)
    w = (beta * width**-0.5 * w).requires_grad_()
    x, target = torch.randn(2, 16, width, generator=generator, dtype=torch.float64)

    def run(weights: Tensor) -> Tensor:
        h = x
        for value, output in weights:
            h = deepnorm_residual(h, h @ value @ output, alpha=alpha)
        return h

    before = run(w)
    (grad,) = torch.autograd.grad((before * target).mean(), w)
    with torch.no_grad():
        return ((run(w - eta * grad) - before).norm() / eta).item()


def update(plt: Any, _: Translate) -> Any:
    depths = [2, 4, 8, 16, 32, 64, 128]
    fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    post = [_update(n, 1.0, 1.0) for n in depths]
    deep = [_update(n, *deepnorm_constants(n)) for n in depths]
    ax.plot(depths, post, marker="o", color="C0", label=_("后归一化"))
    ax.plot(depths, deep, marker="s", color="C1", label="DeepNorm")
    ax.set(xscale="log", yscale="log", xlabel=_("层数"), ylabel=_("输出的变化 ÷ 学习率"))
    ax.set_xticks(depths, [str(n) for n in depths])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig


class _Network:
    """A chain input, tanh, hidden, tanh, output whose weights follow a parametrization tuned at width 64."""

    def __init__(self, scales_of: Callable[..., Scales], n: int, rate: float) -> None:
        self.generator = torch.Generator().manual_seed(0)
        shapes = {"input": (8, n), "hidden": (n, n), "output": (n, 4)}
        tuned = {"input": 8**-0.5, "hidden": 64**-0.5, "output": 0.1 * 64**-0.5}
        scales = {role: scales_of(role, width=n, base_width=64) for role in shapes}
        self.weights = [
            (tuned[role] * scales[role].std * torch.randn(shape, generator=self.generator)).requires_grad_()
            for role, shape in shapes.items()
        ]
        self.multiplier = scales["output"].multiplier
        self.adam = torch.optim.Adam(
            [{"params": [w], "lr": rate * scales[role].lr} for w, role in zip(self.weights, shapes, strict=True)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (x @ self.weights[0]).tanh() @ self.weights[1]
        return hidden, self.multiplier * hidden.tanh() @ self.weights[2]

    def train(self, x: Tensor, y: Tensor, steps: int) -> float:
        for _step in range(steps):
            self.adam.zero_grad()
            (self.forward(x)[1] - y).square().mean().backward()
            self.adam.step()
        return (self.forward(x)[1] - y).square().mean().item()


def _data(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 8, generator=generator)
    return x, torch.sin(x @ torch.randn(8, 4, generator=generator))


def coordinates(plt: Any, _: Translate) -> Any:
    widths = [64, 128, 256, 512, 1024]
    x, y = _data(16)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.2), layout="constrained", sharex=True, sharey=True)
    for ax, scales_of, title in ((axes[0], standard_scales, _("标准参数化")), (axes[1], mup_scales, "μP")):
        moved: list[list[float]] = [[], []]
        for n in widths:
            network = _Network(scales_of, n, 0.01)
            before = [h.detach() for h in network.forward(x)]
            network.train(x, y, 1)
            for series, h, start in zip(moved, network.forward(x), before, strict=True):
                series.append((h.detach() - start).square().mean().sqrt().item())
        for i, (series, name) in enumerate(zip(moved, (_("隐藏层"), _("输出")), strict=True)):
            ax.plot(widths, series, marker="os"[i], color=f"C{i}", label=name)
        ax.set(xscale="log", yscale="log", title=title, ylabel=_("变化的均方根"))
        ax.set_xticks(widths, [str(n) for n in widths])
        ax.minorticks_off()
    axes[0].legend(frameon=False)
    axes[1].set_xlabel(_("宽度"))
    return fig


def transfer(plt: Any, _: Translate) -> Any:
    rates = [2.0**e for e in range(-10, -3)]
    x, y = _data(64)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.2), layout="constrained", sharex=True, sharey=True)
    for ax, scales_of, title in ((axes[0], standard_scales, _("标准参数化")), (axes[1], mup_scales, "μP")):
        for i, n in enumerate((64, 192, 576)):
            losses = [min(_Network(scales_of, n, rate).train(x, y, 15), 10.0) for rate in rates]
            ax.plot(rates, losses, marker="os^"[i], color=f"C{i}", label=_("宽 {n}").format(n=n))
            best = min(range(len(rates)), key=losses.__getitem__)
            ax.plot(rates[best], losses[best], marker="o", markersize=12, fillstyle="none", color=f"C{i}")
        ax.set(xscale="log", ylim=(0, 1.0), title=title, ylabel=_("损失"))
    axes[0].legend(frameon=False)
    axes[1].set_xlabel(_("学习率（宽 64 时）"))
    return fig
