"""Figures of algorithms/losses."""

import math
from collections.abc import Callable
from typing import Any

import torch

from llm_study.functional.losses import focal_loss, label_smoothing_loss

Translate = Callable[[str], str]


def memory(plt: Any, _: Translate) -> Any:
    N, D, chunk, gib = 8192, 2048, 256, 4 / 2**30
    vocabularies = [8192, 32000, 64000, 128256, 256000]
    series = {
        _("普通做法"): [3 * N * V * gib for V in vocabularies],
        _("逐块的做法"): [(N * D + V * D + chunk * V) * gib for V in vocabularies],
        _("其中的梯度"): [(N * D + V * D) * gib for V in vocabularies],
    }
    fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for (name, values), style in zip(series.items(), ("o-", "s-", "^:"), strict=True):
        ax.plot([V / 1000 for V in vocabularies], values, style, label=name)
    ax.set(xlabel=_("词表大小（千）"), ylabel="GiB", title=_("输出层的损失与梯度"), ylim=(0, None))
    ax.legend(frameon=False)
    return fig


def curves(plt: Any, _: Translate) -> Any:
    V, y = 100, torch.tensor(0)
    gaps = torch.linspace(0, 16, 161, dtype=torch.float64)
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 6.0), layout="constrained")

    def loss_at(gap: float, epsilon: float) -> float:
        z = torch.zeros(V, dtype=torch.float64)
        z[0] = gap
        return label_smoothing_loss(z, y, epsilon=epsilon).item()

    for index, epsilon in enumerate((0.0, 0.1, 0.3)):
        above.plot(gaps, [loss_at(gap, epsilon) for gap in gaps.tolist()], color=f"C{index}", label=f"ε = {epsilon}")
        if epsilon:
            best = math.log(1 + V * (1 - epsilon) / epsilon)
            above.plot([best], [loss_at(best, epsilon)], "o", color=f"C{index}")
    above.set(xlabel=_("答案与其余分数的差距"), ylabel=_("损失"), title=_("标签平滑"), ylim=(0, None))
    ps = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    for index, gamma in enumerate((0.0, 1.0, 2.0, 5.0)):
        z = torch.stack([ps.log(), (1 - ps).log()], dim=-1).requires_grad_()  # two outcomes, the first one right
        (grad,) = torch.autograd.grad(len(ps) * focal_loss(z, y.expand(len(ps)), gamma=gamma), z)
        below.plot(ps, grad[:, 0] / (ps - 1), color=f"C{index}", label=f"γ = {gamma:g}")
    below.set(xlabel=_("答案的概率"), ylabel=_("交叉熵梯度的倍数"), title="focal loss", ylim=(0, None))
    for ax in (above, below):
        ax.legend(frameon=False)
    return fig
