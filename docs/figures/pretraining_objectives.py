"""Figures of general/pretraining_objectives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.data import objectives
from llm_study.functional.attention import causal_mask, prefix_mask

Translate = Callable[[str], str]
SCORED, OTHER, THIRD, NEUTRAL = "C0", "C1", "C2", "C7"
WORDS = ["the", "cat", "that", "chased", "the", "ball", "got", "tired", "and", "fell", "asleep"]
NAMES = ["[M]", "<X>", "<Y>", "<Z>", "<PRE>", "<SUF>", "<MID>", *WORDS]
IDS = torch.arange(7, 18)


def _row(ax: Any, y: float, tokens: list[str], *, scored: list[bool] | None = None, outlined: int = 0) -> None:
    """Draw one row of tokens: gray where they are read, colored where they are scored."""
    for i, token in enumerate(tokens):
        if not token:
            continue
        color = SCORED if scored is not None else NEUTRAL
        if scored is None or scored[i]:
            edge = OTHER if i < outlined else "none"
            ax.add_patch(_rectangle(ax, i - 0.46, y - 0.36, 0.92, 0.72, color, edge))
        ax.text(i, y, token, ha="center", va="center", fontsize=6.2)


def _rectangle(ax: Any, x: float, y: float, width: float, height: float, color: str, edge: str) -> Any:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=(*to_rgb(color), 0.28), edgecolor=edge, linewidth=1.3)


def _names(row: Tensor) -> list[str]:
    return ["" if token < 0 else NAMES[token] for token in row.tolist()]


def turns(plt: Any, _: Translate) -> Any:
    masked = objectives.mask_tokens(
        IDS, mask_id=0, vocab_size=18, rate=0.3, generator=torch.Generator().manual_seed(83)
    )
    fake = IDS.clone()
    fake[[2, 7]] = torch.tensor([16, 10])  # "fell" for "that"; "chased" for "tired"
    cut = torch.zeros(11).bool()
    cut[[3, 4, 7]] = True
    spans = objectives.corrupt_spans(IDS, cut, sentinels=[1, 2, 3])
    prefix = objectives.prefix_lm(IDS[None], lengths=torch.tensor([5]))
    moved = objectives.psm(IDS[:3], IDS[3:6], IDS[6:], tokens=objectives.MiddleTokens(prefix=4, suffix=5, middle=6))
    causal, middle = objectives.causal(IDS), objectives.causal(moved)
    same = [_("是"), _("否")]
    rows: list[tuple[str, list[str], list[str], int]] = [
        (_("因果"), _names(causal.ids), _names(causal.targets), 0),
        (_("掩码"), _names(masked.ids), _names(masked.targets), 0),
        (_("替换检测：是原来的词吗"), _names(fake), [same[int(changed)] for changed in fake != IDS], 0),
        (_("片段破坏：编码器读，解码器写"), _names(spans.ids), _names(spans.targets), 0),
        (_("前缀，框内双向可见"), _names(prefix.ids[0]), _names(prefix.targets[0]), 5),
        (_("中间填充"), _names(middle.ids), _names(middle.targets), 0),
    ]
    fig, axes = plt.subplots(len(rows), 1, figsize=(5.4, 6.2), layout="constrained")
    for ax, (title, inputs, targets, outlined) in zip(axes, rows, strict=True):
        _row(ax, 1, inputs, outlined=outlined)
        _row(ax, 0, targets, scored=[bool(token) for token in targets])
        ax.set(xlim=(-0.6, 12.6), ylim=(-0.5, 1.5))
        ax.set_title(title, fontsize=9, loc="left")
        ax.axis("off")
    return fig


def masks(plt: Any, _: Translate) -> Any:
    t, p = 8, 4
    prefix = prefix_mask(torch.tensor([p]), t)[0, 0]
    panels = {
        _("双向"): torch.ones(t, t).bool(),
        _("因果"): causal_mask(t),
        _("前缀，长度 4"): prefix,
        _("编码器-解码器"): prefix,
    }
    fig, axes = plt.subplots(2, 2, figsize=(4.6, 4.9), layout="constrained", sharex=True, sharey=True)
    for ax, (title, mask) in zip(axes.flat, panels.items(), strict=True):
        two = ax is axes[1, 1]
        for i, j in mask.nonzero().tolist():
            color = SCORED if not two or i >= p > j else OTHER if i < p else THIRD
            ax.add_patch(plt.Rectangle((j - 0.45, i - 0.45), 0.9, 0.9, color=color, linewidth=0))
        ax.set(xlim=(-0.6, t - 0.4), ylim=(t - 0.4, -0.6), aspect="equal", title=title)
        ax.set(xticks=range(0, t, 2), yticks=range(0, t, 2))
    for color, words in ((OTHER, _("编码器")), (SCORED, _("交叉")), (THIRD, _("解码器"))):
        axes[1, 1].plot([], [], "s", color=color, label=words)
    axes[1, 1].legend(loc="upper right", fontsize=7.5, handletextpad=0.2, framealpha=0)
    for ax in axes[1]:
        ax.set_xlabel(_("被看的位置 j"))
    for ax in axes[:, 0]:
        ax.set_ylabel(_("提问的位置 i"))
    return fig


def trust(plt: Any, _: Translate) -> Any:
    V, p = 30_000, torch.logspace(-7, 0, 200)
    cases = [
        (_("10% 保留，10% 随机"), 0.1, 0.1, "-"),
        (_("5% 保留，15% 随机"), 0.05, 0.15, "--"),
        (_("20% 保留"), 0.2, 0.0, "-."),
        (_("20% 随机"), 0.0, 0.2, ":"),
    ]
    fig, ax = plt.subplots(figsize=(5.2, 3.5), layout="constrained")
    for n, (words, keep, swap, style) in enumerate(cases):
        ax.plot(p, keep * p / (keep * p + swap / V), style, color=f"C{n}", label=words)
    ax.axvline(1 / V, color=NEUTRAL, linewidth=1, linestyle=":")
    ax.text(1.25 / V, 0.06, "1/V", color=NEUTRAL)
    ax.set(xscale="log", ylim=(-0.04, 1.04), xlabel=_("上下文给看到的词的概率 π(v)"), ylabel=_("没有被换过的把握 c(v)"))
    ax.legend(fontsize=8, loc="center right")
    return fig


def spans(plt: Any, _: Translate) -> Any:
    source, counts = torch.Generator().manual_seed(0), torch.zeros(12)
    for _draw in range(100):
        cut = objectives.random_spans(2000, generator=source).int()
        edges = cut.diff(prepend=torch.tensor([0]), append=torch.tensor([0])).nonzero().flatten().reshape(-1, 2)
        counts += torch.bincount(edges[:, 1] - edges[:, 0], minlength=200)[1:13]
    lengths = torch.arange(1, 13)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), layout="constrained")
    axes[0].plot(lengths, (2 / 3) ** (lengths - 1) / 3, color=SCORED, label=_("片段，平均 3"))
    axes[0].plot(lengths, counts / (100 * 100), "o", color=SCORED, markersize=4)
    axes[0].plot(lengths, 0.85 * 0.15 ** (lengths - 1), color=OTHER, linestyle="--", label=_("逐个独立"))
    axes[0].set(xlabel=_("片段的长度"), ylabel=_("概率"), ylim=(-0.03, 0.9))
    r = torch.linspace(0.02, 0.6, 100)
    axes[1].plot(r, r + r / 3, color=SCORED, label=_("目标，平均 3"))
    axes[1].plot(r, r + r * (1 - r), color=OTHER, linestyle="--", label=_("目标，逐个独立"))
    axes[1].plot(r, 1 - r + r / 3, color=THIRD, linestyle="-.", label=_("输入，平均 3"))
    axes[1].axvline(0.15, color=NEUTRAL, linewidth=1, linestyle=":")
    axes[1].set(xlabel=_("剪掉的比例 r"), ylabel=_("占原文的比例"), ylim=(0, 1.05))
    for ax in axes:
        ax.legend(fontsize=8)
    return fig
