"""Figures of algorithms/kv_cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.core import roofline
from llm_study.core.config import LlamaConfig
from llm_study.functional.attention import attention, attention_weights, causal_mask
from llm_study.functional.eviction import (
    accumulated_attention,
    heavy_hitters,
    largest,
    observation_votes,
    sinks_and_recent,
    snapkv_select,
)
from llm_study.functional.quantize import dequantize_affine, quantize_affine
from llm_study.generation.serving import Request, Scheduler
from llm_study.models.llama import LlamaForCausalLM
from llm_study.nn.paged import BlockPool, BlockTable

Translate = Callable[[str], str]
NEUTRAL = "C7"
PEAK, BANDWIDTH = 989e12, 3.35e12  # H100, 16 bits: FLOPs and bytes per second
TINY = LlamaConfig(vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def latency(plt: Any, _: Translate) -> Any:
    model, batches = roofline.published("llama-3-8b"), [2**i for i in range(11)]
    weights = 2 * roofline.parameters(model).total
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.8), layout="constrained")
    for color, (n, marker) in enumerate(zip((512, 8192, 32768), "os^", strict=True)):
        seconds = [
            roofline.roofline_seconds(
                roofline.decoding_flops(model, n, batch=B).total,
                weights + roofline.kv_cache_bytes(model, n, batch=B),
                peak_flops=PEAK,
                bandwidth=BANDWIDTH,
            )
            for B in batches
        ]
        above.plot(batches, [1000 * t for t in seconds], marker=marker, color=f"C{color}", label=f"n = {n}")
        rate = [B / t for B, t in zip(batches, seconds, strict=True)]
        below.plot(batches, rate, marker=marker, color=f"C{color}", label=f"n = {n}")
        if n > 512:
            limit = BANDWIDTH / roofline.kv_cache_bytes(model, n)
            below.axhline(limit, color=f"C{color}", linestyle=":")
    above.set(title=_("解码一步的时间"), ylabel=_("毫秒"), yscale="log", yticks=[10, 100], yticklabels=["10", "100"])
    below.set(title=_("吞吐量"), ylabel=_("词元每秒"), yscale="log")
    ticks = [1, 4, 16, 64, 256, 1024]
    for ax in (above, below):
        ax.set(xscale="log", xlabel=_("批大小 B"))
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False)
    return fig


def _cell(plt: Any, ax: Any, x: float, y: float, color: str, *, filled: bool, text: str = "") -> None:
    from matplotlib.colors import to_rgb

    face = (*to_rgb(color), 0.45 if filled else 0.0)
    ax.add_patch(plt.Rectangle((x, y), 0.9, 0.9, facecolor=face, edgecolor=color, linewidth=1))
    if text:
        ax.text(x + 0.45, y + 0.45, text, ha="center", va="center")


def ring(plt: Any, _: Translate) -> Any:
    W, steps = 4, 9
    fig, ax = plt.subplots(figsize=(3.6, 4.6), layout="constrained")
    slots: list[int | None] = [None] * W
    for p in range(steps):
        slots[p % W] = p
        for s, held in enumerate(slots):
            new = held == p
            _cell(plt, ax, s, p, "C0" if new else NEUTRAL, filled=new, text="" if held is None else str(held))
    ax.set(xlim=(-0.2, W), ylim=(steps, -0.2), aspect="equal")
    ax.set(xlabel=_("格子 s"), ylabel=_("读过的词元 n"), title=_("格子里的位置"))
    ax.set_xticks([s + 0.45 for s in range(W)], [str(s) for s in range(W)])
    ax.set_yticks([p + 0.45 for p in range(steps)], [str(p + 1) for p in range(steps)])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return fig


def blocks(plt: Any, _: Translate) -> Any:
    lengths, most, size = (5, 9, 2), 16, 4
    pool = BlockPool(TINY, 8, block_size=size)
    tables = [BlockTable(pool) for n in lengths]
    for table, n in zip(tables, lengths, strict=True):
        table.reserve(n)
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.4, 3.6), layout="constrained")
    for row, n in enumerate(lengths):
        for x in range(most):
            _cell(plt, above, x, row, f"C{row}" if x < n else NEUTRAL, filled=x < n)
    above.set(xlim=(-0.2, most), ylim=(len(lengths), -0.2), aspect="equal")
    above.set_title(_("预留：48 格，用了 16 格"))
    above.set_yticks([row + 0.45 for row in range(3)], [_("序列 {n}").format(n=row) for row in range(3)])
    owner = {block: (row, i) for row, table in enumerate(tables) for i, block in enumerate(table.blocks)}
    for block in range(pool.n_blocks):
        x0, y = (block % 4) * (size + 0.35), 1.7 * (block // 4)
        for place in range(size):
            row, i = owner.get(block, (7, 0))
            used = block in owner and i * size + place < lengths[row]
            _cell(plt, below, x0 + place, y, f"C{row}", filled=used)
        below.text(x0 + 1.95, y - 0.28, _("块 {n}").format(n=block), ha="center", va="center", fontsize="small")
    below.set(xlim=(-0.2, 4 * size + 1.2), ylim=(2.8, -0.7), aspect="equal")
    below.set_title(_("分页：24 格，用了 16 格"))
    below.set_yticks([])
    for ax in (above, below):
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    return fig


def _trace(lengths: list[int], seats: int) -> list[list[int]]:
    """Return for each step of the scheduler which requests got a token."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY).eval()
    scheduler = Scheduler(model, BlockPool(TINY, 64, block_size=4), max_running=seats, reuse_prefixes=False)
    for name, n in enumerate(lengths):
        scheduler.add(Request(name, [5, 6, 7], max_new_tokens=n))
    steps = []
    while scheduler.n_waiting or scheduler.n_running:
        steps.append([int(token.request_id) for token in scheduler.step()])
    return steps


def _seats(steps: list[list[int]], seats: int) -> list[tuple[int, int, int, int]]:
    """Return (request, seat, first step, steps), giving each request the first free seat."""
    bars, free = [], [0] * seats
    for name in sorted({name for step in steps for name in step}):
        at = [t for t, step in enumerate(steps) if name in step]
        seat = next(i for i in range(seats) if free[i] <= at[0])
        free[seat] = at[-1] + 1
        bars.append((name, seat, at[0], len(at)))
    return bars


def schedule(plt: Any, _: Translate) -> Any:
    lengths, seats = [2, 9, 3, 2, 8, 1, 4, 3, 2], 3
    static, start = [], 0
    for first in range(0, len(lengths), seats):
        group = lengths[first : first + seats]
        static += [(first + i, i, start, n) for i, n in enumerate(group)]
        start += max(group)
    running = _seats(_trace(lengths, seats), seats)
    fig, axes = plt.subplots(2, 1, figsize=(5.4, 3.9), layout="constrained", sharex=True)
    for ax, title, bars in ((axes[0], _("静态的批"), static), (axes[1], _("连续批处理"), running)):
        for name, seat, first, n in bars:
            ax.barh(seat, n - 0.08, left=first + 0.04, height=0.7, color=f"C{name % 7}", alpha=0.55)
            ax.text(first + n / 2, seat, str(name), ha="center", va="center")
        end = max(first + n for _name, _seat, first, n in bars)
        ax.axvline(end, color=NEUTRAL, linestyle=":")
        ax.set(title=title, ylabel=_("位子"), yticks=range(seats), ylim=(seats - 0.4, -0.6), xlim=(0, 22))
    axes[1].set(xlabel=_("步"), xticks=range(0, 23, 3))
    return fig


def _crowd(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values ``(16, 1, 256, 32)``: six keys that many queries look for, and a sink."""
    q, k, v = torch.randn(3, 16, 1, 256, 32, generator=generator).unbind()
    common = torch.randn(16, 1, 1, 32, generator=generator)
    q = q + 0.6 * common
    for row in range(16):
        chosen = torch.randperm(200, generator=generator)[:6]
        k[row, 0, chosen] += 1.2 * common[row, 0]
    k[:, :, 0] += 1.2 * common[:, :, 0]
    return q, k, v


def _kept(P: Tensor, past: int, budget: int) -> dict[str, Tensor]:
    """Return what each policy keeps of the ``past`` keys, and what one that knows the future would."""
    seen = P[:, :, :past, :past]
    real = torch.ones(P.shape[0], 1, past, dtype=torch.bool)
    votes = observation_votes(seen, n_kv_heads=1, window=8, kernel=5)
    return {
        "StreamingLLM": sinks_and_recent(real, budget=budget, sinks=4),
        "H2O": heavy_hitters(accumulated_attention(seen, n_kv_heads=1), budget=budget, recent=budget // 2),
        "SnapKV": snapkv_select(votes, budget=budget, window=8),
        "": largest(accumulated_attention(P[:, :, past:, :past], n_kv_heads=1), budget),
    }


def _eviction_errors(budgets: list[int]) -> dict[str, list[float]]:
    """Return the relative error of the outputs of the last 56 queries, by policy."""
    q, k, v = _crowd(torch.Generator().manual_seed(0))
    past, T = 200, 256
    P = attention_weights(q, k, mask=causal_mask(T))
    exact = (P @ v)[:, :, past:]
    errors: dict[str, list[float]] = {}
    for budget in budgets:
        for name, kept in _kept(P, past, budget).items():
            allowed = torch.zeros(16, 1, 1, T, dtype=torch.bool).scatter(3, kept[:, :, None], True)
            allowed[..., past:] = True
            out = attention(q[:, :, past:], k, v, mask=allowed & causal_mask(T - past, T))
            errors.setdefault(name, []).append(((out - exact).norm() / exact.norm()).item())
    return errors


def _rounding_errors(bits: list[int]) -> dict[str, list[float]]:
    """Return the relative error of the output when keys, or values, are rounded in one direction or the other."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 4, 1, 256, 32, generator=generator).unbind()
    k[..., [3, 17]] *= 8
    exact = attention(q, k, v)

    def rounded(x: Tensor, b: int, dim: int) -> Tensor:
        return dequantize_affine(quantize_affine(x, bits=b, group=32, dim=dim))

    def error(out: Tensor) -> float:
        return ((out - exact).norm() / exact.norm()).item()

    return {
        "token": [error(attention(q, rounded(k, b, -1), v)) for b in bits],
        "channel": [error(attention(q, rounded(k, b, -2), v)) for b in bits],
        "values": [error(attention(q, k, rounded(v, b, -1))) for b in bits],
    }


def loss(plt: Any, _: Translate) -> Any:
    budgets, bits = [16, 32, 64, 128, 192], [2, 4, 8]
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 6.0), layout="constrained")
    names = {"": _("已知将来")}
    for (name, errors), marker in zip(_eviction_errors(budgets).items(), "os^D", strict=True):
        style = {"linestyle": ":"} if name == "" else {}
        above.plot(budgets, errors, marker=marker, label=names.get(name, name), **style)
    above.set(title=_("淘汰"), xlabel=_("200 个键里留下几个"), xticks=budgets)
    labels = {"token": _("键，按词元"), "channel": _("键，按通道"), "values": _("值，按词元")}
    for (name, errors), marker in zip(_rounding_errors(bits).items(), "os^", strict=True):
        below.plot(bits, errors, marker=marker, label=labels[name])
    below.set(title=_("量化"), xlabel=_("比特"), xticks=bits)
    for ax in (above, below):
        ax.set(yscale="log", ylabel=_("相对误差"))
        ax.legend(frameon=False)
    return fig
