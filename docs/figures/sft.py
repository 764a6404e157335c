"""Figures of finetuning/sft."""

import math
from collections.abc import Callable
from typing import Any

import torch

from llm_study.data.packing import best_fit_decreasing

Translate = Callable[[str], str]
TOKENS = ["[start]", "user", "⏎", "1", "+", "1", "?", "[end]", "⏎", "[start]", "assistant", "⏎", "2", "[end]", "⏎"]
OWN = (12, 13)


def _cell(ax: Any, x: float, y: float, text: str, color: str, fill: float) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), 1, 0.8, facecolor=(*to_rgb(color), fill), edgecolor=color, linewidth=1))
    ax.text(x + 0.5, y + 0.4, text, ha="center", va="center", fontsize=7)


def targets(plt: Any, _: Translate) -> Any:
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 3.2), layout="constrained")
    half = 8
    for ax, columns in zip(axes, (range(half), range(half, len(TOKENS))), strict=True):
        for column, t in enumerate(columns):
            own, next_own = t in OWN, t + 1 in OWN
            _cell(ax, column, 1, TOKENS[t], "C1" if own else "C7", 0.35 if own else 0.1)
            _cell(ax, column, 0, TOKENS[t + 1] if next_own else "", "C1" if next_own else "C7", 0.35 * next_own)
            ax.text(column + 0.5, 1.95, str(t + 1), ha="center", va="bottom", fontsize=7)
        ax.text(-0.15, 1.4, _("词元"), ha="right", va="center", fontsize=8)
        ax.text(-0.15, 0.4, _("目标"), ha="right", va="center", fontsize=8)
        ax.set(xlim=(-1, half + 0.1), ylim=(-0.1, 2.4))
        ax.axis("off")
    return fig


def _ratio(batch: int) -> float:
    """Return the mean of the ratio for the two kinds of conversations of the page, by trying all numbers of each."""
    total = 0.0
    for k in range(batch + 1):
        ratio = (8 * k + 20 * (batch - k)) / (2 * k + 20 * (batch - k))
        total += math.comb(batch, k) / 2**batch * ratio
    return total


def means(plt: Any, _: Translate) -> Any:
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    by_token, by_chat = 28 / 22, 2.5
    slope = (by_token * 81 - 54) / 11**2  # Var n = 81, Cov(S, n) = 54, E n = 11
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    ax.axhline(by_chat, color="C2", linewidth=1, label=_("按对话平均"))
    ax.axhline(by_token, color="C1", linewidth=1, label=_("按词元平均"))
    ax.plot(sizes, [by_token + slope / B for B in sizes], color="C7", linestyle="--", label=_("一阶近似"))
    ax.plot(sizes, [_ratio(B) for B in sizes], color="C0", marker="o", markersize=4, label=_("小批比值的期望"))
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    ax.set(title=_("“平均损失”的三种含义"), xlabel=_("一批里的对话数 B"), ylabel=_("期望"))
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return fig


def padding(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 2, 4, 8, 16, 32, 64]
    harmonic = [1 - 1 / sum(1 / k for k in range(1, B + 1)) for B in sizes]
    uniform = [1 - (B + 1) / (2 * B) for B in sizes]
    u = torch.rand(64 * 600, generator=generator, dtype=torch.float64)
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    series = ((-u.log(), harmonic, _("填充到最长，指数分布"), "C0"), (u, uniform, _("填充到最长，均匀分布"), "C2"))
    for lengths, line, name, color in series:
        ax.plot(sizes, line, color=color, label=name)
        found = []
        for B in sizes:
            x = lengths.view(-1, B)
            found.append(1 - (x.sum() / (B * x.amax(dim=1).sum())).item())
        ax.plot(sizes, found, color=color, linestyle="none", marker="o", markersize=4)
    counts = (-200 * u[:6400].log()).long().clamp(1, 2048).tolist()
    rows = best_fit_decreasing(counts, 2048)
    ax.axhline(1 - sum(counts) / (2048 * len(rows)), color="C1", linestyle="--", label=_("打包"))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, labels=[str(B) for B in sizes])
    ax.set(title=_("多少是填充"), xlabel=_("一批里的对话数 B"), ylabel=_("填充的比例"), ylim=(-0.03, 0.9))
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return fig


def blocks(plt: Any, _: Translate) -> Any:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    lengths, T = (6, 4, 3), 16
    fig, ax = plt.subplots(figsize=(4.8, 4.4), layout="constrained")
    start = 0
    for number, n in enumerate(lengths):
        color = f"C{number}"
        for t in range(n):
            for s in range(t + 1):
                corner = (start + s, start + t)
                ax.add_patch(Rectangle(corner, 1, 1, facecolor=(*to_rgb(color), 0.35), edgecolor=color, linewidth=0.6))
            ax.text(T + 0.6, start + t + 0.5, str(t), ha="center", va="center", fontsize=8)
        start += n
    for t in range(start, T):
        ax.text(T + 0.6, t + 0.5, "–", ha="center", va="center", fontsize=8)
    ax.add_patch(Rectangle((0, 0), T, T, facecolor="none", edgecolor="C7", linewidth=1))
    ax.text(T + 0.6, -0.3, _("位置"), ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(-0.2, T + 1.6), ylim=(T + 0.2, -1.2), aspect="equal", xticks=[], yticks=[])
    ax.set(title=_("谁能看到谁"), xlabel=_("键"), ylabel=_("查询"))
    for side in ax.spines.values():
        side.set_visible(False)
    return fig
