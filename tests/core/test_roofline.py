"""Counts of published models, the laws that all counts obey, and the errors."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_study.core import roofline as r

# --- published models

COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "deepseek-v3": 671_026_404_352,
}


def test_every_published_model_has_a_count() -> None:
    assert r.published_names() == tuple(sorted(COUNTS))


@pytest.mark.parametrize(("name", "total"), COUNTS.items())
def test_published_models_have_the_published_number_of_parameters(name: str, total: int) -> None:
    assert r.parameters(r.published(name)).total == total


def test_each_term_of_llama_3_8b_by_hand() -> None:
    D, L, F, V = 4096, 32, 14336, 128_256
    assert r.parameters(r.published("llama-3-8b")) == r.Parameters(
        embedding=V * D,
        attention=L * (2 * D * 4096 + 2 * D * 1024),  # queries and output; keys and values of 8 heads
        feed_forward=L * 3 * D * F,
        norms=L * 2 * D + D,
        head=V * D,
        idle=0,
    )


def test_each_term_of_qwen3_by_hand() -> None:
    D, L, F, V, queries, keys = 1024, 28, 3072, 151_936, 2048, 1024
    assert r.parameters(r.published("qwen3-0.6b")) == r.Parameters(
        embedding=V * D,
        attention=L * 2 * D * (queries + keys),
        feed_forward=L * 3 * D * F,
        norms=L * (2 * D + 2 * 128) + D,
        head=0,
        idle=0,
    )


def test_deepseek_v3_by_hand() -> None:
    D, F, H = 7168, 2048, 128
    queries = D * 1536 + 1536 * H * (128 + 64)
    keys_and_values = D * (512 + 64) + 512 * H * (128 + 128)
    expert = 3 * D * F
    assert r.parameters(r.published("deepseek-v3")) == r.Parameters(
        embedding=129_280 * D,
        attention=61 * (queries + keys_and_values + H * 128 * D),
        feed_forward=3 * 3 * D * 18_432 + 58 * (257 * expert + 256 * D),
        norms=61 * (2 * D + 1536 + 512) + D,
        head=129_280 * D,
        idle=58 * 248 * expert,
    )


def test_where_671_and_685_billion_come_from() -> None:
    model = r.published("deepseek-v3")
    count, layer, D = r.parameters(model), model.layers[-1], model.hidden_size
    assert count.total + 58 * 256 == 671_026_419_200
    extra = layer.attention.parameters(D) + layer.feed_forward.parameters(D) + 2 * D * D
    copies = count.embedding + count.head
    assert round(extra / 1e9, 1) == 11.6  # the page of the weights says 11.5 for the extra layer, 14 with the copies
    assert round((extra + copies) / 1e9, 1) == 13.5
    assert round((count.total + extra + copies) / 1e9, 1) == 684.5
    assert round((count.active - count.embedding) / 1e9, 1) == 36.6  # what the page of the weights says


def test_counts_that_papers_round() -> None:
    assert round(r.parameters(r.published("gpt3-175b")).total / 1e6, -2) == 174_600  # Brown et al., table D.1
    assert round(r.parameters(r.published("mixtral-8x7b")).active / 1e9) == 13  # Jiang et al., section 1
    assert round(r.parameters(r.published("qwen3-0.6b")).non_embedding / 1e9, 2) == 0.44  # page of the model


def test_gpt_follows_the_closed_formulas() -> None:
    """Narayanan et al. (2021), arXiv:2104.04473, write the FLOPs of a training step like this."""
    for name, (D, L, V, P) in {"gpt2-xl": (1600, 48, 50257, 1024), "gpt3-175b": (12288, 96, 50257, 2048)}.items():
        model, B, T = r.published(name), 3, 1000
        assert r.parameters(model).total == V * D + P * D + L * (12 * D**2 + 13 * D) + 2 * D
        exact = 72 * B * T * L * D**2 * (1 + Fraction(T, 6 * D) + Fraction(V, 12 * D * L))
        assert r.training_flops(model, T, batch=B).total == exact


@pytest.mark.parametrize(
    ("name", "length", "percent"),
    [("gpt2", 1024, 14.4), ("gpt3-175b", 2048, 2.7), ("llama-2-7b", 4096, 14.0), ("llama-3.1-405b", 8192, 7.8)],
)
def test_how_far_six_n_d_is_off(name: str, length: int, percent: float) -> None:
    model = r.published(name)
    ratio = r.training_flops(model, length).total / (6 * r.parameters(model).total * length)
    assert round(100 * (ratio - 1), 1) == percent


# --- any model

sizes = st.integers(1, 40)


@st.composite
def attentions(draw: st.DrawFn) -> r.Attention:
    kv = draw(st.integers(1, 6))
    return r.Attention(
        num_attention_heads=kv * draw(st.integers(1, 6)),
        head_dim=draw(sizes),
        num_key_value_heads=kv,
        qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


feed_forwards = st.builds(r.FeedForward, intermediate_size=sizes, gated=st.booleans(), bias=st.booleans())
latents = st.builds(
    r.LatentAttention,
    num_attention_heads=sizes,
    kv_lora_rank=sizes,
    qk_nope_head_dim=sizes,
    qk_rope_head_dim=sizes,
    v_head_dim=sizes,
    q_lora_rank=st.none() | sizes,
)


@st.composite
def mixtures(draw: st.DrawFn) -> r.Experts:
    experts = draw(st.integers(1, 9))
    return r.Experts(
        expert=draw(feed_forwards),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        shared=draw(st.none() | feed_forwards),
    )


def layers(attention: st.SearchStrategy[Any], feed_forward: st.SearchStrategy[Any]) -> st.SearchStrategy[r.Layer]:
    return st.builds(r.Layer, attention=attention, feed_forward=feed_forward)


def models(layer: st.SearchStrategy[r.Layer]) -> st.SearchStrategy[r.Transformer]:
    return st.builds(
        r.Transformer,
        vocab_size=sizes,
        hidden_size=sizes,
        layers=st.lists(layer, min_size=1, max_size=4).map(tuple),
        tie_word_embeddings=st.booleans(),
        learned_positions=st.integers(0, 40),
        norm_bias=st.booleans(),
    )


any_layer = layers(attentions() | latents, feed_forwards | mixtures())
any_model = models(any_layer)
plain_models = models(layers(attentions(), feed_forwards))  # without latent attention and experts
ordinary_models = models(layers(attentions(), feed_forwards | mixtures()))  # without latent attention


def costs(model: r.Transformer) -> list[float]:
    """Return one number for each thing that layers have."""
    return [
        r.parameters(model).total,
        r.parameters(model).active,
        r.matmul_parameters(model),
        r.forward_flops(model, 7, batch=2).total,
        r.training_flops(model, 7, causal=True, recompute="full").total,
        r.decoding_flops(model, 7).total,
        r.kv_bytes_per_token(model),
    ]


@given(any_model, any_layer)
def test_costs_add_up_over_the_layers(model: r.Transformer, layer: r.Layer) -> None:
    one, two = (replace(model, layers=layers) for layers in ((layer,), (layer, layer)))
    more = replace(model, layers=(*model.layers, layer))
    assert [b - a for a, b in zip(costs(model), costs(more), strict=True)] == [
        b - a for a, b in zip(costs(one), costs(two), strict=True)
    ]
    assert all(a < b for a, b in zip(costs(model), costs(more), strict=True))
    assert costs(replace(more, layers=more.layers[::-1])) == costs(more)


@given(any_model)
def test_a_larger_vocabulary_costs_more(model: r.Transformer) -> None:
    more = replace(model, vocab_size=model.vocab_size + 1)
    *gained, kv = [b - a for a, b in zip(costs(model), costs(more), strict=True)]
    D, matrices = model.hidden_size, 1 if model.tie_word_embeddings else 2
    assert gained == [matrices * D, matrices * D, D, 2 * 14 * D, 6 * 7 * D, 2 * D]
    assert kv == 0


@given(any_model)
def test_tying_saves_one_matrix_and_no_work(model: r.Transformer) -> None:
    tied, own = replace(model, tie_word_embeddings=True), replace(model, tie_word_embeddings=False)
    assert r.parameters(own).total - r.parameters(tied).total == model.vocab_size * model.hidden_size
    assert (r.parameters(tied).head, costs(tied)[2:]) == (0, costs(own)[2:])


@given(any_model)
def test_parameters_are_split_without_rest(model: r.Transformer) -> None:
    count = r.parameters(model)
    parts = asdict(count)
    idle = parts.pop("idle")
    assert count.total == sum(parts.values()) == count.active + idle
    assert count.non_embedding == count.total - count.embedding - count.head
    assert 0 <= idle < count.feed_forward
    assert r.matmul_parameters(model) <= count.active + model.vocab_size * model.hidden_size


@given(any_model)
def test_without_biases_all_but_embedding_and_norms_is_multiplied(model: r.Transformer) -> None:
    def bare(part: Any) -> Any:
        if isinstance(part, r.Attention):
            return replace(part, qkv_bias=False, output_bias=False)
        if isinstance(part, r.FeedForward):
            return replace(part, bias=False)
        if isinstance(part, r.Experts):
            return replace(part, expert=bare(part.expert), shared=part.shared and bare(part.shared))
        return part

    layers = tuple(r.Layer(attention=bare(x.attention), feed_forward=bare(x.feed_forward)) for x in model.layers)
    model = replace(model, layers=layers, tie_word_embeddings=False)
    count = r.parameters(model)
    assert r.matmul_parameters(model) == count.active - count.embedding - count.norms


@given(any_model, sizes, sizes)
def test_flops_are_linear_in_the_batch_and_scores_quadratic_in_the_length(
    model: r.Transformer, length: int, batch: int
) -> None:
    once, more = r.forward_flops(model, length), r.forward_flops(model, 2 * length, batch=batch)
    assert more == r.Flops(
        attention=2 * batch * once.attention,
        scores=4 * batch * once.scores,
        feed_forward=2 * batch * once.feed_forward,
        head=2 * batch * once.head,
    )
    assert once.total == once.scores + 2 * length * r.matmul_parameters(model)


@given(any_model, sizes)
def test_a_causal_mask_leaves_just_over_half_of_the_scores(model: r.Transformer, length: int) -> None:
    full, causal = r.forward_flops(model, length), r.forward_flops(model, length, causal=True)
    assert causal == replace(full, scores=causal.scores)
    assert causal.scores * 2 * length == full.scores * (length + 1)


@given(any_model, sizes, sizes, st.booleans())
def test_training_is_three_forward_passes(model: r.Transformer, length: int, batch: int, causal: bool) -> None:
    once = asdict(r.forward_flops(model, length, batch=batch, causal=causal))
    train = [
        asdict(r.training_flops(model, length, batch=batch, causal=causal, recompute=recompute))
        for recompute in ("none", "selective", "full")
    ]
    again = [{}, {"scores"}, {"attention", "scores", "feed_forward"}]
    assert train == [{part: (3 + (part in parts)) * n for part, n in once.items()} for parts in again]


@given(any_model, st.integers(0, 40), sizes)
def test_decoding_is_two_n_and_a_part_linear_in_the_context(model: r.Transformer, context: int, batch: int) -> None:
    start, one, some = (r.decoding_flops(model, n, batch=batch) for n in (0, 1, context))
    assert start.total == 2 * batch * r.matmul_parameters(model)
    assert start.scores == 0
    assert some == replace(start, scores=context * one.scores)
    assert one.scores > 0


@given(ordinary_models, sizes)
def test_decoding_every_token_is_the_causal_forward_pass(model: r.Transformer, length: int) -> None:
    steps = sum(r.decoding_flops(model, context).total for context in range(1, length + 1))
    assert steps == r.forward_flops(model, length, causal=True).total


@given(ordinary_models, sizes, sizes, sizes, st.booleans())
def test_a_window_leaves_the_pairs_that_one_can_count(
    model: r.Transformer, window: int, length: int, batch: int, causal: bool
) -> None:
    """Count one by one, in the first layer only: with a mask the last keys, without one as many as the window has."""
    layer = model.layers[0]
    narrow = replace(layer, attention=replace(layer.attention, window=window))
    seen = [min(t, window) if causal else min(length, window) for t in range(1, length + 1)]
    full = [t if causal else length for t in range(1, length + 1)]
    saved = (sum(full) - sum(seen)) * layer.attention.flops_per_pair * batch
    wide, found = (
        r.forward_flops(replace(model, layers=(first, *model.layers[1:])), length, batch=batch, causal=causal)
        for first in (layer, narrow)
    )
    assert found == replace(wide, scores=wide.scores - saved)


@given(ordinary_models, sizes, sizes)
def test_a_cache_with_windows_is_the_sum_of_what_each_layer_keeps(
    model: r.Transformer, window: int, context: int
) -> None:
    assert r.kv_cache_bytes(model, context, batch=3) == 3 * context * r.kv_bytes_per_token(model)
    layer = model.layers[0]
    narrow = replace(layer, attention=replace(layer.attention, window=window))
    found = r.kv_cache_bytes(replace(model, layers=(narrow, *model.layers[1:])), context, bytes_per_number=1)
    kept = layer.attention.cached_numbers * max(context - window, 0)
    assert found == r.kv_cache_bytes(model, context, bytes_per_number=1) - kept
    decoding = r.decoding_flops(replace(model, layers=(narrow, *model.layers[1:])), context)
    spared = layer.attention.flops_per_pair * max(context - window, 0)
    assert decoding.scores == r.decoding_flops(model, context).scores - spared


@given(any_model)
def test_the_head_of_an_encoder(model: r.Transformer) -> None:
    linear, masked, none = (replace(model, head=head) for head in ("linear", "masked", "none"))
    D, V = model.hidden_size, model.vocab_size
    untied, norm = V * D * (not model.tie_word_embeddings), D * (1 + model.norm_bias)
    assert r.parameters(linear).total - r.parameters(none).total == untied
    assert r.parameters(masked).total - r.parameters(none).total == untied + D * D + D + norm + V
    assert [r.forward_flops(x, 3).head for x in (linear, masked, none)] == [6 * V * D, 6 * (V * D + D * D), 0]
    assert r.matmul_parameters(masked) - r.matmul_parameters(none) == V * D + D * D


@given(any_model)
def test_the_limit_of_6nd_is_a_short_sequence(model: r.Transformer) -> None:
    """Training costs 6 FLOPs for each token and weight that it is multiplied with, and the scores on top."""
    per_token = [Fraction(r.training_flops(model, length).total, length) for length in (1, 10, 100)]
    rest = [x - 6 * r.matmul_parameters(model) for x in per_token]
    assert rest[0] > 0
    assert rest[1:] == [10 * rest[0], 100 * rest[0]]


@given(ordinary_models, st.floats(0.1, 8))
def test_sharing_keys_and_values_divides_the_cache_by_the_size_of_a_group(model: r.Transformer, size: float) -> None:
    attention = model.layers[0].attention
    assert isinstance(attention, r.Attention)
    everyone = replace(attention, num_key_value_heads=None)
    shared, own = (
        r.kv_bytes_per_token(replace(model, layers=(replace(model.layers[0], attention=a),)), bytes_per_number=size)
        for a in (attention, everyone)
    )
    group = attention.num_attention_heads // attention.kv_heads
    assert own == pytest.approx(group * shared)
    assert own == pytest.approx(2 * attention.num_attention_heads * attention.head_dim * size)


def test_latent_attention_by_hand() -> None:
    latent = r.published("deepseek-v3").layers[0].attention
    assert latent.flops_per_pair == 2 * 128 * ((128 + 64) + 128)  # scores of both parts, values
    assert latent.decoding_flops_per_pair == 2 * 128 * ((512 + 64) + 512)  # latent vectors instead of keys and values
    assert r.kv_bytes_per_token(r.published("deepseek-v3")) == 61 * 2 * (512 + 64)


# --- experts


@given(mixtures(), sizes)
def test_experts_lie_between_one_and_all(mixture: r.Experts, width: int) -> None:
    everyone = replace(mixture, num_experts_per_tok=mixture.num_experts)
    assert everyone.active_parameters(width) == everyone.parameters(width) == mixture.parameters(width)
    asleep = mixture.num_experts - mixture.num_experts_per_tok
    assert mixture.parameters(width) - mixture.active_parameters(width) == asleep * mixture.expert.parameters(width)


@given(feed_forwards, sizes, st.integers(1, 9))
def test_equal_experts_are_one_wide_part_and_a_router(expert: r.FeedForward, width: int, number: int) -> None:
    mixture = r.Experts(expert=expert, num_experts=9, num_experts_per_tok=number)
    dense = replace(expert, intermediate_size=number * expert.intermediate_size)
    assert mixture.matmul_parameters(width) == dense.matmul_parameters(width) + 9 * width
    shared = replace(mixture, shared=dense)
    assert shared.matmul_parameters(width) - mixture.matmul_parameters(width) == dense.matmul_parameters(width)
    assert shared.parameters(width) - mixture.parameters(width) == dense.parameters(width)


# --- memory


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), sizes, sizes, sizes)
def test_activations_of_a_gpt_are_those_of_the_paper(H: int, Dh: int, L: int, V: int, T: int, B: int) -> None:
    D = H * Dh
    layer = r.Layer(
        attention=r.Attention(num_attention_heads=H, head_dim=Dh), feed_forward=r.FeedForward(intermediate_size=4 * D)
    )
    model = r.Transformer(vocab_size=V, hidden_size=D, layers=L * (layer,))
    outside = B * T * D + 4 * B * T * D * (1 + Fraction(V, D))  # dropout of the embedding; last norm, head and logits
    for recompute, each in {"none": 34 * D + 5 * H * T, "selective": 34 * D, "full": 2 * D}.items():
        found = r.activation_bytes(model, T, batch=B, recompute=recompute)
        assert found == L * B * T * each + outside


@given(plain_models, sizes, sizes, st.booleans())
def test_activations_obey_their_order(model: r.Transformer, length: int, batch: int, dropout: bool) -> None:
    def bytes_of(length: int = length, batch: int = batch, dropout: bool = dropout, **more: Any) -> float:
        return r.activation_bytes(model, length, batch=batch, dropout=dropout, **more)

    none, selective, full = (bytes_of(recompute=how) for how in ("none", "selective", "full"))
    assert full < selective < none
    assert bytes_of(batch=2 * batch) == 2 * none
    assert bytes_of(length=2 * length, recompute="selective") == 2 * selective
    assert bytes_of(length=2 * length) - 2 * none == 2 * (none - selective)  # the weights of attention: four times
    assert bytes_of(dropout=False) < bytes_of(dropout=True)
    logits = 4 * batch * length * model.vocab_size  # in 32 bits whatever the rest has
    assert bytes_of(dropout=False, bytes_per_number=4) - logits == 2 * (bytes_of(dropout=False) - logits)


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b"])
def test_activations_refuse_what_the_formula_does_not_know(name: str) -> None:
    with pytest.raises(ValueError, match=r"a layer has (LatentAttention|Experts), expected Attention and FeedForward"):
        r.activation_bytes(r.published(name), 8)
    assert r.activation_bytes(r.published(name), 8, recompute="full") > 0  # of layers only the inputs


@given(st.integers(1, 10**12), st.integers(1, 4096))
def test_zero_shares_more_with_each_stage(number: int, devices: int) -> None:
    stages = [r.training_bytes(number, devices=devices, stage=stage) for stage in (0, 1, 2, 3)]
    assert stages[0] == r.TrainingBytes(weights=2 * number, gradients=2 * number, optimizer=12 * number)
    assert stages[0].total == 16 * number
    assert [x.total for x in stages] == pytest.approx(
        [number * x for x in (16, 4 + 12 / devices, 2 + 14 / devices, 16 / devices)]
    )
    assert stages[1].gradients == stages[0].gradients
    assert stages[2].weights == stages[1].weights


def test_defaults_are_one_sequence_one_device_and_sixteen_bits() -> None:
    model = r.published("gpt2")
    assert r.kv_bytes_per_token(model) == r.kv_bytes_per_token(model, bytes_per_number=2)
    assert r.activation_bytes(model, 8) == r.activation_bytes(
        model, 8, batch=1, bytes_per_number=2, dropout=True, recompute="none"
    )
    assert r.training_flops(model, 8) == r.training_flops(model, 8, batch=1, causal=False, recompute="none")
    assert r.forward_flops(model, 8) == r.forward_flops(model, 8, batch=1, causal=False)
    assert r.decoding_flops(model, 8) == r.decoding_flops(model, 8, batch=1)
    assert r.training_bytes(10) == r.training_bytes(10, weights=2, gradients=2, optimizer=12, devices=8, stage=0)
    assert r.training_bytes(10, stage=3) == r.training_bytes(10, devices=1, stage=3)


def test_bytes_of_other_optimizers() -> None:
    plain = r.training_bytes(10, weights=4, gradients=4, optimizer=0)
    assert plain == r.TrainingBytes(weights=40, gradients=40, optimizer=0)


# --- time

positive = st.floats(1e-3, 1e30)


@given(positive, positive, st.floats(0.01, 1))
def test_hours_and_utilization_are_inverse(flops: float, peak: float, mfu: float) -> None:
    hours = r.gpu_hours(flops, peak_flops=peak, mfu=mfu)
    assert r.model_flops_utilization(flops, gpu_hours=hours, peak_flops=peak) == pytest.approx(mfu)
    assert hours * 3600 * peak * mfu == pytest.approx(flops)


def test_the_peak_itself_can_be_reached() -> None:
    assert r.gpu_hours(7200, peak_flops=2, mfu=1) == 1.0
    assert r.model_flops_utilization(7200, gpu_hours=1, peak_flops=2) == 1.0


def test_utilization_of_a_published_run() -> None:
    """Llama 3.1 405B: 15.6e12 tokens and, by the model card, 30.84e6 hours of H100, each of 989e12 FLOP/s in bfloat16.

    The paper says 38 to 43 % for the phases of the run that it lists, which is more than the average over all hours.
    """
    flops = 15.6e12 * r.training_flops(r.published("llama-3.1-405b"), 8192, causal=True).total / 8192
    assert round(flops / 1e25, 1) == 3.9  # the paper says 3.8, which is 6 * N * tokens
    mfu = r.model_flops_utilization(flops, gpu_hours=30.84e6, peak_flops=989e12)
    assert round(mfu, 2) == 0.36


@given(positive, positive, positive, positive)
def test_the_roof_is_the_lower_of_two_lines(flops: float, moved: float, peak: float, bandwidth: float) -> None:
    seconds = r.roofline_seconds(flops, moved, peak_flops=peak, bandwidth=bandwidth)
    assert flops / seconds == pytest.approx(min(peak, r.arithmetic_intensity(flops, moved) * bandwidth))
    assert seconds >= flops / peak
    assert seconds >= moved / bandwidth


def test_the_ridge_decides_between_computing_and_moving() -> None:
    for factor, expected in ((0.5, 1.0), (1.0, 1.0), (2.0, 2.0)):  # intensity against the ridge of 200 FLOPs a byte
        assert r.arithmetic_intensity(factor * 4e14, 2e12) == factor * 200
        assert r.roofline_seconds(factor * 4e14, 2e12, peak_flops=4e14, bandwidth=2e12) == expected
    assert r.roofline_seconds(0, 4e12, peak_flops=4e14, bandwidth=2e12) == 2.0
    assert r.roofline_seconds(8e14, 0, peak_flops=4e14, bandwidth=2e12) == 2.0


# --- errors

KINDS = [kind for kind in map(r.__dict__.get, r.__all__) if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_fixed_and_made_by_name(kind: Any) -> None:
    examples: list[Any] = [
        r.published("deepseek-v3"),
        *r.published("deepseek-v3").layers[3:4],
        *(
            part
            for name in ("gpt2", "mixtral-8x7b", "deepseek-v3")
            for part in vars(r.published(name).layers[-1]).values()
        ),
        r.parameters(r.published("gpt2")),
        r.forward_flops(r.published("gpt2"), 1),
        r.training_bytes(1),
    ]
    example = next(x for x in examples if type(x) is kind)
    values = vars(example)
    assert kind(**values) == example
    assert hash(kind(**values)) == hash(example)
    with pytest.raises(TypeError):
        kind(*values.values())
    with pytest.raises(FrozenInstanceError):
        setattr(example, next(iter(values)), 1)


small = r.published("gpt2")
dense = r.FeedForward(intermediate_size=8)
LATENT = dict.fromkeys(
    ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"), 4
)


def latent_with(name: str) -> Callable[[], object]:
    return lambda: r.LatentAttention(**{**LATENT, name: 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: r.Attention(num_attention_heads=4, head_dim=8, window=0),
            "window is 0, expected at least 1",
        ),
        (lambda: replace(small.layers[0], norms=-1), "norms is -1, expected at least 0"),
        (lambda: replace(small, head="two"), "head is 'two', expected one of linear, masked, none"),
        (
            lambda: r.activation_bytes(replace(small, head="masked"), 8),
            "head is 'masked', expected 'linear': the formula knows no others",
        ),
        (lambda: r.kv_cache_bytes(small, 0), "context is 0, expected at least 1"),
        (lambda: r.kv_cache_bytes(small, 1, batch=0), "batch is 0, expected at least 1"),
        (lambda: r.kv_cache_bytes(small, 1, bytes_per_number=0), "bytes_per_number is 0, expected more than 0"),
        (lambda: r.Attention(num_attention_heads=0, head_dim=4), "num_attention_heads is 0, expected at least 1"),
        (lambda: r.Attention(num_attention_heads=4, head_dim=0), "head_dim is 0, expected at least 1"),
        (
            lambda: r.Attention(num_attention_heads=4, head_dim=4, num_key_value_heads=0),
            "num_key_value_heads is 0, expected at least 1",
        ),
        (
            lambda: r.Attention(num_attention_heads=8, head_dim=4, num_key_value_heads=3),
            "num_key_value_heads = 3 does not divide num_attention_heads = 8: "
            "each key/value head serves a group of query heads",
        ),
        *((latent_with(name), f"{name} is 0, expected at least 1") for name in LATENT),
        (lambda: r.FeedForward(intermediate_size=0), "intermediate_size is 0, expected at least 1"),
        (
            lambda: r.Experts(expert=dense, num_experts=0, num_experts_per_tok=1),
            "num_experts is 0, expected at least 1",
        ),
        (
            lambda: r.Experts(expert=dense, num_experts=4, num_experts_per_tok=0),
            "num_experts_per_tok is 0, expected at least 1",
        ),
        (
            lambda: r.Experts(expert=dense, num_experts=4, num_experts_per_tok=5),
            "num_experts_per_tok is 5, expected at most num_experts = 4",
        ),
        (lambda: replace(small, vocab_size=0), "vocab_size is 0, expected at least 1"),
        (lambda: replace(small, hidden_size=0), "hidden_size is 0, expected at least 1"),
        (lambda: replace(small, layers=()), "num_hidden_layers is 0, expected at least 1"),
        (lambda: replace(small, learned_positions=-1), "learned_positions is -1, expected at least 0"),
        (lambda: r.forward_flops(small, 0), "length is 0, expected at least 1"),
        (lambda: r.forward_flops(small, 1, batch=0), "batch is 0, expected at least 1"),
        (lambda: r.training_flops(small, 0), "length is 0, expected at least 1"),
        (
            lambda: r.training_flops(small, 1, recompute="all"),
            "recompute is 'all', expected 'none', 'selective' or 'full'",
        ),
        (lambda: r.decoding_flops(small, -1), "context is -1, expected at least 0"),
        (lambda: r.decoding_flops(small, 1, batch=0), "batch is 0, expected at least 1"),
        (lambda: r.kv_bytes_per_token(small, bytes_per_number=0), "bytes_per_number is 0, expected more than 0"),
        (lambda: r.activation_bytes(small, 0), "length is 0, expected at least 1"),
        (lambda: r.activation_bytes(small, 1, batch=0), "batch is 0, expected at least 1"),
        (lambda: r.activation_bytes(small, 1, bytes_per_number=0), "bytes_per_number is 0, expected more than 0"),
        (
            lambda: r.activation_bytes(small, 1, recompute="all"),
            "recompute is 'all', expected 'none', 'selective' or 'full'",
        ),
        (lambda: r.training_bytes(0), "parameters is 0, expected at least 1"),
        (lambda: r.training_bytes(1, devices=0), "devices is 0, expected at least 1"),
        (lambda: r.training_bytes(1, weights=-1), "weights is -1, expected at least 0"),
        (lambda: r.training_bytes(1, gradients=-1), "gradients is -1, expected at least 0"),
        (lambda: r.training_bytes(1, optimizer=-1), "optimizer is -1, expected at least 0"),
        (lambda: r.training_bytes(1, stage=4), "stage is 4, expected 0, 1, 2 or 3"),
        (lambda: r.gpu_hours(0, peak_flops=1, mfu=1), "flops is 0, expected more than 0"),
        (lambda: r.gpu_hours(1, peak_flops=0, mfu=1), "peak_flops is 0, expected more than 0"),
        (lambda: r.gpu_hours(1, peak_flops=1, mfu=0), "mfu is 0, expected more than 0"),
        (lambda: r.gpu_hours(1, peak_flops=1, mfu=math.nan), "mfu is nan, expected more than 0"),
        (lambda: r.gpu_hours(1, peak_flops=1, mfu=1.5), "mfu is 1.5, expected at most 1: say 0.4 for 40 %"),
        (
            lambda: r.model_flops_utilization(0, gpu_hours=1, peak_flops=1),
            "flops is 0, expected more than 0",
        ),
        (
            lambda: r.model_flops_utilization(1, gpu_hours=0, peak_flops=1),
            "gpu_hours is 0, expected more than 0",
        ),
        (
            lambda: r.model_flops_utilization(1, gpu_hours=1, peak_flops=0),
            "peak_flops is 0, expected more than 0",
        ),
        (lambda: r.arithmetic_intensity(-1, 1), "flops is -1, expected at least 0"),
        (lambda: r.arithmetic_intensity(1, 0), "moved_bytes is 0, expected more than 0"),
        (lambda: r.roofline_seconds(-1, 1, peak_flops=1, bandwidth=1), "flops is -1, expected at least 0"),
        (lambda: r.roofline_seconds(1, -1, peak_flops=1, bandwidth=1), "moved_bytes is -1, expected at least 0"),
        (lambda: r.roofline_seconds(1, 1, peak_flops=0, bandwidth=1), "peak_flops is 0, expected more than 0"),
        (lambda: r.roofline_seconds(1, 1, peak_flops=1, bandwidth=0), "bandwidth is 0, expected more than 0"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^no published model is called 'gpt4', expected one of deepseek-v3, .*gpt2"):
        r.published("gpt4")


def test_counting_does_not_import_torch() -> None:
    code = "import sys, llm_study.core.roofline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
