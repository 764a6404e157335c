"""Figures of general/lm_basics."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_study.core.roofline import (
    kv_bytes_per_token,
    model_flops_utilization,
    parameters,
    published,
    roofline_seconds,
)

Translate = Callable[[str], str]
NEUTRAL = "C7"
DATA = Path(__file__).parents[1] / "data"
KINDS = ("theory", "architecture", "model", "alignment")


def year(date: str) -> float:
    """Return a date such as 2017-06 as a number: the middle of the month, or of the year where only that is known."""
    return int(date[:4]) + ((int(date[5:7]) - 0.5) / 12 if len(date) > 4 else 0.5)


def training_compute(model: dict[str, Any]) -> float | None:
    """Return the FLOPs of a training: as stated, or 6 for each active parameter and token; None if neither is known."""
    if "flops" in model:
        return float(model["flops"])
    return 6.0 * model.get("active", model["parameters"]) * model["tokens"] if "tokens" in model else None


def line(t: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line."""
    slope = (t - t.mean()) @ (y - y.mean()) / ((t - t.mean()) @ (t - t.mean()))
    return float(y.mean() - slope * t.mean()), float(slope)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels down where they would overlap, and the whole stack up by half of what it was pushed."""
    placed: list[list[float]] = []  # stacks of labels that touch: [sum of wishes less own offsets, number]
    for height in sorted(heights, reverse=True):
        placed.append([height, 1])
        while len(placed) > 1 and _bottom(placed[-2], gap) - _top(placed[-1], gap) < gap:
            total, count = placed.pop()
            placed[-1] = [placed[-1][0] + total, placed[-1][1] + count]
    return [_top(stack, gap) - gap * i for stack in placed for i in range(int(stack[1]))]


def _top(stack: list[float], gap: float) -> float:
    return stack[0] / stack[1] + gap * (stack[1] - 1) / 2


def _bottom(stack: list[float], gap: float) -> float:
    return stack[0] / stack[1] - gap * (stack[1] - 1) / 2


def names(_: Translate) -> dict[str, str]:
    """Return the events that are no proper names, in the language of the page."""
    return {
        "information theory": _("信息论"),
        "neural language model": _("神经语言模型"),
        "n-gram model of 2 trillion tokens": _("大规模 n 元模型"),
        "attention": _("注意力"),
        "subwords by BPE": _("BPE 子词"),
        "human preferences": _("人的偏好"),
        "scaling laws": _("缩放定律"),
        "chain of thought": _("思维链"),
    }


def height(date: str) -> float:
    """Return where a date stands: down from 0, a year from 2013 on is 1, one before is much less."""
    when = year(date)
    return 2013 - when if when >= 2013 else 2 + (1945 - when) / 34 * 1.0


def timeline(plt: Any, _: Translate) -> Any:
    events = json.loads((DATA / "timeline.json").read_text("utf-8"))["events"]
    titles = [_("理论与数据"), _("架构"), _("模型"), _("对齐与使用")]
    known = names(_)
    fig, ax = plt.subplots(figsize=(5.4, 7.6), layout="constrained")
    for lane, (kind, title) in enumerate(zip(KINDS, titles, strict=True)):
        here = [event for event in events if event["kind"] == kind]
        heights = [height(event["date"]) for event in here]
        ax.axvline(lane, color=NEUTRAL, linewidth=0.8, alpha=0.5)
        ax.plot([lane] * len(here), heights, "o", color=f"C{lane}", markersize=4.5)
        for event, y, place in zip(here, heights, spread(heights, 0.33), strict=True):
            name = known.get(event["name"], event["name"])
            ax.plot([lane + 0.03, lane + 0.12], [y, place], color=f"C{lane}", linewidth=0.7)
            ax.text(lane + 0.14, place, name, va="center", fontsize=8.5)
        ax.text(lane, 2.75, title, ha="left", va="bottom", weight="bold", color=f"C{lane}", fontsize=9)
    years = [1950, 1980, 2010, *range(2014, 2027, 2)]
    ax.set_yticks([height(f"{y}-01") for y in years], [str(y) for y in years])
    ax.axhline(0, color=NEUTRAL, linewidth=0.8, linestyle=":")
    ax.set(xlim=(-0.12, 4.0), ylim=(-13.2, 2.7), xticks=[])
    ax.spines["bottom"].set_visible(False)
    return fig


def growth(plt: Any, _: Translate) -> Any:
    models = json.loads((DATA / "model_growth.json").read_text("utf-8"))["models"]
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 7.4), layout="constrained", sharex=True)
    for model in models:
        when, sparse = year(model["date"]), "active" in model
        above.plot(when, model["parameters"], "o", color="C0", fillstyle="none" if sparse else "full")
        if sparse:
            above.plot(when, model["active"], "o", color="C0")
    known = [(year(m["date"]), c, m["name"]) for m in models if (c := training_compute(m))]
    below.plot([k[0] for k in known], [k[1] for k in known], "o", color="C0")
    t, y = (torch.tensor([k[i] for k in known], dtype=torch.float64) for i in (0, 1))
    windows = [
        (t > 0, "-", "C0", _("全部")),
        (t < 2022.5, "--", "C1", _("2022 年中以前")),
        (t > 2022, "--", "C3", _("2022 年以后")),
    ]
    for inside, style, color, label in windows:
        intercept, slope = line(t[inside], y[inside].log10())
        ends = [t[inside].min().item(), t[inside].max().item()]
        words = _("{window}：{months:.1f} 个月翻一番").format(window=label, months=12 * math.log10(2) / slope)
        below.plot(ends, [10 ** (intercept + slope * x) for x in ends], style, color=color, label=words)
    sizes = [(year(m["date"]), m["parameters"], m["name"]) for m in models]
    _label(above, sizes, {"BERT-Large": "left", "GPT-3": "left", "MT-NLG": "left", "Kimi K2": "left"})
    places = {
        "Transformer (big)": "right",
        "GPT-3": "left",
        "PaLM": "left",
        "Llama 3.1 405B": "left",
        "DeepSeek-V3": "below",
    }
    _label(below, known, places)
    above.set(yscale="log", title=_("参数"), ylim=(1e8, 3e12))
    below.set(yscale="log", title=_("训练计算量（浮点运算次数）"), xlim=(2017, 2026), ylim=(1e19, 1e27))
    below.legend(loc="lower right", fontsize=8.5)
    return fig


def _label(ax: Any, points: list[tuple[float, float, str]], places: dict[str, str]) -> None:
    offsets = {"left": (-5, 4, "right"), "right": (5, 4, "left"), "below": (0, -14, "center")}
    for x, y, name in points:
        if name in places:
            dx, dy, side = offsets[places[name]]
            ax.annotate(name, (x, y), (dx, dy), textcoords="offset points", fontsize=8.5, ha=side)


def objectives(plt: Any, _: Translate) -> Any:
    tokens = 8
    rows = [  # title, hidden inputs, positions that are scored, distance from a position to its target
        (_("自回归：预测下一个"), set(), range(tokens - 1), 1),
        (_("掩码：填空"), {2, 5}, (2, 5), 0),
        (_("微调：只给回答计分"), set(), range(3, tokens - 1), 1),
    ]
    fig, axes = plt.subplots(3, 1, figsize=(5.2, 4.6), layout="constrained")
    for ax, (title, hidden, scored, shift) in zip(axes, rows, strict=True):
        for i in range(tokens):
            prompt = ax is axes[2] and i < 4
            face = "none" if i in hidden else NEUTRAL
            style = {"facecolor": face, "edgecolor": NEUTRAL, "alpha": 0.35 if prompt else 0.75}
            ax.add_patch(plt.Rectangle((i - 0.38, -0.3), 0.76, 0.6, **style))
            ax.text(i, 0, "?" if i in hidden else f"$x_{i + 1}$", ha="center", va="center")
        for i in scored:
            ax.annotate("", (i, 0.98), (i, 0.32), arrowprops={"arrowstyle": "-|>", "color": "C0"})
            ax.plot(i, 1.3, "o", markersize=15, color="C0", alpha=0.3)
            ax.text(i, 1.3, f"$x_{i + 1 + shift}$", ha="center", va="center")
        ax.set(xlim=(-0.6, tokens - 0.4), ylim=(-0.85 if ax is axes[2] else -0.4, 1.7), title=title)
        ax.axis("off")
    axes[2].text(1.5, -0.62, _("提示"), ha="center", va="center")
    axes[2].text(5.5, -0.62, _("回答"), ha="center", va="center")
    return fig


def dedup(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    settings = [(5, 4), (14, 8), (50, 3)]
    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    s = torch.linspace(0, 1, 201)
    for n, ((b, r), marker) in enumerate(zip(settings, "os^", strict=True)):
        ax.plot(s, 1 - (1 - s**r) ** b, color=f"C{n}", label=f"b = {b}, r = {r}")
        for shared in (4, 8, 12, 16):  # two sets of 20 with so many phrases in common
            union = 40 - shared
            hashes = torch.rand(400, b, r, union, generator=generator)
            equal = hashes[..., :20].amin(-1) == hashes[..., 20 - shared :].amin(-1)
            ax.plot(shared / union, equal.all(-1).any(-1).float().mean(), marker, color=f"C{n}", markersize=5)
        ax.axvline((1 / b) ** (1 / r), color=f"C{n}", linestyle=":", linewidth=1)
    ax.set(xlabel=_("相似度 s"), ylabel=_("成为候选的概率"), xlim=(0, 1), ylim=(-0.02, 1.04))
    ax.legend(loc="lower right", fontsize=9)
    return fig


def utilization(plt: Any, _: Translate) -> Any:
    data = json.loads((DATA / "model_growth.json").read_text("utf-8"))
    peak = {device["name"]: device["peak_flops"] for device in data["devices"]}
    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    colors = {name: f"C{n}" for n, name in enumerate(peak)}
    for row, run in enumerate(reversed(data["runs"])):
        count = parameters(published(run["published"])).active if "published" in run else run["parameters"]
        u = model_flops_utilization(6 * count * run["tokens"], gpu_hours=run["hours"], peak_flops=peak[run["device"]])
        ax.barh(row, 100 * u, height=0.6, color=colors[run["device"]], alpha=0.8)
        ax.text(51.5, row, f"{u:.0%}", va="center")
    ax.axvline(50, color=NEUTRAL, linestyle="--")
    ax.set_yticks(range(len(data["runs"])), [run["name"] for run in reversed(data["runs"])])
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.8) for color in colors.values()]
    ax.legend(handles, list(colors), loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    ax.set(xlim=(0, 60), xlabel=_("利用率（%）"))
    return fig


def decoding(plt: Any, _: Translate) -> Any:
    devices = json.loads((DATA / "model_growth.json").read_text("utf-8"))["devices"]
    model = published("llama-3-8b")
    weights, cache = 2 * parameters(model).total, 8192 * kv_bytes_per_token(model)
    batches = [2 ** (i / 4) for i in range(49)]
    fig, ax = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    for n, device in enumerate(devices):
        rate = {"peak_flops": device["peak_flops"], "bandwidth": device["bandwidth"]}
        for style, context in (("-", 0.0), ("--", cache)):
            totals = [B / roofline_seconds(weights * B, weights + context * B, **rate) for B in batches]
            words = device["name"] if not context else _("{device}，计入键值缓存").format(device=device["name"])
            ax.plot(batches, totals, style, color=f"C{n}", label=words)
        critical = device["peak_flops"] / device["bandwidth"]
        ax.plot(critical, critical * device["bandwidth"] / weights, "o", color=f"C{n}")
    ax.set(xscale="log", yscale="log", xlabel=_("批大小 B"), ylabel=_("每秒词元总数的上限"))
    ax.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
    ax.minorticks_off()
    ax.legend(fontsize=8.5)
    return fig
