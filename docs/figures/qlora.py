"""Figures of finetuning/qlora."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_study.functional.codebooks import (
    dequantize_blockwise,
    fp4_codebook,
    nf4_codebook,
    normal_float_codebook,
    quantize_blockwise,
)
from llm_study.functional.lowrank import principal_factors
from llm_study.functional.quantize import dequantize_affine, quantize_affine

Translate = Callable[[str], str]
BLOCKS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def memory(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    labels, place = [], 0.0
    for name, N, D in ((_("650 亿参数"), 65e9, 8192), (_("70 亿参数"), 7e9, 4096)):
        adapter = 16 * 2 * 8 / D * N
        for method, size in (("QLoRA", 4.127 / 8 * N + adapter), ("LoRA", 2 * N + adapter), (_("全量"), 16 * N)):
            ax.barh(place, size / 1e9, color={"QLoRA": "C0", "LoRA": "C1"}.get(method, "C7"), height=0.8)
            beside = max(size / 1e9 * 1.08, 52 if size > 30e9 else 0)  # right of the line at 48 GB, not across it
            ax.text(beside, place, f"{size / 1e9:.1f}", va="center")
            labels.append((place, f"{name}  {method}"))
            place += 1
        place += 0.6
    ax.axvline(48, color="C3", linestyle=":", linewidth=1.2)
    ax.text(50, place - 0.5, "48 GB", color="C3", va="center")
    ax.set_yticks([at for at, _label in labels], [label for _at, label in labels])
    ax.set(xscale="log", xlim=(2, 4000), ylim=(-0.7, place), xlabel=_("显存（GB）"))
    ax.set_xticks([2, 10, 100, 1000], ["2", "10", "100", "1000"])
    ax.minorticks_off()
    return fig


def levels(plt: Any, _: Translate) -> Any:
    books = {"NF4": nf4_codebook(), "FP4": fp4_codebook(), _("四比特整数"): torch.linspace(-1, 1, 15)}
    fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    x = torch.linspace(-1.35, 1.35, 300)
    ax.fill_between(x, 3 + 2 * torch.exp(-((1.848 * x) ** 2) / 2), 3, color="C7", alpha=0.25, linewidth=0)
    ax.text(0.75, 4.3, _("正态密度"), color="C7")
    for row, (name, book) in enumerate(books.items()):
        color = f"C{row}"
        ax.axhline(2 - row, color="C7", linewidth=0.6)
        ax.plot(book, torch.full_like(book, 2.0 - row), marker="|", markersize=14, linestyle="none", color=color)
        ax.text(1.1, 2 - row, name, color=color, va="center")
    ax.set(xlim=(-1.35, 1.75), ylim=(-0.6, 5.2), xlabel=_("码本的值"), yticks=[])
    ax.set_xticks([-1, -0.5, 0, 0.5, 1])
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    return fig


def _error(x: Tensor, back: Tensor) -> float:
    return ((x - back).norm() / x.norm()).item()


def blocks(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1 << 17, generator=generator)
    chi = torch.randn(3, 1 << 17, generator=generator).square().mean(0).sqrt()
    data = {_("正态分布"): normal, _("t 分布，自由度为 3"): torch.randn(1 << 17, generator=generator) / chi}
    books = {"NF4": nf4_codebook(), "FP4": fp4_codebook(), _("对称的整数"): torch.linspace(-1, 1, 15)}
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), layout="constrained", sharex=True)
    for ax, (title, x) in zip(axes, data.items(), strict=True):
        for i, (name, book) in enumerate(books.items()):
            errors = [_error(x, dequantize_blockwise(quantize_blockwise(x, codebook=book, block=n))) for n in BLOCKS]
            ax.plot(BLOCKS, [100 * error for error in errors], marker=".", color=f"C{i}", label=name)
        errors = [_error(x, dequantize_affine(quantize_affine(x, bits=4, group=n))) for n in BLOCKS]
        ax.plot(BLOCKS, [100 * e for e in errors], marker=".", color="C3", linestyle="--", label=_("仿射的整数"))
        ax.set(xscale="log", ylim=(0, None), title=title, ylabel=_("相对误差（%）"))
        ax.set_xticks(BLOCKS[::2], [str(n) for n in BLOCKS[::2]])
        ax.minorticks_off()
    axes[0].legend(frameon=False, ncols=2, loc="lower right")
    axes[1].set_xlabel(_("一块有几个数"))
    return fig


def loftq(plt: Any, _: Translate) -> Any:
    W = torch.randn(128, 128, generator=torch.Generator().manual_seed(1)).double()
    a = W.view(-1, 64).abs().amax(1, keepdim=True)

    def free(x: Tensor, book: Tensor) -> Tensor:
        return dequantize_blockwise(quantize_blockwise(x, codebook=book))

    def fixed(x: Tensor, book: Tensor) -> Tensor:
        codes = torch.bucketize(x.reshape(-1, 64) / a, (book[1:] + book[:-1]) / 2)
        return (book[codes] * a).view_as(x)

    fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    cases = (
        (4, free, _("4 比特，因子重算"), "C0", "-"),
        (2, fixed, _("2 比特，因子固定"), "C2", "--"),
        (2, free, _("2 比特，因子重算"), "C1", "-"),
    )
    for bits, quantize, label, color, style in cases:
        book = normal_float_codebook(bits=bits).double()
        low, errors = torch.zeros_like(W), [1.0]
        for _step in range(12):  # the loop of loftq_factors, looked at after each step
            Q = quantize(W - low, book)
            A, B = principal_factors(W - Q, 8)
            low = B @ A
            errors.append(((W - Q - low).norm() / (W - quantize(W, book)).norm()).item())
        ax.plot(errors, marker=".", color=color, linestyle=style, label=label)
    ax.set(xlabel=_("轮数"), ylabel=_("误差（不加因子时为 1）"), ylim=(0.65, 1.03))
    ax.legend(frameon=False)
    return fig
