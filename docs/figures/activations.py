"""Figures of algorithms/activations."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_study.functional import activations as A

Translate = Callable[[str], str]
NEUTRAL = "C7"
RECORD = Path(__file__).parents[1] / "data" / "gated_ffn.json"
NAMED = {"ReLU": A.relu, "GELU": A.gelu, "SiLU": A.silu, "ReLU²": A.relu_squared}
STYLES = dict(zip(NAMED, ("-", "-", "--", ":"), strict=True))


def curves(plt: Any, _: Translate) -> Any:
    x = torch.linspace(-4, 4, 801, requires_grad=True)
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 6.0), layout="constrained", sharex=True)
    for name, f in NAMED.items():
        y = f(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        for ax, values in zip(axes, (y, slope), strict=True):
            ax.plot(x.detach(), values.detach(), STYLES[name], label=name)
    axes[0].set(ylim=(-0.6, 4.2), title=_("激活函数"))
    axes[1].set(ylim=(-0.3, 2.6), title=_("导数"), xlabel="x")
    axes[0].legend(frameon=False)
    return fig


def gelu_error(plt: Any, _: Translate) -> Any:
    x = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    exact = torch.special.ndtr(x)
    fig, axes = plt.subplots(3, 1, figsize=(5.2, 7.4), layout="constrained", sharex=True)
    for name, a in (("0.044715", 0.044715), (_("泰勒：0.045540"), 2 / (3 * math.pi) - 1 / 6)):
        error = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + a * x**3))) - exact
        axes[0].plot(x, 1e4 * error, label=name)
        axes[1].plot(x, 1e4 * x * error, label=name)
    axes[2].plot(x, 1e4 * (A.quick_gelu(x) - A.gelu(x)), color="C2")
    titles = (_("分布函数，tanh 版本"), _("GELU，tanh 版本"), _("GELU，sigmoid 版本，1.702"))
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, ylabel=_("误差 ×10⁴"))
    axes[2].set(xlabel="x")
    axes[0].legend(frameon=False)
    return fig


def variance(plt: Any, _: Translate) -> Any:
    z = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)

    def moment(f: Callable[[Tensor], Tensor], q: float) -> float:
        return ((weight * f(math.sqrt(q) * z).square()).sum() / weight.sum()).item()

    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for color, name in (("C0", "ReLU"), ("C1", "GELU"), ("C2", "SiLU")):
        f = NAMED[name]
        for start in (0.9, 1.1):
            values = [start]
            for _layer in range(30):
                values.append(moment(f, values[-1]) / moment(f, 1.0))
            ax.plot(values, STYLES[name], color=color, label=name if start < 1 else None)
    ax.set(yscale="log", xlabel=_("层"), ylabel=_("方差"))
    ax.legend(frameon=False)
    return fig


def experiment(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    titles = {"product": _("目标：乘积"), "relu": _("目标：ReLU 网络"), "sine": _("目标：正弦")}
    fig, axes = plt.subplots(3, 1, figsize=(5.2, 7.2), layout="constrained")
    for ax, (kind, rows) in zip(axes, record["results"].items(), strict=True):
        for place, (name, row) in enumerate(rows.items()):
            errors = torch.tensor(row["errors"])
            color = "C0" if name in NAMED else "C1"
            bar = errors.std() / math.sqrt(len(errors))
            ax.errorbar(place, errors.mean(), yerr=bar, fmt="s" if name in NAMED else "o", color=color, capsize=3)
        ax.set(title=titles[kind], ylabel=_("剩余的方差"), yscale="log")
        ax.set_xticks(range(len(rows)), list(rows), rotation=30)
        ax.minorticks_off()
    return fig
