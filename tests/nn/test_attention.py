"""The module is its function between four projections."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional.attention import attention_reference, causal_attention, causal_mask, padding_mask
from llm_study.functional.positions import apply_rope, rope_cos_sin, rope_frequencies
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import RMSNorm


def layer_with_large_weights(**sizes: int | float | bool | nn.Module) -> MultiHeadAttention:
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


# --- what models hand in


def by_hand(layer: MultiHeadAttention, x: Tensor, scale: float) -> Tensor:
    """Second formula: every step of the layer, with norms, rotation and causal mask, one after the other."""
    T, heads = x.shape[1], []
    angles = torch.arange(T)[:, None] * rope_frequencies(layer.d_head).double()
    for h in range(layer.n_heads):
        shared = h * layer.n_kv_heads // layer.n_heads
        q, k, v = (
            projection(x).unflatten(-1, (-1, layer.d_head))[:, :, index]
            for projection, index in ((layer.q_proj, h), (layer.k_proj, shared), (layer.v_proj, shared))
        )
        rotated = []
        for vectors, norm in ((q, layer.q_norm), (k, layer.k_norm)):
            a, b = norm(vectors).chunk(2, dim=-1)
            turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
            rotated.append(torch.cat([turned.real, turned.imag], dim=-1))
        scores = scale * rotated[0] @ rotated[1].mT
        heads.append(scores.masked_fill(~causal_mask(T), -math.inf).softmax(-1) @ v)
    return layer.o_proj(torch.cat(heads, dim=-1))


def test_norms_rotation_scale_and_attend_are_each_in_their_place() -> None:
    norms = {"q_norm": RMSNorm(6, eps=0.1), "k_norm": RMSNorm(6, eps=0.2)}
    layer = layer_with_large_weights(n_kv_heads=2, d_head=6, bias=True, out_bias=False, scale=0.7, **norms)
    x = torch.randn(2, 5, 12).double()
    rotary = rope_cos_sin(torch.arange(5), rope_frequencies(6), dtype=torch.float64)
    expected = by_hand(layer, x, scale=0.7)
    torch.testing.assert_close(layer(x, rotary=rotary, mask=causal_mask(5)), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x, rotary=rotary, attend=causal_attention), expected, rtol=1e-12, atol=1e-12)


def test_norms_come_before_the_rotation() -> None:
    class Stretch(nn.Module):
        """A norm that a rotation before it would change: it scales each feature by another number."""

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(1, x.shape[-1] + 1)

    layer = layer_with_large_weights(d_head=6, q_norm=Stretch(), k_norm=Stretch())
    x, seen = torch.randn(1, 3, 12).double(), []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        seen.extend([q, k, scale])
        return v

    rotary = rope_cos_sin(torch.arange(3), rope_frequencies(6), dtype=torch.float64)
    layer(x, rotary=rotary, attend=attend)
    for found, projection in zip(seen[:2], (layer.q_proj, layer.k_proj), strict=True):
        heads = projection(x).unflatten(-1, (4, 6)).transpose(1, 2)
        assert torch.equal(found, apply_rope(Stretch()(heads), *rotary))
    assert seen[2] is None  # no scale was given: the function takes its own default


def test_positions_of_each_sequence_may_differ() -> None:
    layer = layer_with_large_weights(d_head=6)
    x = torch.randn(2, 4, 12).double()
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 8, 9]])
    cos, sin = rope_cos_sin(positions, rope_frequencies(6), dtype=torch.float64)
    both = layer(x, rotary=(cos[:, None], sin[:, None]))
    for b in range(2):
        torch.testing.assert_close(layer(x[b : b + 1], rotary=(cos[b], sin[b]))[0], both[b], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(x, rotary=(cos[0], sin[0])), both)


@pytest.mark.parametrize("T", [2, 5])
def test_attention_to_a_cache_is_an_attend(T: int) -> None:
    """Keys and values of earlier calls come in through ``attend``; the layer needs to know nothing of them."""
    layer = layer_with_large_weights(d_head=6, n_kv_heads=2)
    x, past = torch.randn(2, 7, 12).double(), []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        past.append((k, v))
        k, v = (torch.cat(parts, dim=2) for parts in zip(*past, strict=True))
        return causal_attention(q, k, v, scale=scale)

    cos, sin = rope_cos_sin(torch.arange(7), rope_frequencies(6), dtype=torch.float64)
    parts = [slice(0, T), slice(T, 7)]
    pieces = [layer(x[:, part], rotary=(cos[part], sin[part]), attend=attend) for part in parts]
    whole = layer(x, rotary=(cos, sin), attend=causal_attention)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_biases_of_the_input_and_the_output_are_separate() -> None:
    for bias, out_bias in ((True, False), (False, True)):
        layer = MultiHeadAttention(12, 4, bias=bias, out_bias=out_bias)
        assert [p.bias is not None for p in (layer.q_proj, layer.k_proj, layer.v_proj)] == [bias] * 3
        assert (layer.o_proj.bias is not None) == out_bias
    assert MultiHeadAttention(12, 4, bias=True).o_proj.bias is not None


def test_norms_are_part_of_the_state() -> None:
    layer = MultiHeadAttention(12, 4, q_norm=RMSNorm(3), k_norm=RMSNorm(3))
    assert {"q_norm.weight", "k_norm.weight"} < set(layer.state_dict())


def test_options_that_exclude_each_other_are_refused() -> None:
    layer, x = MultiHeadAttention(12, 4), torch.zeros(1, 3, 12)
    with pytest.raises(ValueError, match="mask and attend are both given, expected one"):
        layer(x, mask=causal_mask(3), attend=partial(attention_reference, mask=causal_mask(3)))
    with pytest.raises(ValueError, match="rotary and context are both given, expected one"):
        layer(x, x, rotary=rope_cos_sin(torch.arange(3), torch.ones(1)))


# --- errors and cost


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
