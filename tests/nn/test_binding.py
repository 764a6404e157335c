"""A bound module computes what the module computes; where that could become untrue it is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import GatedFeedForward, GemmaRMSNorm, LateCastRMSNorm, LayerNorm, RMSNorm
from llm_study.nn.binding import bind
from llm_study.nn.layout import lay_out_for_decoding


def scattered(module: nn.Module) -> nn.Module:
    """Return the module in float64 with parameters that are all different."""
    torch.manual_seed(0)
    for p in module.double().parameters():
        nn.init.normal_(p, std=0.5)
    return module.eval()


def attention() -> MultiHeadAttention:
    norms = RMSNorm(2, eps=1e-3), RMSNorm(2, eps=1e-3)
    layer = MultiHeadAttention(8, 4, n_kv_heads=2, bias=True, scale=0.7, q_norm=norms[0], k_norm=norms[1])
    return scattered(layer)


def feed_forward() -> GatedFeedForward:
    return scattered(GatedFeedForward(8, 12, activation=torch.nn.functional.silu, bias=True))


MODULES = {
    "linear": lambda: scattered(nn.Linear(8, 5)),
    "without bias": lambda: scattered(nn.Linear(8, 5, bias=False)),
    "rms": lambda: scattered(RMSNorm(8, eps=0.1)),
    "layer norm": lambda: scattered(LayerNorm(8, eps=0.1)),
    "late cast": lambda: scattered(LateCastRMSNorm(8, eps=0.1)),
    "gemma": lambda: scattered(GemmaRMSNorm(8, eps=0.1)),
    "attention": attention,
    "feed forward": feed_forward,
}
X = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_bound_module_computes_the_same_and_sees_what_is_written_into_it(name: str, laid_out: bool) -> None:
    module = MODULES[name]()
    if laid_out:
        lay_out_for_decoding(module)
    function = bind(module)
    assert function is not module
    before = function(X)
    assert torch.equal(before, module(X))
    for p in module.parameters():
        p.mul_(1.5)
    assert torch.equal(function(X), module(X))
    assert not torch.allclose(function(X), before)


@pytest.mark.parametrize("make", [attention, feed_forward])
@torch.no_grad()
def test_what_lies_side_by_side_no_more_is_asked_one_by_one(make: Callable[[], nn.Module]) -> None:
    module = make()
    lay_out_for_decoding(module)
    part = next(p for p in module.children() if isinstance(p, nn.Linear))
    before = module(X)
    part.weight = nn.Parameter(2 * part.weight)
    assert torch.equal(bind(module)(X), module(X))
    assert not torch.allclose(module(X), before)


@torch.no_grad()
def test_what_is_bound_makes_one_product_and_looks_no_more_where_its_layers_are() -> None:
    module = feed_forward()
    lay_out_for_decoding(module)
    function, before = bind(module), module(X)
    module.up_proj.weight = nn.Parameter(torch.zeros_like(module.up_proj.weight))
    assert torch.equal(function(X), before)
    assert not torch.allclose(module(X), before)


@torch.no_grad()
def test_binding_changes_nothing_in_a_module() -> None:
    for make in MODULES.values():
        module = make()
        held, state = dict(vars(module)), {name: p.data_ptr() for name, p in module.named_parameters()}
        bind(module)(X)
        assert all(vars(module)[name] is x for name, x in held.items())
        assert {name: p.data_ptr() for name, p in module.named_parameters()} == state


@pytest.mark.parametrize("name", MODULES)
def test_hooks_are_called(name: str) -> None:
    module = MODULES[name]()
    lay_out_for_decoding(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        hook = register(lambda *_: None)
        assert bind(module) is module
        hook.remove()
        assert bind(module) is not module


@torch.no_grad()
def test_hooks_of_parts_are_called() -> None:
    seen: list[Tensor] = []
    for name in ("o_proj", "k_norm", "v_proj"):
        layer = attention()
        lay_out_for_decoding(layer)
        getattr(layer, name).register_forward_hook(lambda module, args, out: seen.append(out))
        assert torch.allclose(bind(layer)(X), layer(X), rtol=0, atol=1e-12)
        assert len(seen) == 2
        seen.clear()


@torch.no_grad()
def test_a_class_with_another_forward_is_left_alone() -> None:
    class Doubled(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Renamed(RMSNorm):
        pass

    class Wide(nn.Linear):
        pass

    for module in (scattered(Doubled(8)), nn.Identity()):
        assert bind(module) is module
    for module in (scattered(Renamed(8)), scattered(Wide(8, 5))):
        assert bind(module) is not module
        assert torch.equal(bind(module)(X), module(X))


def test_nothing_asks_for_gradients() -> None:
    for name, make in MODULES.items():
        module = make()
        lay_out_for_decoding(module)
        assert not bind(module)(X).requires_grad, name
