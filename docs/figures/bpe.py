"""Figures of the chapter on BPE."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Translate = Callable[[str], str]
RECORD = Path(__file__).parents[1] / "data" / "bpe.json"
COLORS = {"zh": ("C0", "o"), "en": ("C1", "s"), "code": ("C2", "^")}


def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
    return record


def _role(byte: int) -> int:
    """Return 0 for ASCII, 1 for a continuation, 2 to 4 for the first of so many bytes, 5 for what never occurs."""
    if byte < 0x80:
        return 0
    if byte < 0xC0:
        return 1
    if byte in (0xC0, 0xC1) or byte > 0xF4:
        return 5
    return 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


def byte_classes(plt: Any, _: Translate) -> Any:
    names = ["ASCII", _("续字节"), _("2 字节的首字节"), _("3 字节的首字节"), _("4 字节的首字节"), _("从不出现")]
    colors = ["C0", "C1", "C2", "C3", "C4", "C7"]
    fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    for byte in range(256):
        role = _role(byte)
        alpha = 0.25 if role == 5 else 0.75
        ax.add_patch(plt.Rectangle((byte % 16 + 0.06, byte // 16 + 0.06), 0.88, 0.88, color=colors[role], alpha=alpha))
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.25 if name == names[-1] else 0.75)
        for name, color in zip(names, colors, strict=True)
    ]
    fig.legend(handles, names, frameon=False, loc="outside lower center", ncols=2)
    ticks = [f"{n:X}" for n in range(16)]
    ax.set(xlim=(0, 16), ylim=(16, 0), aspect="equal", xlabel=_("低四位"), ylabel=_("高四位"))
    ax.set_xticks([n + 0.5 for n in range(16)], ticks)
    ax.set_yticks([n + 0.5 for n in range(16)], ticks)
    ax.tick_params(length=0)
    return fig


def merge_counts(plt: Any, _: Translate) -> Any:
    record = _record()
    total, steps = sum(record["learned_bytes"].values()), record["merges"]
    fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    ax.plot(steps, record["counts"], "o-", label=_("合并的次数"))
    ax.plot(steps, [2 * total / k for k in steps], "--", color="C7", label=_("上界 2N / k"))
    ax.set(xscale="log", yscale="log", xlabel=_("合并的序号 k"), ylabel=_("次数"))
    ax.legend(frameon=False)
    return fig


def compression(plt: Any, _: Translate) -> Any:
    record, names = _record(), {"zh": _("中文"), "en": _("英文"), "code": _("代码")}
    sizes = record["sizes"]
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.8), layout="constrained")
    for part, name in names.items():
        color, marker = COLORS[part]
        size, tokens = record["bytes"][part], record["tokens"][part]
        above.plot(sizes, [size / n for n in tokens], marker=marker, color=color, label=name)
        if part != "code":  # the same paragraphs
            below.plot(sizes, [n / 1000 for n in tokens], marker=marker, color=color, label=name)
            label = _("GPT-2 的词表，{name}").format(name=name)
            below.plot([50_257], [record["gpt2"][part] / 1000], "v", markersize=9, color=color, label=label)
    above.set(ylabel=_("字节 / 词元"), title=_("一个词元值多少字节"), ylim=(0, None))
    below.set(ylabel=_("千个词元"), title=_("同样的内容要多少词元"), ylim=(0, None))
    ticks = [256, 1024, 4096, 16384, 65536]
    for ax in (above, below):
        ax.set(xscale="log", xlabel=_("词表大小 V"), xlim=(220, 80_000))
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False)
    return fig


def budget(plt: Any, _: Translate) -> Any:
    record, width = _record(), 768
    sizes, tokens = record["sizes"], record["tokens"]["zh"]
    fig, ax = plt.subplots(figsize=(5.2, 3.3), layout="constrained")
    for params, name, marker in ((1e6, "P = 1 M", "o"), (1e7, "P = 10 M", "s"), (1e8, "P = 100 M", "^")):
        costs = [n * (params + size * width) for n, size in zip(tokens, sizes, strict=True)]
        ax.plot(sizes, [cost / costs[0] for cost in costs], marker=marker, label=name)
    ax.set(xscale="log", yscale="log", xlabel=_("词表大小 V"), ylabel=_("计算量，与 V = 256 之比"))
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_yticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig
