"""Figures of finetuning/overview."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm_study.optim.schedule import slanted_triangular
from llm_study.training.unfreezing import gradual

Translate = Callable[[str], str]


def nearest(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.2, 3.9))
    x, y = torch.tensor([1.0, 2.0]), 7.0
    first = torch.tensor([-0.6, 6.0])
    ax.plot(first, (y - x[0] * first) / x[1], color="C7", linewidth=1.2)
    ax.text(4.1, 1.72, _("满足数据的权重"), color="C7", ha="left", va="bottom")
    starts = ((torch.tensor([1.6, 1.5]), "C0", _("预训练的起点"), (8, -14)), (torch.zeros(2), "C1", _("原点"), (8, -2)))
    for start, color, text, offset in starts:
        end = start + x * (y - x @ start) / (x @ x)
        ax.annotate(
            "", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.4}
        )
        ax.plot(*start.tolist(), "o", color=color)
        ax.annotate(text, start.tolist(), xytext=offset, textcoords="offset points", color=color)
    ax.plot(3.1, (y - 3.1) / 2, "*", color="C2", markersize=13)
    ax.annotate(_("真正的权重"), (3.1, 1.95), xytext=(4, 10), textcoords="offset points", color="C2")
    ax.set(xlabel=_("第一个权重"), ylabel=_("第二个权重"), xlim=(-0.6, 6), ylim=(-0.4, 4), aspect="equal")
    return fig


def risk(plt: Any, _: Translate) -> Any:
    d, sigma, tau = 30, 1.0, 0.2
    lam = torch.logspace(-1, 4, 200).double()[:, None]
    fig, ax = plt.subplots(figsize=(5.2, 3.4))
    for color, n in (("C3", 15), ("C1", 60), ("C0", 240)):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
        s = torch.linalg.eigvalsh(inputs.T @ inputs).clamp(min=0)
        expected = ((lam**2 * tau**2 + sigma**2 * s) / (s + lam) ** 2).sum(-1)
        ax.plot(lam[:, 0], expected, color=color, label=_("{n} 个样本").format(n=n))
    ax.axvline(sigma**2 / tau**2, color="C7", linestyle="--", linewidth=1)
    ax.set(xscale="log", yscale="log", ylim=(0.08, 4))
    ax.set(xlabel=_("拉回起点的力度 λ"), ylabel=_("期望误差"))
    ax.legend(frameon=False)
    return fig


def _distances(seed: int, checks: list[int]) -> Tensor:
    """Return errors ``(2, 2, S)``, of fine-tuning and of LP-FT, inside and outside; and of the probe, at each check."""
    k, d, m, rate = 4, 16, 8, 0.03
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    features, head = torch.linalg.qr(draw(d, k)).Q.T, draw(k)
    inside = torch.linalg.qr(draw(d, m)).Q
    data = draw(24, m) @ inside.T
    gram, target = data.T @ data / 24, features.T @ head
    begin = torch.linalg.qr((features + 0.03 * draw(k, d)).T).Q.T
    probe = torch.linalg.lstsq(data @ begin.T, (data @ target)[:, None]).solution[:, 0]
    curves = []
    for own in (draw(k), probe):
        b, v, curve = begin, own, []
        for step in range(checks[-1] + 1):
            gap = b.T @ v - target
            if step in checks:
                curve.append([(inside.T @ gap).square().sum().item(), gap.square().sum().item()])
            r = gram @ gap
            b, v = b - rate * torch.outer(v, r), v - rate * b @ r
        curves.append(curve)
    return torch.tensor(curves)


def distortion(plt: Any, _: Translate) -> Any:
    checks = sorted({round(1.25**i) for i in range(31)})
    mean = torch.stack([_distances(seed, checks) for seed in range(4)]).mean(0)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), sharex=True)
    for place, ax in enumerate(axes):
        ax.plot(checks, mean[0, :, place].clamp(min=1e-7), color="C3", label=_("微调"))
        ax.plot(checks, mean[1, :, place].clamp(min=1e-7), color="C0", label=_("LP-FT"))
        ax.axhline(mean[1, 0, place], color="C7", linestyle="--", linewidth=1, label=_("线性探测"))
        ax.set(yscale="log", xscale="log")
    axes[0].set(title=_("训练分布以内"), ylabel=_("误差"))
    axes[1].set(title=_("训练分布以外"), ylabel=_("误差"), xlabel=_("训练步数"))
    axes[0].legend(frameon=False, loc="lower left")
    return fig


def schedules(plt: Any, _: Translate) -> Any:
    total, every, blocks = 200, 30, 4
    fig, ax = plt.subplots(figsize=(5.2, 3.4))
    labels = (_("头"), _("第三块"), _("第二块"), _("最下面一块"))
    for depth, (text, color) in enumerate(zip(labels, ("C0", "C1", "C2", "C3"), strict=True)):
        steps = [step for step in range(total) if gradual(step, blocks=blocks, every=every) > depth]
        rates = [slanted_triangular(step, total=total) / 2.6**depth for step in steps]
        ax.plot(steps, rates, color=color, label=text)
        ax.plot(steps[0], rates[0], "o", color=color, markersize=4)
    ax.set(yscale="log", ylim=(0.0015, 1.3))
    ax.set(xlabel=_("步数"), ylabel=_("学习率（以峰值为单位）"))
    ax.legend(frameon=False, loc="lower center", ncols=2)
    return fig
