"""Figures of general/transformer_1."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional.attention import (
    attention_reference,
    attention_weights,
    causal_mask,
    merge_heads,
    padding_mask,
    prefix_mask,
    softmax_jacobian,
    split_heads,
)
from llm_study.nn.attention import MultiHeadAttention

Translate = Callable[[str], str]
MIX, LOCAL, NEUTRAL = "C0", "C1", "C7"
RECORD = Path(__file__).parents[1] / "data" / "attention_time.json"


def _box(ax: Any, x: float, y: float, text: str, color: str = NEUTRAL, width: float = 3.1) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "linewidth": 1.2}
    from matplotlib.patches import FancyBboxPatch

    ax.add_patch(
        FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, facecolor=(*_rgb(color), 0.22), edgecolor=color, **style)
    )
    ax.text(x, y, text, ha="center", va="center")


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def _arrow(ax: Any, *points: tuple[float, float]) -> None:
    xs, ys = zip(*points, strict=True)
    ax.plot(xs[:-1], ys[:-1], color=NEUTRAL, linewidth=1.2, solid_capstyle="round")
    ax.annotate(
        "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": NEUTRAL, "linewidth": 1.2, "shrinkA": 0}
    )


def _stack(ax: Any, x: float, boxes: list[tuple[str, str]], bottom: float, residual: float) -> float:
    """Draw sublayers above each other, each followed by "add and normalize" with its residual arrow; return the top."""
    y = bottom
    for text, color in boxes:
        _arrow(ax, (x, y - 0.75), (x, y - 0.3))
        _box(ax, x, y, text, color)
        _arrow(ax, (x, y + 0.3), (x, y + 0.55))
        _box(ax, x, y + 0.85, boxes_norm(ax), NEUTRAL)
        _arrow(
            ax,
            (x, y - 0.55),
            (x + residual, y - 0.55),
            (x + residual, y + 0.85),
            (x + 1.55 * (1 if residual > 0 else -1), y + 0.85),
        )
        y += 1.9
    return y - 1.05


def boxes_norm(ax: Any) -> str:
    return ax.norm_text


def architecture(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(6.2, 7.2))
    ax.norm_text = _("相加与归一化")
    left, right, first = 1.6, 6.0, 2.0
    for x, words, side in ((left, _("源句的词嵌入"), -1), (right, _("译文的词嵌入（右移一位）"), 1)):
        _box(ax, x, 0, words, width=4.0)
        _arrow(ax, (x, 0.3), (x, first - 0.75))
        ax.text(x + side * 0.35, 0.78, _("＋ 位置编码"), ha="left" if side > 0 else "right", va="center")
    top = _stack(ax, left, [(_("自注意力"), MIX), (_("前馈网络"), LOCAL)], first, -1.85)
    cross = first + 1.9
    end = _stack(ax, right, [(_("因果自注意力"), MIX), (_("交叉注意力"), MIX), (_("前馈网络"), LOCAL)], first, 1.85)
    _arrow(ax, (left, top + 0.3), (left, top + 0.75), (3.8, top + 0.75), (3.8, cross), (right - 1.55, cross))
    ax.text((left + 3.8) / 2, top + 1.0, _("键与值"), ha="center", va="center")
    for x, low, high, side in ((left, first - 0.95, top + 0.5, -1), (right, first - 0.95, end + 0.5, 1)):
        ax.add_patch(
            plt.Rectangle((x - 2.05, low), 4.1, high - low, fill=False, edgecolor=NEUTRAL, linestyle=(0, (4, 3)))
        )
        ax.text(x + side * 2.05, high + 0.22, "× N", ha="left" if side < 0 else "right", va="center")
    for y, words in ((end + 1.25, _("线性层")), (end + 2.2, "softmax")):
        _box(ax, right, y, words)
    _arrow(ax, (right, end + 0.3), (right, end + 0.95))
    _arrow(ax, (right, end + 1.55), (right, end + 1.9))
    _arrow(ax, (right, end + 2.5), (right, end + 2.95))
    ax.text(right, end + 3.15, _("下一个词的概率"), ha="center", va="center")
    ax.text(left, -0.75, _("编码器"), ha="center", weight="bold")
    ax.text(right, -0.75, _("解码器"), ha="center", weight="bold")
    ax.set(xlim=(-0.8, 8.3), ylim=(-1, end + 3.4), aspect="equal")
    ax.axis("off")
    return fig


def scale(plt: Any, _: Translate) -> Any:
    widths, samples, n_keys = [4, 16, 64, 256, 1024], 400, 16
    generator = torch.Generator().manual_seed(0)
    scales = {_("不缩放"): lambda d: 1.0, _("除以 √d"): lambda d: d**-0.5, _("除以 d"): lambda d: 1 / d}
    largest: dict[str, list[float]] = {name: [] for name in scales}
    norms: dict[str, list[float]] = {name: [] for name in scales}
    for d in widths:
        q = torch.randn(samples, 1, 1, d, generator=generator)
        k = torch.randn(samples, 1, n_keys, d, generator=generator)
        for name, factor in scales.items():
            p = attention_weights(q, k, scale=factor(d))[:, 0, 0]
            largest[name].append(p.amax(-1).mean().item())
            norms[name].append(torch.linalg.matrix_norm(softmax_jacobian(p)).mean().item())
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), layout="constrained")
    for ax, series, title in ((axes[0], largest, _("最大的权重")), (axes[1], norms, _("雅可比矩阵的范数"))):
        for (name, values), marker in zip(series.items(), "os^", strict=True):
            ax.plot(widths, values, marker=marker, label=name)
        ax.set(xscale="log", xticks=widths, xlabel=_("头宽 d"), title=title, ylim=(0, None))
        ax.set_xticks(widths, [str(d) for d in widths])
        ax.minorticks_off()
    axes[0].legend(frameon=False)
    return fig


def masks(plt: Any, _: Translate) -> Any:
    t = 6
    panels = {
        _("因果"): causal_mask(t),
        _("填充，长度 4"): padding_mask(torch.tensor([4]), t)[0, 0].expand(t, t),
        _("前缀，长度 3"): prefix_mask(torch.tensor([3]), t)[0, 0],
    }
    fig, axes = plt.subplots(1, 3, figsize=(5.2, 2.3), layout="constrained", sharey=True)
    for ax, (title, mask) in zip(axes, panels.items(), strict=True):
        for i, j in mask.nonzero().tolist():
            ax.add_patch(plt.Rectangle((j - 0.45, i - 0.45), 0.9, 0.9, color=MIX))
        ax.set(xlim=(-0.6, t - 0.4), ylim=(t - 0.4, -0.6), aspect="equal", title=title, xlabel=_("键 j"))
        ax.set(xticks=range(t), yticks=range(t))
    axes[0].set_ylabel(_("查询 i"))
    return fig


def shapes(plt: Any, _: Translate) -> Any:
    B, T, D, H = 2, 5, 12, 3
    layer, x = MultiHeadAttention(D, H), torch.randn(B, T, D)
    q = layer.q_proj(x)
    heads = split_heads(q, H)
    mixed = attention_reference(heads, heads, heads)
    steps = [  # title, shape, whether the heads are told apart
        ("X", x.shape, False),
        (_("投影"), q.shape, True),
        (_("切分"), heads.shape, True),
        (_("注意力"), mixed.shape, True),
        (_("合并"), merge_heads(mixed).shape, True),
        (_("输出投影"), layer.o_proj(merge_heads(mixed)).shape, False),
    ]
    fig, ax = plt.subplots(figsize=(5.4, 2.1))
    for n, (title, shape, coloured) in enumerate(steps):
        x0, apart = 16 * n, 3.2 if len(shape) == 4 else 0.0
        for h in range(H):
            colour = f"C{h}" if coloured else NEUTRAL
            left, low = (x0 + 4 - 0.0, -apart * (h - 1) * 2) if apart else (x0 + 4 * h, 0.0)
            for i in range(T):
                for c in range(D // H):
                    ax.add_patch(plt.Rectangle((left + c, low + i - 2), 0.86, 0.86, color=colour, alpha=0.75))
        ax.text(x0 + 6, 10.6, title, ha="center", va="center")
        ax.text(x0 + 6, -11.2, "×".join(map(str, shape)), ha="center", va="center")
        if n:
            ax.annotate("", (x0 - 0.4, 0.5), (x0 - 3.6, 0.5), arrowprops={"arrowstyle": "-|>", "color": NEUTRAL})
    ax.set(xlim=(-1, 16 * len(steps) - 3), ylim=(-12, 12), aspect="equal")
    ax.axis("off")
    return fig


def _flops(T: int, D: int, H: int) -> tuple[int, int]:
    """Count the FLOPs of projections and of mixing, on tensors without data."""
    with torch.device("meta"):
        layer, x = MultiHeadAttention(D, H), torch.empty(1, T, D)
        with FlopCounterMode(display=False) as counter:
            q, k, v = (split_heads(proj(x), H) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
            before = counter.get_total_flops()
            heads = attention_reference(q, k, v)
            mixing = counter.get_total_flops() - before
            layer.o_proj(merge_heads(heads))
        return counter.get_total_flops() - mixing, mixing


def cost(plt: Any, _: Translate) -> Any:
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.8), layout="constrained")
    D, lengths = 512, [128, 256, 512, 1024, 2048, 4096]
    counts = [_flops(T, D, H=8) for T in lengths]
    for label, index, marker in ((_("四个投影"), 0, "s"), (_("分数与加权和"), 1, "o")):
        values = [c[index] / T / 1e6 for c, T in zip(counts, lengths, strict=True)]
        above.plot(lengths, values, marker=marker, label=label)
    above.axvline(2 * D, color=NEUTRAL, linestyle=":")
    above.set(ylabel=_("百万次运算 / 词元"), title=_("计算量"))
    record = json.loads(RECORD.read_text("utf-8"))
    names = {"attention_reference": "^", "attention": "o", "causal_attention": "s"}
    for name, marker in names.items():
        below.plot(record["lengths"], record["milliseconds"][name], marker=marker, label=name)
    below.set(
        ylabel=_("毫秒"), title=_("实测的时间"), yscale="log", yticks=[1, 10, 100], yticklabels=["1", "10", "100"]
    )
    for ax, ticks in ((above, lengths), (below, record["lengths"])):
        ax.set(xscale="log", xlabel=_("长度 T"))
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False)
    return fig
