"""Figures of general/language_modeling."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from llm_study.models.coding import arithmetic_encode
from llm_study.models.ngram import maximum_likelihood

Translate = Callable[[str], str]
NEUTRAL = "C7"
RECORD = Path(__file__).parents[1] / "data" / "ngrams.json"


def laws(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.8), layout="constrained")
    ranks, frequencies = zip(*record["ranks"], strict=True)
    axes[0].plot(ranks, frequencies, "o-", markersize=3)
    axes[0].plot(ranks, [frequencies[0] / rank for rank in ranks], "--", color=NEUTRAL, linewidth=1)
    axes[0].set(title=_("齐普夫定律"), xlabel=_("名次"), ylabel=_("出现的次数"))
    lengths, types = zip(*record["growth"], strict=True)
    axes[1].plot(lengths, types, "o-", markersize=3)
    axes[1].plot(lengths[:20], lengths[:20], "--", color=NEUTRAL, linewidth=1)
    axes[1].set(title=_("希普斯定律"), xlabel=_("文本的长度（词数）"), ylabel=_("不同的词"))
    for ax in axes:
        ax.set(xscale="log", yscale="log")
    return fig


def smoothing(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    names = {"add-k": _("加 k，k = 0.01"), "absolute": _("绝对折扣"), "modified Kneser–Ney": _("改进的 Kneser–Ney")}
    fig, axes = plt.subplots(
        2, 1, figsize=(5.2, 6.4), layout="constrained", sharex=True, gridspec_kw={"height_ratios": [3, 1.4]}
    )
    for (name, bits), marker in zip(record["bits per byte"].items(), "osvD^*", strict=True):
        axes[0].plot(record["orders"], bits, marker=marker, markersize=4, label=names.get(name, name))
    axes[0].set(title=_("每字节比特数"), ylim=(2, 5))
    axes[0].legend(frameon=False)
    axes[1].bar(record["orders"], [100 * share for share in record["unseen"]], color=NEUTRAL, width=0.6)
    axes[1].set(title=_("没见过的 n 元组（%）"), xlabel=_("阶数 n"), xticks=record["orders"])
    return fig


def interval(plt: Any, _: Translate) -> Any:
    corpus = [[*line.split(), _("。")] for line in (_("猫 追 鱼"), _("狗 追 猫"), _("猫 吃 鱼"))]
    model, text = maximum_likelihood(corpus, 2), corpus[0]
    fig, ax = plt.subplots(figsize=(5.4, 4.0), layout="constrained")
    low, width = 0.0, 1.0
    for t, symbol in enumerate(text):
        left, y = 0.0, -t
        for word, p in model.distribution(text[:t]).items():
            if p == 0:
                continue
            chosen = word == symbol
            ax.barh(y, p, left=left, height=0.5, color="C0" if chosen else "none", edgecolor=NEUTRAL, linewidth=1)
            ax.text(left + p / 2, y, word, ha="center", va="center", color="white" if chosen else NEUTRAL)
            if chosen:
                start, share = left, p
            left += p
        if t + 1 < len(text):
            for x, end in ((start, 0.0), (start + share, 1.0)):
                ax.plot([x, end], [y - 0.25, y - 0.75], color=NEUTRAL, linewidth=0.8, linestyle=":")
        low, width = low + width * start, width * share
    code = arithmetic_encode(text, model.distribution)
    interval_text = _("区间 [{low}, {high})，宽 {width}，码 {code}")
    values = {"low": f"{low:.4f}", "high": f"{low + width:.4f}", "width": f"{width:.4f}", "code": code}
    ax.text(0.5, -len(text) + 0.25, interval_text.format(**values), ha="center", va="center")
    ax.set(xlim=(-0.01, 1.01), ylim=(-len(text), 0.6), title=_("一次切一刀"), xticks=[0, 0.25, 0.5, 0.75, 1])
    ax.set_yticks([-t for t in range(len(text))], [str(t + 1) for t in range(len(text))])
    ax.set_ylabel(_("第几个词"))
    return fig


def vectors(plt: Any, _: Translate) -> Any:
    torch.manual_seed(0)
    subject, verb = torch.randint(20, (2, 600))
    group = 2 * (subject % 2) + verb % 2
    noun = 40 + 10 * group + torch.randint(10, (600,))
    words = torch.stack([subject, 20 + verb], dim=1)
    embedding, hidden, out = torch.nn.Embedding(80, 2), torch.nn.Linear(4, 8), torch.nn.Linear(8, 80)
    net = torch.nn.Sequential(embedding, torch.nn.Flatten(), hidden, torch.nn.Tanh(), out)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.03, weight_decay=1.0)
    for _step in range(100):
        loss = F.cross_entropy(net(words), noun)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    perplexity = math.exp(F.cross_entropy(net(words), noun).item())
    fig, axes = plt.subplots(1, 2, figsize=(5.4, 3.0), layout="constrained", sharex=True, sharey=True)
    for ax, first, title in ((axes[0], 0, _("主语")), (axes[1], 20, _("动词"))):
        points = embedding.weight.detach()[first : first + 20]
        for kind, marker in ((0, "o"), (1, "^")):
            ax.scatter(
                *points[kind::2].T, marker=marker, s=24, color=f"C{kind}", label=_("第 {k} 类").format(k=kind + 1)
            )
        ax.set(title=title, xlabel=_("第一维"))
    axes[0].set_ylabel(_("第二维"))
    axes[1].legend(frameon=False, title=_("训练困惑度 {ppl}").format(ppl=f"{perplexity:.1f}"))
    return fig
