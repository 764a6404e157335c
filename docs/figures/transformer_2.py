"""Figures of general/transformer_2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_study.functional.attention import causal_mask
from llm_study.functional.norms import layer_norm
from llm_study.functional.positions import sinusoidal
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import FeedForward, LayerNorm
from llm_study.nn.block import EncoderBlock, PostNormResidual, PreNormResidual

Translate = Callable[[str], str]
NEUTRAL = "C7"
RECORD = Path(__file__).parents[1] / "data" / "transformer_training.json"


def positions(plt: Any, _: Translate) -> Any:
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.4), layout="constrained")
    times = torch.arange(0, 64.1, 0.25)
    waves = sinusoidal(times, 64)
    for color, pair in enumerate((0, 4, 8, 14)):
        above.plot(times, waves[:, 2 * pair], color=f"C{color}", label=f"i = {pair}")
    above.set(xlabel=_("位置 t"), title=_("四根表针的正弦"), ylim=(-1.15, 1.75))
    above.legend(frameon=False, ncols=4, loc="upper center", handlelength=1.2, columnspacing=1.2)
    distances = torch.arange(-100, 101)
    for color, width in enumerate((32, 512)):
        p = sinusoidal(torch.arange(201), width)
        below.plot(distances, p @ p[100] / (width / 2), color=f"C{color}", label=f"D = {width}")
    below.set(xlabel=_("距离 t − u"), title=_("两个编码的内积，除以 D/2"), ylim=(0, 1.05))
    below.legend(frameon=False)
    return fig


Residual = type[PreNormResidual] | type[PostNormResidual]


def gradient_norms(residual: Residual, n_layers: int, seed: int) -> list[float]:
    """Return the norm of the gradient of each layer's second feed-forward matrix, at initialization."""
    torch.manual_seed(seed)
    D, T = 32, 16
    blocks = []
    for _ in range(n_layers):
        parts = MultiHeadAttention(D, 4), FeedForward(D, 4 * D, activation=torch.relu)
        block = EncoderBlock(*parts, wrap=lambda f: residual(f, LayerNorm(D)))
        for parameter in block.parameters():
            if parameter.ndim == 2:
                torch.nn.init.xavier_uniform_(parameter)
        blocks.append(block)
    x = torch.randn(4, T, D)
    for block in blocks:
        x = block(x)
    x = layer_norm(x) if residual is PreNormResidual else x
    logits = x @ torch.randn(D, 50) / D**0.5
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(50, (4 * T,))).backward()
    return [block.feed_forward.sublayer.down_proj.weight.grad.norm().item() for block in blocks]


def gradients(plt: Any, _: Translate) -> Any:
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.4), layout="constrained")
    depths, seeds = [2, 4, 8, 16, 32], range(4)
    for (label, residual), marker in zip(
        {_("后归一化"): PostNormResidual, _("前归一化"): PreNormResidual}.items(), "os", strict=True
    ):
        runs = torch.tensor([gradient_norms(residual, 12, seed) for seed in seeds]).mean(0)
        above.plot(range(1, 13), runs, marker=marker, label=label)
        last = [sum(gradient_norms(residual, depth, seed)[-1] for seed in seeds) / len(seeds) for depth in depths]
        below.plot(depths, last, marker=marker, label=label)
    shape = [last[0] * (3 / (depth + 1)) ** 0.5 for depth in depths]
    below.plot(depths, shape, color=NEUTRAL, linestyle="--", label="∝ 1/√(L + 1)")
    above.set(xlabel=_("层"), title=_("12 层模型各层的梯度范数"), ylim=(0, None))
    below.set(xlabel=_("层数 L"), title=_("最后一层的梯度范数"), xscale="log", ylim=(0, None))
    below.set_xticks(depths, [str(depth) for depth in depths])
    below.minorticks_off()
    for ax in (above, below):
        ax.legend(frameon=False)
    return fig


def families(plt: Any, _: Translate) -> Any:
    n = 6
    both = torch.ones(n, n, dtype=torch.bool)
    both[:3, 3:] = False
    both[3:, 3:] = causal_mask(3)
    panels = {
        _("只有编码器"): torch.ones(n, n, dtype=torch.bool),
        _("只有解码器"): causal_mask(n),
        _("编码器-解码器"): both,
    }
    fig, axes = plt.subplots(1, 3, figsize=(5.3, 2.3), layout="constrained", sharey=True)
    for ax, (title, mask) in zip(axes, panels.items(), strict=True):
        for i, j in mask.nonzero().tolist():
            color = "C1" if mask is both and i >= 3 > j else "C0"  # from target to source
            ax.add_patch(plt.Rectangle((j - 0.45, i - 0.45), 0.9, 0.9, color=color))
        ax.set(xlim=(-0.6, n - 0.4), ylim=(n - 0.4, -0.6), aspect="equal", xlabel=_("键 j"))
        ax.set_title(title, fontsize="medium")
        ax.set(xticks=range(n), yticks=range(n))
    axes[0].set_ylabel(_("查询 i"))
    for line in (axes[2].axhline, axes[2].axvline):
        line(2.5, color=NEUTRAL, linestyle=":")
    return fig


def training(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    fig, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.2), layout="constrained")
    marks = range(record["every"], record["steps"] + 1, record["every"])
    for task, label, marker in (("copy", _("抄写"), "o"), ("reverse", _("倒写"), "s")):
        above.plot(range(1, record["steps"] + 1), record["runs"][task]["loss"], label=label, linewidth=1)
        below.plot(marks, record["runs"][task]["accuracy"], marker=marker, label=label)
    above.set(
        xlabel=_("步"), title=_("训练的损失"), yscale="log", yticks=[0.01, 0.1, 1], yticklabels=["0.01", "0.1", "1"]
    )
    below.set(xlabel=_("步"), title=_("全部写对的比例"), ylim=(0, 1.05))
    for ax in (above, below):
        ax.legend(frameon=False)
    return fig
