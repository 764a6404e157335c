"""Figures of algorithms/attention_variants."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_study.functional.attention import attention, sliding_window_mask, softcap

Translate = Callable[[str], str]
QUERY, STORED, MADE, NEUTRAL = "C0", "C1", "C2", "C7"
RECORD = Path(__file__).parents[1] / "data" / "window_time.json"

GLOBAL = math.inf
MODELS = {  # of each layer that has a cache: numbers for each token, and the window
    "Llama 2 7B": 32 * [(2 * 32 * 128, GLOBAL)],
    "Llama 3 8B": 32 * [(2 * 8 * 128, GLOBAL)],
    "DeepSeek-V3": 61 * [(512 + 64, GLOBAL)],
    "Gemma 2 2B": 13 * [(2 * 4 * 256, 4096), (2 * 4 * 256, GLOBAL)],
    "GPT-OSS 120B": 18 * [(2 * 8 * 64, 128), (2 * 8 * 64, GLOBAL)],
    "Mistral 7B": 32 * [(2 * 8 * 128, 4096)],
    "Falcon 7B": 32 * [(2 * 1 * 64, GLOBAL)],
}


def _square(plt: Any, ax: Any, x: float, y: float, color: str, *, width: float = 0.7, dashed: bool = False) -> None:
    from matplotlib.colors import to_rgb

    style = {"linestyle": (0, (2, 1.5))} if dashed else {}
    face = (*to_rgb(color), 0.0 if dashed else 0.35)
    ax.add_patch(
        plt.Rectangle((x - width / 2, y - 0.28), width, 0.56, facecolor=face, edgecolor=color, linewidth=1.2, **style)
    )


def _lines(ax: Any, pairs: list[tuple[float, float]], top: float, bottom: float) -> None:
    for above, below in pairs:
        ax.plot([above, below], [top, bottom], color=NEUTRAL, linewidth=1)


def sharing(plt: Any, _: Translate) -> Any:
    H = 8
    fig, axes = plt.subplots(2, 2, figsize=(5.4, 3.9), layout="constrained")
    grouped = [(_("多头，K = 8"), 8), (_("分组查询，K = 2"), 2), (_("多查询，K = 1"), 1)]
    for ax, (title, K) in zip(axes.flat, grouped, strict=False):
        group = H // K
        centers = [g * group + (group - 1) / 2 for g in range(K)]
        _lines(ax, [(h, centers[h // group]) for h in range(H)], 1.72, 0.28)
        for x in centers:
            _square(plt, ax, x, 0, STORED)
        ax.set_title(title)
    last = axes.flat[3]
    _lines(last, [(h, h) for h in range(H)], 1.72, 1.28)
    _lines(last, [(h, 3.5) for h in range(H)], 0.72, 0.28)
    for h in range(H):
        _square(plt, last, h, 1, MADE, dashed=True)
    _square(plt, last, 3.5, 0, STORED, width=1.6)
    last.set_title(_("潜在注意力"))
    for ax in axes.flat:
        for h in range(H):
            _square(plt, ax, h, 2, QUERY)
        ax.set(xlim=(-0.7, 7.7), ylim=(-1.05, 2.5), aspect="equal")
        ax.axis("off")
    axes[1, 0].text(3.5, -0.72, _("缓存：实心的下排"), ha="center", va="center")
    axes[1, 1].text(3.5, -0.72, _("虚线：现算，不存"), ha="center", va="center")
    return fig


def _influence(layers: int, T: int, W: int) -> torch.Tensor:
    """Return how much the last output after each number of layers depends on each input, ``(layers, T)``."""
    generator = torch.Generator().manual_seed(0)
    mask, rows = sliding_window_mask(T, window=W), []
    for n in range(1, layers + 1):
        x = torch.randn(1, 1, T, 8, dtype=torch.float64, generator=generator).requires_grad_()
        y = x
        for _ in range(n):
            y = attention(y, y, y, mask=mask, scale=0.2)
        (grad,) = torch.autograd.grad(y[0, 0, -1].sum(), x)
        rows.append(grad[0, 0].norm(dim=-1))
    return torch.stack(rows)


def receptive(plt: Any, _: Translate) -> Any:
    layers, T, W = 6, 24, 4
    strength = _influence(layers, T, W)
    logs = strength.log10().masked_fill(strength == 0, float("nan"))
    positions = list(range(-T + 1, 1))
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.2), layout="constrained", sharex=True)
    for n in range(layers):
        for position, value in zip(positions, logs[n].tolist(), strict=True):
            if not math.isnan(value):
                shade = max(0.12, 1 + value / 5)
                above.add_patch(plt.Rectangle((position - 0.45, n + 0.55), 0.9, 0.9, color=QUERY, alpha=min(1, shade)))
    edge = [-n * (W - 1) - 0.5 for n in range(1, layers + 1)]
    above.step(
        [*edge, edge[-1]],
        [n + 0.5 for n in range(layers + 1)],
        where="pre",
        color=NEUTRAL,
        linestyle="--",
        linewidth=1.2,
    )
    above.set(ylim=(0.4, layers + 0.6), ylabel=_("层数"), title=_("最后一个位置依赖于谁"))
    below.plot(positions, strength[-1].masked_fill(strength[-1] == 0, float("nan")).tolist(), marker="o", color=QUERY)
    below.axvline(edge[-1], color=NEUTRAL, linestyle="--", linewidth=1.2)
    below.set(
        yscale="log", xlabel=_("输入的相对位置"), ylabel=_("梯度的范数"), title=_("六层之后"), xlim=(-T + 0.3, 0.7)
    )
    below.set_yticks([1, 1e-2, 1e-4], ["1", "0.01", "0.0001"])
    below.minorticks_off()
    return fig


def softcap_curve(plt: Any, _: Translate) -> Any:
    z = torch.linspace(-150, 150, 301)
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 4.8), layout="constrained", sharex=True)
    above.plot(z.tolist(), z.tolist(), color=NEUTRAL, linestyle=":", label=_("不设上限"))
    for cap, color in ((50.0, "C0"), (30.0, "C1")):
        y = softcap(z, cap)
        above.plot(z.tolist(), y.tolist(), color=color, label=f"c = {cap:.0f}")
        below.plot(z.tolist(), (1 - (y / cap) ** 2).tolist(), color=color)
    above.set(ylim=(-75, 75), ylabel=_("上限之后的分数"), title=_("软上限"))
    below.set(ylim=(0, 1.05), xlabel=_("分数"), ylabel=_("导数"), title=_("导数"))
    above.legend(frameon=False)
    return fig


def cache(plt: Any, _: Translate) -> Any:
    lengths = [2**n for n in range(10, 18)]
    fig, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    for (name, layers), marker in zip(MODELS.items(), "os^vDPX", strict=True):
        sizes = [2 * sum(n * min(S, window) for n, window in layers) / 2**30 for S in lengths]
        ax.plot(lengths, sizes, marker=marker, markersize=4, label=name)
    ax.set(xscale="log", yscale="log", xlabel=_("上下文长度"), ylabel=_("缓存（GiB）"), title=_("键值缓存"))
    ax.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
    ax.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    ax.set_ylim(0.006, 600)
    return fig


def time(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    names = {
        "softcap_attention": (_("软上限"), "v"),
        "sink_attention": (_("注意力汇"), "D"),
        "attention": (_("窗口，用掩码"), "o"),
        "causal_attention": (_("因果，无窗口"), "s"),
        "sliding_window_attention": (_("窗口，分块"), "^"),
    }
    fig, ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")
    for name, (label, marker) in names.items():
        ax.plot(record["lengths"], record["milliseconds"][name], marker=marker, label=label)
    ax.set(xscale="log", yscale="log", xlabel=_("长度 T"), ylabel=_("毫秒"), title=_("实测的时间"))
    ax.set_xticks(record["lengths"], [str(t) for t in record["lengths"]])
    ax.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig
