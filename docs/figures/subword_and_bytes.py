"""Figures of algorithms/subword_and_bytes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_study.tokenizers.patching import ByteNgram, threshold_patches
from llm_study.tokenizers.unigram import segmentations, viterbi

Translate = Callable[[str], str]
NEUTRAL = "C7"
RECORD = Path(__file__).parents[1] / "data" / "subword.json"
P = {"h": 0.1, "u": 0.1, "g": 0.1, "s": 0.2, "hu": 0.1, "ug": 0.1, "hug": 0.2, "gs": 0.1}
LOGP = {piece: math.log(p) for piece, p in P.items()}
TEXT = (
    "A token is a piece of text. A tokenizer turns text into tokens, and tokens into text. "
    "The model reads tokens, the model writes tokens, and the tokenizer turns them into text again. "
    "A model of bytes has no tokenizer: it reads the bytes of the text, one after another. "
)
THETA = 1.7  # bits
SAMPLE = "The tokenizer turns bytes into text."


def lattice(plt: Any, _: Translate) -> Any:
    from matplotlib.patches import FancyArrowPatch

    best = viterbi("hugs", LOGP)
    bends = {"hu": -0.5, "gs": -0.5, "ug": 0.5, "hug": -0.75}  # how far an arc is from straight, above or below
    fig, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for start, end in [(i, j) for i in range(4) for j in range(i + 1, 5) if "hugs"[i:j] in P]:
        piece = "hugs"[start:end]
        bend = bends.get(piece, 0.0)
        color, width = ("C1", 2.4) if piece in best else (NEUTRAL, 1.2)
        shape = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "-|>", "mutation_scale": 11}
        ends = {"shrinkA": 9, "shrinkB": 9, "color": color, "linewidth": width}
        ax.add_patch(FancyArrowPatch((start, 0), (end, 0), **shape, **ends))
        at = (start + end) / 2, -bend * (end - start) / 2 + (-0.06 if bend > 0 else 0.06)
        ax.text(*at, f"{piece} {P[piece]}", ha="center", va="top" if bend > 0 else "bottom")
    ax.plot(range(5), [0] * 5, "o", color="C0", markersize=14)
    for i in range(5):
        ax.text(i, 0, str(i), ha="center", va="center", color="white", fontsize=9)
    ax.set(xlim=(-0.3, 4.3), ylim=(-0.85, 1.4), aspect="equal", title=_("hugs 的格图"))
    ax.axis("off")
    return fig


def temperature(plt: Any, _: Translate) -> Any:
    scores = {"·".join(cut): sum(LOGP[piece] for piece in cut) for cut in segmentations("hugs", LOGP)}
    ordered = sorted(scores, key=lambda cut: -scores[cut])
    fig, axes = plt.subplots(3, 1, figsize=(5.2, 5.4), layout="constrained", sharex=True)
    for ax, a, color in zip(axes, (1.0, 0.3, 0.0), ("C0", "C1", "C2"), strict=True):
        weights = [math.exp(a * scores[cut]) for cut in ordered]
        ax.bar(ordered, [w / sum(weights) for w in weights], color=color)
        ax.set(ylim=(0, 0.8), title=f"a = {a}", ylabel=_("概率"))
    axes[-1].tick_params(axis="x", rotation=25)
    axes[-1].set_xlabel(_("切法"))
    return fig


def entropy(plt: Any, _: Translate) -> Any:
    data = SAMPLE.encode()
    h = ByteNgram(TEXT.encode(), order=3).entropies(data)
    starts = threshold_patches(h, THETA)
    fig, ax = plt.subplots(figsize=(5.4, 3.0), layout="constrained")
    colors = ["C1" if t in starts else NEUTRAL for t in range(len(data))]
    ax.bar(range(len(data)), h, color=colors)
    ax.axhline(THETA, color="C0", linestyle="--", linewidth=1.2)
    ax.text(len(data) - 0.5, THETA + 0.1, "θ", color="C0", ha="right")
    ax.set_xticks(range(len(data)), [c if c != " " else "␣" for c in SAMPLE], family="monospace")
    ax.set(xlim=(-0.8, len(data) - 0.2), ylim=(0, 5.5), title=_("下一个字节的熵与块的边界"), ylabel=_("比特"))
    return fig


def compression(plt: Any, _: Translate) -> Any:
    rows = json.loads(RECORD.read_text("utf-8"))["tokenizers"]
    kinds = {"zh": _("中文"), "en": _("英文"), "code": _("代码")}
    named = {"bytes": _("字节"), "characters": _("字符"), "BPE": "BPE", "WordPiece": "WordPiece", "Unigram": "Unigram"}
    fig, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for k, (kind, label) in enumerate(kinds.items()):
        at = [i + 0.27 * (k - 1) for i in range(len(named))]
        ax.bar(at, [rows[name][kind] for name in named], width=0.25, color=f"C{k}", label=label)
    ax.set_xticks(range(len(named)), list(named.values()))
    ax.set(title=_("每个词元多少字节"), ylabel=_("字节 / 词元"))
    ax.legend(frameon=False)
    return fig
