"""Figures of algorithms/position_encodings."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.functional.positions import alibi_slopes, rope_frequencies, t5_buckets

Translate = Callable[[str], str]
QUERY, KEY, NEUTRAL = "C0", "C1", "C7"


def rotation(plt: Any, _: Translate) -> Any:
    fig, axes = plt.subplots(1, 2, figsize=(5.4, 2.9), layout="constrained")
    for ax, (m, n) in zip(axes, ((5, 2), (10, 7)), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, edgecolor=NEUTRAL, linewidth=0.8, linestyle=(0, (4, 3))))
        for position in range(12):
            x, y = _at(position)
            ax.plot(x, y, ".", color=NEUTRAL, markersize=3)
        for position, color, name in ((m, QUERY, _("查询")), (n, KEY, _("键"))):
            x, y = _at(position)
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8})
            ax.text(1.36 * x, 1.3 * y, f"{name} {position}", ha="center", va="center", color=color)
        arc = torch.linspace(math.radians(30 * n), math.radians(30 * m), 40)
        ax.plot(0.3 * arc.cos(), 0.3 * arc.sin(), color=NEUTRAL, linewidth=1.2)
        middle = math.radians(15 * (m + n))
        ax.text(0.55 * math.cos(middle), 0.55 * math.sin(middle), "90°", ha="center", va="center")
        ax.set(xlim=(-1.75, 1.75), ylim=(-1.5, 1.5), aspect="equal", title=_("位置 {m} 与 {n}").format(m=m, n=n))
        ax.axis("off")
    return fig


def _at(position: int) -> tuple[float, float]:
    return math.cos(math.radians(30 * position)), math.sin(math.radians(30 * position))


def biases(plt: Any, _: Translate) -> Any:
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.4), layout="constrained")
    distance = torch.arange(0, 33)
    for head, slope in enumerate(alibi_slopes(8).tolist(), 1):
        above.plot(distance, -slope * distance, color=QUERY, alpha=1.1 - head / 9, linewidth=1.3)
        if head in (1, 2, 3, 4, 5, 8):
            x = min(32.4, 8.3 / slope + 0.6)
            above.text(x, max(-slope * 32, -8.3), str(head), ha="left", va="center")
    above.set(xlim=(0, 35), ylim=(-9, 0.3), xlabel=_("距离"), ylabel=_("偏置"), title="ALiBi")
    distance = torch.arange(0, 161)
    below.step(distance, t5_buckets(-distance), where="post", color=KEY)
    below.set(xlim=(0, 160), ylim=(-0.5, 16), xlabel=_("距离"), ylabel=_("桶号"), title="T5", yticks=range(0, 16, 3))
    return fig


def wavelengths(plt: Any, _: Translate) -> Any:
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 6.2), layout="constrained")
    cosines = (rope_frequencies(64)[:, None] * torch.arange(128)).cos()
    image = above.imshow(cosines, aspect="auto", cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    fig.colorbar(image, ax=above, ticks=[-1, 0, 1])
    above.set(xlabel=_("距离"), ylabel=_("第几对"), title=_("余弦"))
    for base, name, style in ((1e4, "10000", "-"), (5e5, "500000", "--")):
        waves = 2 * math.pi / rope_frequencies(128, base=base)
        below.plot(range(64), waves, style, label=_("基数 {base}").format(base=name), color=QUERY)
    below.axhline(4096, color=KEY, linestyle=":")
    below.text(1, 4096 * 1.25, "4096", ha="left", va="bottom", color=KEY)
    below.set(yscale="log", xlabel=_("第几对"), ylabel=_("波长"), title=_("转一圈要走多远"), xlim=(0, 63))
    below.set_yticks([10, 1000, 100_000], ["10", "1000", "100000"])
    below.minorticks_off()
    below.legend(frameon=False)
    return fig


def _mean_score(distances: Tensor, base: float, d: int) -> Tensor:
    """Mean of the cosines: the score of a query that equals the key, relative to distance 0."""
    return (distances[:, None].double() * rope_frequencies(d, base=base).double()).cos().mean(-1)


def decay(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    distances = torch.logspace(0, 4, 400).round().unique()
    for base, name, color in ((1e4, "10000", QUERY), (5e5, "500000", KEY)):
        exact = _mean_score(distances, base, 128)
        ax.plot(distances, exact, color=color, linewidth=1.2, label=_("基数 {base}").format(base=name))
        ax.plot(distances, 1 - (distances.log() + 0.5772) / math.log(base), color=color, linestyle="--", linewidth=1)
    ax.axhline(0, color=NEUTRAL, linewidth=0.8)
    ax.set(xscale="log", xlabel=_("距离"), ylabel=_("平均分数"), ylim=(-0.2, 1.02), xlim=(1, 10_000))
    ax.set_xticks([1, 10, 100, 1000, 10_000], ["1", "10", "100", "1000", "10000"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig
