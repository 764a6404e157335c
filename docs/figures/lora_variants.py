"""Figures of finetuning/lora_variants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_study.functional import lowrank
from llm_study.peft.adalora import AdaLoRA, RankAllocator
from llm_study.peft.base import Method, inject, trainable
from llm_study.peft.linear import LinearAdapter
from llm_study.peft.lora import LoRA
from llm_study.peft.lowrank import FourierFT, LoHa, LoKr, MiSS, MoRA
from llm_study.peft.shared import RandLoRA

Translate = Callable[[str], str]


def _adapter(method: Method, width: int, std: float) -> Any:
    """Return one square layer with random trained values, or with those of the start if the deviation is 0."""
    model = inject(nn.Sequential(nn.Linear(width, width, bias=False)), method, ["0"])
    for parameter in trainable(model).values() if std else ():
        nn.init.normal_(parameter, std=std)
    return model[0]


def ranks(plt: Any, _: Translate) -> Any:
    torch.manual_seed(0)
    families: dict[str, list[Method]] = {
        "LoRA": [LoRA(rank=r) for r in (1, 2, 4, 8, 16, 32)],
        "MiSS": [MiSS(rank=r) for r in (1, 2, 4, 8, 16, 32)],
        "LoHa": [LoHa(rank=r) for r in (1, 2, 4, 8)],
        "LoKr": [LoKr(rank=r) for r in (1, 2, 3)],
        "MoRA": [MoRA(rank=r) for r in (1, 2, 4, 8, 16, 32)],
        "FourierFT": [FourierFT(n_frequency=n) for n in (4, 16, 64, 256)],
        "RandLoRA": [RandLoRA(rank=r) for r in (2, 4, 8, 16, 32)],
    }
    fig, ax = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    for (name, methods), marker in zip(families.items(), "osv^Dx+", strict=True):
        points = []
        for method in methods:
            adapter = _adapter(method, 64, 1.0)
            count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
            points.append((count, int(torch.linalg.matrix_rank(adapter.delta().double(), rtol=1e-5))))
        ax.plot(*zip(*sorted(points), strict=True), marker=marker, markersize=5, label=name, alpha=0.85)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set(title=_("同样多的数，多高的秩"), xlabel=_("可训练的数"), ylabel=_("权重差的秩"))
    ax.legend(fontsize=8, ncols=2)
    ax.grid(alpha=0.3)
    return fig


def budget(plt: Any, _: Translate) -> Any:
    torch.manual_seed(0)
    method = AdaLoRA(init_r=6, target_r=3, tinit=20, tfinal=40, total_step=200)
    model = inject(nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)]), method, ["0", "1"])
    targets = [
        layer.base_layer.weight.detach() + torch.randn(16, r) @ torch.randn(r, 16) / 4
        for layer, r in zip(model, (5, 1), strict=True)
    ]
    optimizer = torch.optim.Adam(trainable(model).values(), lr=0.03)
    allocator = RankAllocator(model)
    budgets, left = [], []
    for step in range(1, 201):
        x = torch.randn(64, 16)
        loss = sum(((layer(x) - x @ t.T) ** 2).sum() for layer, t in zip(model, targets, strict=True))
        loss.backward()
        optimizer.step()
        budgets.append(allocator.step(step))
        optimizer.zero_grad()
        left.append(list(allocator.ranks().values()))
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 5.2), layout="constrained", sharex=True)
    axes[0].plot(budgets)
    axes[0].set(title=_("预算"), ylabel=_("三元组的总数"), ylim=(0, 13))
    for series, name in zip(zip(*left, strict=True), (_("目标秩为 5 的层"), _("目标秩为 1 的层")), strict=True):
        axes[1].step(range(200), series, where="post", label=name)
    axes[1].set(title=_("各层剩下的三元组"), xlabel=_("步"), ylabel=_("个数"), ylim=(0, 7))
    axes[1].legend()
    for ax in axes:
        ax.grid(alpha=0.3)
    return fig


def _fit(method: Method, target: Tensor, steps: int) -> list[float]:
    """Return the remaining share of the error, while a weight difference learns a target."""
    torch.manual_seed(1)
    adapter: LinearAdapter = _adapter(method, len(target), 0.0)
    optimizer = torch.optim.Adam([p for p in adapter.parameters() if p.requires_grad], lr=0.02)
    errors = []
    for _step in range(steps):
        error = (adapter.delta() - target).square().sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.sqrt().item() / target.norm().item())
    return errors


def fit(plt: Any, _: Translate) -> Any:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(32, 4, generator=generator) @ torch.randn(4, 32, generator=generator) / 8
    full = torch.randn(32, 32, generator=generator) / 4
    methods: list[tuple[str, Method]] = [
        ("LoRA", LoRA(rank=4, alpha=4)),
        ("LoHa", LoHa(rank=2, alpha=2)),
        ("MoRA", MoRA(rank=4)),
        ("MiSS", MiSS(rank=8)),
        ("RandLoRA", RandLoRA(rank=4, alpha=4)),
    ]
    fig, axes = plt.subplots(2, 1, figsize=(5.2, 6.2), layout="constrained", sharex=True)
    for ax, target, title in ((axes[0], low, _("目标的秩是 4")), (axes[1], full, _("目标满秩"))):
        for name, method in methods:
            count = sum(p.numel() for p in _adapter(method, 32, 0.0).parameters() if p.requires_grad)
            ax.plot(_fit(method, target, 200), label=_("{name}，{n} 个数").format(name=name, n=count))
        ax.set(title=title, ylabel=_("剩余误差"), yscale="log")
        ax.grid(alpha=0.3)
    floor = lowrank.principal_factors(full, 4)
    rest = ((full - floor[1] @ floor[0]).norm() / full.norm()).item()
    axes[1].axhline(rest, color="C7", linestyle=":", label=_("秩为 4 的下界"))
    axes[1].set(xlabel=_("步"))
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=8)
    return fig
