"""Figures of algorithms/optimizers."""

from collections.abc import Callable
from typing import Any

import torch

from llm_study.optim.first_order import SGD, Adam
from llm_study.optim.muon import COEFFICIENTS

Translate = Callable[[str], str]


def valley(plt: Any, _: Translate) -> Any:
    curvature = torch.tensor([1.0, 25.0])
    runs = {
        _("梯度下降"): lambda p: SGD(p, lr=0.07),
        _("动量"): lambda p: SGD(p, lr=0.03, momentum=0.8),
        "Adam": lambda p: Adam(p, lr=0.6, betas=(0.8, 0.95)),
    }
    fig, ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")
    x, y = torch.meshgrid(torch.linspace(-11, 3, 80), torch.linspace(-3, 3, 60), indexing="xy")
    ax.contour(
        x, y, (curvature[0] * x**2 + curvature[1] * y**2) / 2, levels=[1, 6, 20, 50, 100], colors="C7", alpha=0.5
    )
    for (name, make), marker in zip(runs.items(), "os^", strict=True):
        w = torch.nn.Parameter(torch.tensor([-10.0, 2.0]))
        optimizer, path = make([w]), [w.detach().clone()]
        for _step in range(25):
            w.grad = curvature * w.detach()
            optimizer.step()
            path.append(w.detach().clone())
        ax.plot(*torch.stack(path).T, marker=marker, markersize=4, linewidth=1.2, label=name)
    ax.set(xlabel=_("平缓的方向"), ylabel=_("陡峭的方向"), title=_("同一个谷，同一个起点"))
    ax.legend(frameon=False)
    return fig


def newton_schulz(plt: Any, _: Translate) -> Any:
    s = torch.logspace(-3, 0, 400, dtype=torch.float64)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.6), layout="constrained", sharex=True)
    for ax, coefficients, title in (
        (axes[0], (1.5, -0.5, 0.0), _("三次多项式 (1.5, −0.5, 0)")),
        (axes[1], COEFFICIENTS, _("Muon 的五次多项式")),
    ):
        a, b, c = coefficients
        value = s.clone()
        for step in range(1, 11):
            value = a * value + b * value**3 + c * value**5
            if step in (1, 3, 5, 10):
                ax.plot(s, value, label=_("迭代 {n} 次").format(n=step))
        ax.axhline(1, color="C7", linestyle=":")
        ax.set(title=title, ylabel=_("迭代后的奇异值"), xscale="log", ylim=(0, 1.35))
        ax.legend(frameon=False, fontsize=8)
    axes[1].set_xlabel(_("归一化之后的奇异值"))
    return fig
