"""Figures of algorithms/decoding."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.functional import sampling

Translate = Callable[[str], str]
NEUTRAL = "C7"
TREE = {
    "": {"cat": 0.45, "dog": 0.4, "bird": 0.15},
    "cat": {"sleeps": 0.35, "runs": 0.33, "eats": 0.32},
    "dog": {"barks": 0.8, "runs": 0.15, "eats": 0.05},
    "bird": {"sings": 0.9, "eats": 0.1},
}


def tree(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")
    leaves = [(first, second) for first in TREE[""] for second in TREE[first]]
    heights = {leaf: -float(i) - 0.6 * ["cat", "dog", "bird"].index(leaf[0]) for i, leaf in enumerate(leaves)}
    middle = {a: sum(heights[x] for x in leaves if x[0] == a) / len(TREE[a]) for a in TREE[""]}
    root = sum(middle.values()) / 3
    best = max(leaves, key=lambda x: TREE[""][x[0]] * TREE[x[0]][x[1]])

    def edge(start: tuple[float, float], end: tuple[float, float], p: float, on: tuple[bool, bool]) -> None:
        color = "C0" if on[0] else "C1" if on[1] else NEUTRAL
        ax.plot(*zip(start, end, strict=True), color=color, linewidth=3 if on[0] or on[1] else 1)
        x, y = ((a + 3 * b) / 4 for a, b in zip(start, end, strict=True))
        ax.text(x, y + 0.12, f"{p:.2f}", ha="right", va="bottom", fontsize=9)

    for first, p in TREE[""].items():
        edge((0, root), (1.6, middle[first]), p, (first == "cat", first == best[0]))
        ax.text(1.7, middle[first], first, va="center", weight="bold")
        for second, q in TREE[first].items():
            on = ((first, second) == ("cat", "sleeps"), (first, second) == best)
            edge((2.25, middle[first]), (4.2, heights[first, second]), q, on)
            ax.text(4.3, heights[first, second], second, va="center")
            ax.text(5.9, heights[first, second], f"{p * q:.4f}", va="center", ha="right")
    ax.plot([], [], color="C0", linewidth=3, label=_("贪心"))
    ax.plot([], [], color="C1", linewidth=3, label=_("概率最大"))
    ax.legend(frameon=False, loc="lower left")
    ax.text(5.9, 0.9, _("整句的概率"), ha="right", va="center")
    ax.set(xlim=(-0.1, 6), ylim=(-9.3, 1.3))
    ax.axis("off")
    return fig


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "top-k 10": lambda z: sampling.top_k_filter(z, 10),
    "top-p 0.9": lambda z: sampling.top_p_filter(z, 0.9),
    "min-p 0.05": lambda z: sampling.min_p_filter(z, 0.05),
    "typical 0.9": lambda z: sampling.typical_filter(z, 0.9),
    "η 0.01": lambda z: sampling.eta_filter(z, 0.01),
    "top-nσ 1.5": lambda z: sampling.top_n_sigma_filter(z, 1.5),
}


def truncation(plt: Any, _: Translate) -> Any:
    rank = torch.arange(30.0)
    rows = {_("尖锐的分布"): -2.2 * rank.sqrt() - 0.6 * (rank > 0), _("平坦的分布"): -0.1 * rank}
    fig, axes = plt.subplots(4, 1, figsize=(5.2, 6.4), layout="constrained", height_ratios=[2, 3, 2, 3], sharex=True)
    for (title, logits), above, below in zip(rows.items(), axes[::2], axes[1::2], strict=True):
        above.bar(rank + 1, logits.softmax(-1), color=NEUTRAL)
        above.set(ylabel=_("概率"), title=title)
        for i, (_name, apply) in enumerate(FILTERS.items()):
            inside = apply(logits[None])[0] > -math.inf
            below.scatter(rank[inside] + 1, [i] * int(inside.sum()), marker="s", s=22, color=f"C{i}")
        below.set_yticks(range(len(FILTERS)), list(FILTERS))
        below.set(ylim=(len(FILTERS) - 0.4, -0.6))
    axes[-1].set(xlabel=_("词元，按概率从大到小"), xlim=(0.3, 30.7))
    return fig


def temperature(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5000, generator=generator)
    logits[:, :8] += torch.tensor([11.0, 10, 9.5, 9, 8.5, 8, 7.5, 7])
    values = [0.5 + 0.1 * n for n in range(26)]
    chosen = {
        "top-k 10": FILTERS["top-k 10"],
        "top-p 0.9": FILTERS["top-p 0.9"],
        "min-p 0.05": FILTERS["min-p 0.05"],
        "η 0.001": lambda z: sampling.eta_filter(z, 0.001),
        "top-nσ 4": lambda z: sampling.top_n_sigma_filter(z, 4.0),
    }
    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for (name, apply), style in zip(chosen.items(), ["-", "--", "-.", ":", "-"], strict=True):
        kept = [(apply(logits / t) > -math.inf).sum(-1).float().mean().item() for t in values]
        ax.plot(values, kept, style, label=name, linewidth=2)
    ax.set(yscale="log", xlabel=_("温度"), ylabel=_("保留的词元个数"), yticks=[1, 10, 100, 1000])
    ax.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return fig


def _chain() -> tuple[Tensor, Tensor]:
    """Return the true chain and the smoothed model of the chapter."""
    generator = torch.Generator().manual_seed(0)
    size, weight = 32, 0.9
    scores = 2 * torch.randn(size, size, dtype=torch.float64, generator=generator)
    true = sampling.top_p_filter(scores, 0.9).softmax(-1)
    noise = (0.5 * torch.randn(size, size, dtype=torch.float64, generator=generator)).softmax(-1)
    return true, weight * true + (1 - weight) * noise


def _measure(q: Tensor, true: Tensor) -> tuple[float, float]:
    """Return the entropy of a step and the probability that it is possible in the true chain."""
    state = torch.full((len(q),), 1 / len(q), dtype=q.dtype)
    for _step in range(200):
        state = state @ q
    entropy = torch.special.entr(q).sum(-1)
    return (state @ entropy).item(), (state @ (q * (true > 0)).sum(-1)).item()


def tradeoff(plt: Any, _: Translate) -> Any:
    true, smooth = _chain()
    logits = smooth.log()
    curves = {
        _("温度"): [sampling.temperature_scale(logits, t / 20) for t in range(8, 21)],
        "top-k": [sampling.top_k_filter(logits, k) for k in range(2, 33)],
        "top-p": [sampling.top_p_filter(logits, p / 100) for p in range(60, 101)],
        "min-p": [sampling.min_p_filter(logits, 0.3 * 0.8**n) for n in range(25)],
        "η": [sampling.eta_filter(logits, 0.3 * 0.8**n) for n in range(25)],
    }
    fig, ax = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    for (name, steps), marker in zip(curves.items(), "os^vD", strict=True):
        points = [_measure(z.softmax(-1), true) for z in steps]
        ax.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=name, linewidth=1)
    entropy, valid = _measure(true, true)
    ax.plot([entropy], [valid], marker="*", markersize=14, color=NEUTRAL, linestyle="none", label=_("真实的链"))
    ax.set(xlabel=_("多样：每步的熵（奈特）"), ylabel=_("可信：可能的转移所占的比例"), ylim=(0.93, 1.004))
    ax.legend(frameon=False, loc="lower left")
    return fig


def _surprises(steps: int, draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mu: float) -> Tensor:
    """Walk along the smoothed chain and return the surprise of each step in bits."""
    _true, smooth = _chain()
    token, limit, found = torch.tensor([0]), torch.tensor([mu]), []
    for _step in range(steps):
        row = smooth[token].log()
        token, limit = draw(row, limit)
        found.append(-row[0, token] / math.log(2))
    return torch.cat(found)


def mirostat(plt: Any, _: Translate) -> Any:
    steps = 600
    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    count = torch.arange(1, steps + 1)
    for i, target in enumerate((2.0, 2.5, 3.0)):
        generator = torch.Generator().manual_seed(i)

        def steered(row: Tensor, mu: Tensor, t: float = target, g: Any = generator) -> tuple[Tensor, Tensor]:
            return sampling.mirostat(row, mu, target=t, generator=g)

        surprise = _surprises(steps, steered, 2 * target)
        ax.plot(count, surprise.cumsum(0) / count, color=f"C{i}", label=f"Mirostat, τ = {target}")
        ax.axhline(target, color=f"C{i}", linestyle="--", linewidth=1)
    generator = torch.Generator().manual_seed(9)

    def fixed(row: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        return sampling.sample(sampling.top_p_filter(row, 0.9), generator=generator), mu

    ax.plot(count, _surprises(steps, fixed, 0.0).cumsum(0) / count, color=NEUTRAL, linestyle="-.", label="top-p 0.9")
    ax.set(xlabel=_("步数"), ylabel=_("平均意外（比特）"), ylim=(1.2, 4.2))
    ax.legend(frameon=False, ncols=2)
    return fig
