"""The module is its function between four projections."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional.attention import attention_reference, causal_mask, padding_mask
from llm_study.nn.attention import MultiHeadAttention


def layer_with_large_weights(**sizes: int | bool) -> MultiHeadAttention:
    torch.manual_seed(0)
    layer = MultiHeadAttention(**{"d_model": 12, "n_heads": 4, **sizes}).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@pytest.mark.parametrize("sizes", [{}, {"n_kv_heads": 2}, {"n_kv_heads": 1, "d_head": 5}, {"d_head": 7, "bias": True}])
def test_equals_one_head_at_a_time(sizes: dict[str, int | bool]) -> None:
    layer = layer_with_large_weights(**sizes)
    x, context = torch.randn(2, 3, 12).double(), torch.randn(2, 5, 12).double()
    mask = padding_mask(torch.tensor([5, 2]), 5)
    q, k, v = layer.q_proj(x), layer.k_proj(context), layer.v_proj(context)
    Dh, group = layer.d_head, layer.n_heads // layer.n_kv_heads
    heads = []
    for h in range(layer.n_heads):
        own, shared = slice(h * Dh, (h + 1) * Dh), slice(h // group * Dh, (h // group + 1) * Dh)
        scores = (q[..., own] @ k[..., shared].mT / math.sqrt(Dh)).masked_fill(~mask[:, 0], -math.inf)
        heads.append(scores.softmax(-1) @ v[..., shared])
    torch.testing.assert_close(layer(x, context, mask=mask), layer.o_proj(torch.cat(heads, -1)), rtol=1e-12, atol=1e-12)


def test_shared_heads_equal_repeated_weights() -> None:
    shared = layer_with_large_weights(n_kv_heads=2)
    full = layer_with_large_weights()
    state = shared.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].unflatten(0, (2, 3)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 6, 12).double()
    torch.testing.assert_close(shared(x, mask=causal_mask(6)), full(x, mask=causal_mask(6)), rtol=1e-12, atol=1e-12)


def test_self_attention_is_attention_to_itself() -> None:
    layer = layer_with_large_weights()
    x = torch.randn(2, 5, 12).double()
    assert torch.equal(layer(x), layer(x, x))


def test_default_sizes_names_and_number_of_parameters() -> None:
    layer = MultiHeadAttention(24, 4)
    assert (layer.n_kv_heads, layer.d_head) == (4, 6)
    assert [name for name, _ in layer.named_parameters()] == [f"{x}_proj.weight" for x in "qkvo"]
    grouped = MultiHeadAttention(24, 4, n_kv_heads=2, d_head=5, bias=True)
    assert sum(p.numel() for p in grouped.parameters()) == 24 * (20 + 10 + 10 + 20) + 20 + 10 + 10 + 24
    assert "n_heads=4, n_kv_heads=2, d_head=5" in repr(grouped)


def test_gradients_reach_every_parameter() -> None:
    layer = layer_with_large_weights(n_kv_heads=2)
    x = torch.randn(1, 3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, mask=causal_mask(3)), (x, *layer.parameters()))


def test_uses_no_other_mathematics_than_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_with_large_weights(n_kv_heads=2)
    x = torch.randn(2, 4, 12).double()
    fast = layer(x, mask=causal_mask(4))
    monkeypatch.setattr("llm_study.nn.attention.attention", attention_reference)
    torch.testing.assert_close(layer(x, mask=causal_mask(4)), fast, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 10}, "n_heads = 4 does not divide d_model = 10 .*d_head"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 4"),
        ({"n_kv_heads": 0}, "n_kv_heads is 0, expected at least 1"),
        ({"n_heads": 0}, "n_heads is 0, expected at least 1"),
        ({"d_model": 0}, "d_model is 0, expected at least 1"),
        ({"d_head": 0}, "d_head is 0, expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"d_model": 12, "n_heads": 4, **sizes})


@pytest.mark.parametrize(
    ("x", "context", "message"),
    [
        ((3, 12), None, r"x has shape \(3, 12\), expected 3 dimensions \(B, T, D\)"),
        ((2, 3, 11), None, "width of x is 11, d_model is 12"),
        ((2, 3, 12), (2, 3, 4, 12), r"context has shape \(2, 3, 4, 12\), expected 3 dimensions \(B, S, D\)"),
        ((2, 3, 12), (2, 5, 13), "width of context is 13, d_model is 12"),
        ((2, 3, 12), (1, 5, 12), "batch size of context is 1, batch size of x is 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: tuple[int, ...], context: tuple[int, ...] | None, message: str) -> None:
    layer = MultiHeadAttention(12, 4)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(x), None if context is None else torch.zeros(context))


def test_cost_is_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_study.nn.attention.attention", attention_reference)  # torch does not count the kernel
    B, T, S, D, H, K, Dh = 2, 3, 5, 12, 4, 2, 6
    layer = MultiHeadAttention(D, H, n_kv_heads=K, d_head=Dh)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(B, T, D), torch.zeros(B, S, D))
    assert counter.get_total_flops() == 4 * B * D * Dh * (T * H + S * K) + 4 * B * H * T * S * Dh
