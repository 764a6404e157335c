"""How the methods learn that record_finetuning.py compares."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Translate = Callable[[str], str]
RECORD = Path(__file__).parents[1] / "data" / "finetuning.json"
NAMES = {
    "lora": "LoRA", "rslora": "rsLoRA", "lora+": "LoRA+", "lora_fa": "LoRA-FA", "dora": "DoRA", "pissa": "PiSSA",
    "olora": "OLoRA", "adalora": "AdaLoRA", "vera": "VeRA", "vb_lora": "VB-LoRA", "randlora": "RandLoRA",
    "loha": "LoHa", "lokr": "LoKr", "mora": "MoRA", "miss": "MiSS", "fourierft": "FourierFT",
}  # fmt: skip
"""The methods of the record, but for full fine-tuning, by the names that people know them by."""
GROUPS = (
    ("lora", "rslora", "lora+", "lora_fa", "dora"),
    ("pissa", "olora", "adalora", "vera", "vb_lora", "randlora"),
    ("loha", "lokr", "mora", "miss", "fourierft"),
)
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def curve(method: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Return steps and losses on the test conversations at the learning rate that was chosen."""
    steps, losses = zip(*method["runs"][method["best"]]["test"], strict=True)
    return list(steps), list(losses)


def learning(plt: Any, _: Translate) -> Any:
    methods = json.loads(RECORD.read_text("utf-8"))["methods"]
    fig, axes = plt.subplots(3, 1, figsize=(5.4, 8.4), layout="constrained", sharex=True, sharey=True)
    titles = (_("LoRA 与它的近亲"), _("换起点、换坐标与共用"), _("换结构"))
    for ax, group, title in zip(axes, GROUPS, titles, strict=True):
        ax.plot(*curve(methods["full"]), color="C7", linewidth=3, alpha=0.5, label=_("全量微调"))
        for i, (name, style) in enumerate(zip(group, STYLES, strict=False)):
            ax.plot(*curve(methods[name]), color=f"C{i}", linestyle=style, linewidth=1.5, label=NAMES[name])
        ax.set(title=title, ylabel=_("测试损失"), yscale="log")
        ax.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
        ax.minorticks_off()
        ax.legend(fontsize=8, ncols=2)
        ax.grid(alpha=0.3)
    axes[-1].set(xlabel=_("步"))
    return fig


def answers(plt: Any, _: Translate) -> Any:
    methods = json.loads(RECORD.read_text("utf-8"))["methods"]
    names = {**NAMES, "full": _("全量微调")}
    order = sorted(methods, key=lambda name: (methods[name]["exact"]["test"], methods[name]["exact"]["train"]))
    fig, ax = plt.subplots(figsize=(5.4, 4.8), layout="constrained")
    for part, marker, label in (("train", "o", _("训练过的问题")), ("test", "D", _("没有训练过的问题"))):
        ax.plot([methods[name]["exact"][part] for name in order], range(len(order)), marker, label=label, alpha=0.8)
    ax.set_yticks(range(len(order)), [f"{names[name]} ({methods[name]['share']:.2%})" for name in order], fontsize=8)
    ax.set(title=_("逐字答对的比例"), xlabel=_("比例"), xlim=(-0.03, 1.03))
    ax.grid(alpha=0.3)
    ax.legend()
    return fig
