"""Figures of algorithms/schedules."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from llm_study.optim.schedule import cosine, cosine_restarts, inverse_sqrt, linear, wsd

Translate = Callable[[str], str]


def shapes(plt: Any, _: Translate) -> Any:
    total, warmup = 1000, 100
    plain = [
        (_("余弦"), partial(cosine, total=total, warmup=warmup, floor=0.1)),
        (_("线性到零"), partial(linear, total=total, warmup=warmup)),
        ("WSD", partial(wsd, total=total, warmup=warmup, decay=200)),
    ]
    others = [
        (_("逆平方根"), partial(inverse_sqrt, warmup=warmup)),
        (_("余弦，三次重启"), partial(cosine_restarts, total=total, warmup=warmup, cycles=3)),
    ]
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 4.4), sharex=True)
    steps = range(total + 1)
    color = 0
    for ax, rows in zip(axes, (plain, others), strict=True):
        for name, schedule in rows:
            ax.plot(steps, [schedule(step) for step in steps], color=f"C{color}", label=name)
            color += 1
        ax.set(ylabel=_("系数"), ylim=(-0.03, 1.08))
        ax.legend(frameon=False, fontsize=8, loc="lower left" if ax is axes[0] else "upper right")
    axes[1].set_xlabel(_("步"))
    fig.tight_layout()
    return fig


def _course(rates: list[float], directions: list[tuple[float, float]], variance: float) -> list[float]:
    """Return the expected loss after each step, for directions of a curvature and a start."""
    moments, losses = [start**2 for _curvature, start in directions], []
    for rate in rates:
        moments = [
            (1 - rate * curvature) ** 2 * m + rate**2 * variance
            for (curvature, _start), m in zip(directions, moments, strict=True)
        ]
        losses.append(sum(0.5 * curvature * m for (curvature, _start), m in zip(directions, moments, strict=True)))
    return losses


def optimal_rates(total: int, cap: float, directions: list[tuple[float, float]], variance: float) -> list[float]:
    """Return the rates of the least final loss, each minimized in turn, which has a closed form."""
    rates, curvatures = [cap] * total, [curvature for curvature, _start in directions]
    for _sweep in range(60):
        weights = [[0.5 * c for c in curvatures]]
        for rate in reversed(rates):
            weights.append([(1 - rate * c) ** 2 * p for c, p in zip(curvatures, weights[-1], strict=True)])
        weights.reverse()
        moments = [start**2 for _curvature, start in directions]
        for t in range(total):
            rows = list(zip(weights[t + 1], curvatures, moments, strict=True))
            best = sum(p * c * m for p, c, m in rows) / sum(p * (c * c * m + variance) for p, c, m in rows)
            rates[t] = min(cap, best)
            moments = [(1 - rates[t] * c) ** 2 * m + rates[t] ** 2 * variance for _p, c, m in rows]
    return rates


def valley(plt: Any, _: Translate) -> Any:
    total, peak, variance = 400, 0.8, 0.1
    directions = [(1.0, 1.0), (0.004, 16.0)]
    rows = [
        (_("常数"), [peak] * total, "C7"),
        (_("余弦"), [peak * cosine(t, total=total) for t in range(total)], "C0"),
        ("WSD", [peak * wsd(t, total=total, warmup=0, decay=80) for t in range(total)], "C2"),
        (_("最优"), optimal_rates(total, peak, directions, variance), "C3"),
    ]
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 4.8), sharex=True)
    for name, rates, color in rows:
        axes[0].plot(rates, color=color, label=name)
        axes[1].plot(_course(rates, directions, variance), color=color, label=name)
    axes[0].set(ylabel=_("学习率"))
    axes[1].set(yscale="log", xlabel=_("步"), ylabel=_("损失的期望"))
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    fig.tight_layout()
    return fig


def equivalent_rates(weights: list[float], rate: float, curvature: float) -> list[float]:
    """Return the schedule whose last iterate is the weighted average of the iterates at a constant rate."""
    shares, left = [], 0.0
    for weight in reversed(weights):
        left = weight + (1 - rate * curvature) * left
        shares.append(rate * left)
    rates, product = [], 1.0
    for share in shares:  # from the last step to the first
        rates.append(share / product)
        product *= 1 - rates[-1] * curvature
    return rates[::-1]


def averaging(plt: Any, _: Translate) -> Any:
    total, decay = 200, 0.98
    uniform = [1 / total] * total
    ema = [(1 - decay) * decay ** (total - 1 - t) for t in range(total)]
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 4.4), sharex=True)
    for ax, weights, title in ((axes[0], uniform, _("全部的平均")), (axes[1], ema, _("指数移动平均，系数 0.98"))):
        for color, curvature in enumerate((0.0, 0.01, 0.1)):
            label = rf"$\eta\lambda = {curvature:g}$"
            ax.plot(equivalent_rates(weights, 1.0, curvature), color=f"C{color}", label=label)
        ax.set(ylabel=_("等价的系数"), title=title, ylim=(-0.03, 1.08))
        ax.legend(frameon=False, fontsize=8, loc="upper right" if weights is uniform else "center left")
    axes[1].set_xlabel(_("步"))
    fig.tight_layout()
    return fig


def batches(plt: Any, _: Translate) -> Any:
    ratio = torch.logspace(-2, 2, 200, dtype=torch.float64)
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 4.8))
    axes[0].plot(ratio, 1 / (1 + 1 / ratio), color="C0", label=_("最优的学习率"))
    axes[0].plot(ratio, ratio, color="C7", linestyle="--", label=_("线性"))
    axes[0].plot(ratio, ratio.sqrt() / 2, color="C1", linestyle=":", label=_("平方根"))
    axes[0].set(
        xscale="log", yscale="log", ylim=(0.005, 3), xlabel=r"$B / B_{noise}$", ylabel=r"$\eta^\star / \eta_{max}$"
    )
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].plot(1 + 1 / ratio, 1 + ratio, color="C2")
    for b in (0.1, 1.0, 10.0):
        axes[1].plot([1 + 1 / b], [1 + b], "o", color="C3")
        axes[1].annotate(rf"$B = {b:g}\,B_{{noise}}$", (1 + 1 / b, 1 + b), xytext=(7, 5), textcoords="offset points")
    axes[1].set(xscale="log", yscale="log", xlim=(0.9, 60), ylim=(0.9, 40))
    axes[1].set(xlabel=r"$S / S_{min}$", ylabel=r"$E / E_{min}$")
    fig.tight_layout()
    return fig
