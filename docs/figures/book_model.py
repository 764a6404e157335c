"""How the model learns that record_book_model.py trains on the text of this book."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Translate = Callable[[str], str]
NEUTRAL = "C7"
RECORD = Path(__file__).parents[1] / "data" / "book_model.json"


def bits(nats_per_token: float, record: dict[str, Any]) -> float:
    """Convert a loss on the text that is trained on to bits per byte."""
    return nats_per_token / math.log(2) / float(record["bytes per token"])


def learning(plt: Any, _: Translate) -> Any:
    record = json.loads(RECORD.read_text("utf-8"))
    fig, ax = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
    steps, losses = zip(*record["loss"], strict=True)
    ax.plot(steps, [bits(loss, record) for loss in losses], color="C0", linewidth=1, alpha=0.6, label=_("训练"))
    steps, __, found = zip(*record["evaluations"], strict=True)
    ax.plot(steps, found, "o-", color="C0", markersize=4, label=_("留出"))
    low = record["bits per byte"]
    for order, style in (("order 3", ":"), ("order 6", "--")):
        name = _("{n} 阶 n 元模型").format(n=order.partition(" ")[2])
        value = low[order]["all"]
        ax.axhline(value, color=NEUTRAL, linestyle=style, linewidth=1.2, label=f"{name} ({value:.2f})")
    whole = low["model"]["all"]
    ax.plot(steps[-1], whole, "*", color="C1", markersize=10, label=f"{_('留出的页，从头读到尾')} ({whole:.2f})")
    ax.set(title=_("每字节比特数"), xlabel=_("步数"), ylim=(1, 5))
    ax.legend(frameon=False)
    return fig
