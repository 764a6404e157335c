"""Figures of algorithms/model_atlas."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_study.core.config import DecoderConfig, ModelConfig, config_from_dict
from llm_study.core.roofline import Transformer, kv_cache_bytes, parameters
from llm_study.functional.positions import rope_frequencies
from llm_study.models.decoder import rotary_frequencies

Translate = Callable[[str], str]
MIX, LOCAL, SLOT, NEUTRAL = "C0", "C1", "C2", "C7"
RECORD = Path(__file__).parents[1] / "data" / "model_atlas.json"


def configs() -> dict[str, ModelConfig]:
    """Return the configurations of the atlas."""
    models = json.loads(RECORD.read_text("utf-8"))["models"]
    return {model["name"]: config_from_dict(model["config"]) for model in models}


def shares_of(model: Transformer) -> list[float]:
    """Return which part of the parameters lies in the embedding, the head, attention and the feed-forward part."""
    count, D = parameters(model), model.hidden_size
    attention = sum(layer.attention.matmul_parameters(D) for layer in model.layers)
    feed_forward = sum(layer.feed_forward.matmul_parameters(D) for layer in model.layers)
    parts = (count.embedding, count.head, attention, feed_forward)
    return [part / count.total for part in parts]


def _box(plt: Any, ax: Any, y: float, text: str, color: str, slot: bool = False) -> None:
    from matplotlib.colors import to_rgb

    face = "none" if slot else (*to_rgb(color), 0.22)
    style = {"linestyle": (0, (4, 2)) if slot else "-", "linewidth": 1.2, "facecolor": face, "edgecolor": color}
    ax.add_patch(plt.Rectangle((-1.35, y - 0.28), 2.7, 0.56, **style))
    ax.text(0, y, text, ha="center", va="center", fontsize=9)


def _arrow(ax: Any, low: float, high: float) -> None:
    style = {"arrowstyle": "-|>", "color": NEUTRAL, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (0, high), (0, low), arrowprops=style)


def skeleton(plt: Any, _: Translate) -> Any:
    norm = _("归一化")
    rows: list[tuple[str, str, bool, str]] = [  # text, color, whether it may be empty, who fills it with what
        (_("词嵌入"), NEUTRAL, False, ""),
        (_("倍数"), SLOT, True, _("Gemma：√D")),
        (norm, SLOT, True, _("OLMo 2 不放；Gemma 乘以 1 + w")),
        (_("因果注意力"), MIX, False, _("旋转、分组、窗口、偏置、归一化、软上限")),
        (norm, SLOT, True, _("OLMo 2、Gemma")),
        ("+", NEUTRAL, False, ""),
        (norm, SLOT, True, _("OLMo 2 不放")),
        (_("门控前馈网络"), LOCAL, False, _("SiLU；Gemma：GELU")),
        (norm, SLOT, True, _("OLMo 2、Gemma")),
        ("+", NEUTRAL, False, ""),
        (norm, NEUTRAL, False, ""),
        (_("输出层"), NEUTRAL, False, _("与嵌入共用，或者不共用")),
        (_("软上限"), SLOT, True, _("Gemma 2：30")),
    ]
    fig, ax = plt.subplots(figsize=(5.4, 6.6))
    for i, (text, color, slot, words) in enumerate(rows):
        y = 0.92 * i
        if text == "+":
            ax.add_patch(plt.Circle((0, y), 0.2, fill=False, edgecolor=NEUTRAL, linewidth=1.2))
            ax.text(0, y, "+", ha="center", va="center")
        else:
            _box(plt, ax, y, text, color, slot)
        low, high = (0.2 if kind == "+" else 0.28 for kind in (text, rows[min(i + 1, len(rows) - 1)][0]))
        if i + 1 < len(rows):
            _arrow(ax, y + low, y + 0.92 - high)
        ax.text(1.75, y, words, ha="left", va="center", fontsize=8.5)
    for start, end in ((2, 5), (6, 9)):  # the residual passes by
        low, high = 0.92 * start - 0.46, 0.92 * end
        ax.plot([0, -1.6, -1.6], [low, low, high], color=NEUTRAL, linewidth=1.1)
        style = {"arrowstyle": "-|>", "color": NEUTRAL, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (-0.2, high), (-1.6, high), arrowprops=style)
    frame = {"fill": False, "edgecolor": NEUTRAL, "linestyle": (0, (1, 2)), "linewidth": 1.2}
    ax.add_patch(plt.Rectangle((-1.95, 0.92 * 1.42), 3.55, 0.92 * 7.95, **frame))
    ax.text(-2.05, 0.92 * 5.4, "× L", ha="right", va="center")
    ax.set(xlim=(-2.6, 5.4), ylim=(-0.5, 0.92 * 12 + 0.5), aspect="equal")
    ax.axis("off")
    return fig


def shares(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.3, 4.0), layout="constrained")
    models = list(reversed(configs().items()))
    names = [_("嵌入"), _("输出层"), _("注意力"), _("前馈网络")]
    left = [0.0] * len(models)
    for n, label in enumerate(names):
        widths = [100 * shares_of(config.transformer())[n] for _name, config in models]
        ax.barh(range(len(models)), widths, left=left, height=0.65, color=("C2", "C3", MIX, LOCAL)[n], label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set_yticks(range(len(models)), [name for name, _config in models])
    ax.set(xlim=(0, 100), xlabel=_("占全部参数的百分比"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, fontsize=9, frameon=False)
    return fig


def cache(plt: Any, _: Translate) -> Any:
    fig, ax = plt.subplots(figsize=(5.3, 4.0), layout="constrained")
    lengths = [2 ** (i / 4) for i in range(4 * 7, 4 * 17 + 1)]
    shown = ["Llama 2 7B", "Qwen3 8B", "Llama 3.1 8B", "Gemma 2 2B", "Qwen2.5 7B", "Mistral 7B", "Gemma 3 1B"]
    all_configs = configs()
    for n, name in enumerate(shown):
        model = all_configs[name].transformer()
        windowed = any(layer.attention.window for layer in model.layers)
        sizes = [kv_cache_bytes(model, round(length)) / 2**30 for length in lengths]
        ax.plot(lengths, sizes, "-" if windowed else "--", color=f"C{n}", label=name)
    ax.set(xscale="log", yscale="log", xlabel=_("文本的长度（词元）"), ylabel=_("缓存（GiB）"))
    ax.set_xticks([128, 512, 4096, 32768, 131072], ["128", "512", "4096", "32768", "131072"])
    ax.set_yticks([0.001, 0.01, 0.1, 1, 10], ["0.001", "0.01", "0.1", "1", "10"])
    ax.minorticks_off()
    ax.legend(fontsize=8.5)
    return fig


def ramp(plt: Any, _: Translate) -> Any:
    config = configs()["Llama 3.1 8B"]
    assert isinstance(config, DecoderConfig)
    rope = config.rope(0)
    numbers = rope.to_dict()
    plain = rope_frequencies(config.head_dim, base=rope.rope_theta)
    ratio = rotary_frequencies(rope, config.head_dim) / plain
    fig, ax = plt.subplots(figsize=(5.3, 3.2), layout="constrained")
    ax.plot(2 * math.pi / plain, ratio, "o", markersize=4, color="C0")
    for factor in (numbers["high_freq_factor"], numbers["low_freq_factor"]):
        ax.axvline(numbers["original_max_position_embeddings"] / factor, color=NEUTRAL, linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel=_("波长（位置）"), ylabel=_("新频率 / 旧频率"), ylim=(0, 1.08))
    ax.set_xticks([10, 100, 2048, 8192, 100000, 1000000], ["10", "100", "2048", "8192", "10⁵", "10⁶"])
    ax.minorticks_off()
    ax.set_yticks([1 / numbers["factor"], 0.5, 1], ["1/8", "1/2", "1"])
    return fig
