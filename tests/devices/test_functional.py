"""Functions on every device against float64 on the CPU: values, gradients, and where the results lie."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import Rope
from llm_study.functional import activations, attention_variants, information, lowrank, norms, residual, sampling
from llm_study.functional import attention as att
from llm_study.functional import codebooks as cb
from llm_study.functional import eviction as ev
from llm_study.functional import losses as lo
from llm_study.functional import positions as pos
from llm_study.functional import rotations as rot
from llm_study.functional.quantize import dequantize_affine, pack_bits, quantize_affine, unpack_bits
from llm_study.models.decoder import rotary_frequencies
from tests.devices.where import check, every_device, randint, randn

Case = tuple[Callable[..., Any], list[Any]]


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return a different random tensor for each shape."""
    return [randn(*shape, seed=i) for i, shape in enumerate(shapes)]


def by_default(*names: str, of: Any, shapes: list[tuple[int, ...]]) -> dict[str, Case]:
    """Return cases of functions that are called alike."""
    return {name: (getattr(of, name), normal(*shapes)) for name in names}


# --- norms, activations, rotations, low rank

WIDE = (3, 5, 16)
NORMS: dict[str, Case] = {
    "layer_norm": (norms.layer_norm, normal(WIDE, (16,), (16,))),
    "layer_norm without weights": (norms.layer_norm, normal(WIDE)),
    **by_default("rms_norm", "rms_norm_late_cast", "gemma_rms_norm", of=norms, shapes=[WIDE, (16,)]),
    "dynamic_tanh": (norms.dynamic_tanh, normal(WIDE, (), (16,), (16,))),
    "layer_norm_backward": (norms.layer_norm_backward, normal(WIDE, (16,), WIDE)),
    "rms_norm_backward": (norms.rms_norm_backward, normal(WIDE, (16,), WIDE)),
    "deepnorm_residual": (
        lambda x, y, w, b: residual.deepnorm_residual(x, y, w, b, alpha=1.7),
        normal(WIDE, WIDE, (16,), (16,)),
    ),
}
PLAIN = "relu leaky_relu relu_squared gelu gelu_tanh quick_gelu silu swish mish"
GATED = "bilinear glu reglu geglu swiglu clamped_swiglu swiglu_recomputed"
BACKWARD = "relu_squared_backward gelu_backward gelu_tanh_backward swish_backward mish_backward"
ACTIVATIONS: dict[str, Case] = {
    **by_default(*PLAIN.split(), of=activations, shapes=[(4, 33)]),
    **by_default(*GATED.split(), *BACKWARD.split(), of=activations, shapes=[(4, 33), (4, 33)]),
    **by_default("swiglu_backward", "geglu_backward", of=activations, shapes=[(4, 33)] * 3),
    "swiglu_feed_forward": (activations.swiglu_feed_forward, normal(WIDE, (24, 16), (24, 16), (16, 24))),
}
FOURIER = torch.stack([randint(6, 9, seed=1), randint(8, 9, seed=2)])
LOW_RANK: dict[str, Case] = {
    "skew and Cayley": (lambda e: rot.cayley(rot.skew_symmetric(e, 5)), normal((3, 10))),
    "block_rotation": (lambda e: rot.block_rotation(rot.cayley(rot.skew_symmetric(e, 4))), normal((3, 6))),
    "butterfly_rotation": (
        lambda e: rot.butterfly_rotation(rot.cayley(rot.skew_symmetric(e, 2))),
        normal((3, 4, 1)),
    ),
    "loreft": (lambda h, r, w, b: rot.loreft(h, r, w, b), normal((2, 3, 8), (2, 8), (2, 8), (2,))),
    "dora_weight": (lowrank.dora_weight, normal((6, 8), (6, 8), (6,))),
    "svd_delta": (lowrank.svd_delta, normal((3, 8), (3, 1), (6, 3))),
    "orthogonality_penalty": (lowrank.orthogonality_penalty, normal((3, 8), (6, 3))),
    "vera_delta": (lowrank.vera_delta, normal((3, 8), (6, 3), (3,), (6,))),
    "loha_delta": (lowrank.loha_delta, normal((6, 2), (2, 8), (6, 2), (2, 8))),
    "lokr_delta": (lowrank.lokr_delta, normal((2, 4), (3, 2))),
    "kron_linear": (lowrank.kron_linear, normal((5, 8), (2, 4), (3, 2))),
    "mora_linear": (lambda x, m: lowrank.mora_linear(x, m, 6), normal((5, 8), (4, 4))),
    "mora_delta": (lambda m: lowrank.mora_delta(m, 8, 6), normal((4, 4))),
    "miss_linear": (lowrank.miss_linear, normal((5, 8), (3, 6))),
    "fourier_delta": (lambda s, i: lowrank.fourier_delta(s, i, (6, 8)), [randn(9), FOURIER]),
    "PiSSA": (lambda w: _product(lowrank.principal_factors(w.detach(), 3)), normal((6, 8))),
    "OLoRA": (lambda w: _product(lowrank.orthonormal_factors(w.detach(), 3)), normal((6, 8))),
    "topk_mixture": (lambda x, bank: lowrank.topk_mixture(x, bank, topk=2), normal((3, 6), (6, 4))),
}


def _product(factors: tuple[Tensor, Tensor]) -> Tensor:
    """Return the product of factors, which is the same for either sign of a singular vector."""
    a, b = factors
    return b @ a


@every_device
@pytest.mark.parametrize("name", [*NORMS, *ACTIVATIONS, *LOW_RANK])
def test_norms_activations_and_adapters(name: str, device: str) -> None:
    check(*{**NORMS, **ACTIVATIONS, **LOW_RANK}[name], device)


# --- positions

SCALED = {"factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "default": Rope(rope_theta=100.0),
    "linear": Rope(rope_theta=100.0, rope_type="linear", factor=4.0),
    "llama3": Rope(rope_theta=100.0, rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SCALED),
}


@every_device
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scaling", ROPES)
def test_rotations_of_every_scaling(scaling: str, interleaved: bool, device: str) -> None:
    """Angles are computed in float32 on both sides: at position 12 they are off by 1e-6 at most."""

    def rotated(x: Tensor, positions: Tensor) -> Tensor:
        frequencies = rotary_frequencies(ROPES[scaling], 8, device=x.device)
        assert frequencies.device == x.device
        cos, sin = pos.rope_cos_sin(positions, frequencies, dtype=x.dtype)
        return pos.apply_rope(x, cos[:, None], sin[:, None], interleaved=interleaved)

    check(rotated, [randn(2, 3, 6, 8), torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]])], device)


H, K, T, S, DH = 4, 2, 5, 7, 8
QKV = [(2, H, T, DH), (2, K, S, DH), (2, K, S, DH)]
SAME = [(2, H, S, DH), (2, K, S, DH), (2, K, S, DH)]
POSITIONS: dict[str, Case] = {
    "sinusoidal": (lambda x: x + pos.sinusoidal(torch.arange(12, device=x.device), 16).to(x.dtype), normal((12, 16))),
    "ALiBi": (lambda q: q + pos.alibi_bias(H, T, S, device=q.device).to(q.dtype), normal((H, T, S))),
    "T5, both directions": (lambda table: pos.t5_bias(table, T, S, max_distance=10), normal((16, H))),
    "T5, one direction": (lambda table: pos.t5_bias(table, T, S, bidirectional=False), normal((16, H))),
    "Shaw, keys": (lambda q, table: pos.shaw_bias(q, table, S), normal((2, H, T, DH), (7, DH))),
    "Shaw, values": (pos.shaw_values, normal((2, H, T, S), (7, DH))),
    "Transformer-XL": (
        pos.transformer_xl_bias,
        normal((2, H, T, DH), (2, H, S, DH), (H, T + S - 1, DH), (H, DH), (H, DH)),
    ),
    "FIRE": (
        lambda c, w: w * pos.fire_distances(T, S, c=c.abs() + 1, threshold=3.0, device=w.device),
        normal((), (T, S)),
    ),
    "CoPE": (
        lambda q, s, table: pos.cope_bias(q, pos.cope_positions(s, mask=att.causal_mask(T, S, device=q.device)), table),
        normal((2, H, T, DH), (2, H, T, S), (S + 1, DH)),
    ),
    "xPos": (lambda x: x * pos.xpos_scales(torch.arange(6, device=x.device), DH).repeat(1, 2).to(x), normal((6, DH))),
    "M-RoPE": (
        lambda x, p: pos.apply_rope(x, *_sections(x, p)),
        [randn(2, 3, 6, DH), randint(9, 3, 2, 6)],
    ),
}


def _sections(x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = pos.rope_frequencies(DH, base=100.0, device=x.device)
    cos, sin = pos.mrope_cos_sin(positions, frequencies, (2, 1, 1), dtype=x.dtype)
    return cos[:, None], sin[:, None]


@every_device
@pytest.mark.parametrize("name", POSITIONS)
def test_positions(name: str, device: str) -> None:
    check(*POSITIONS[name], device)


@every_device
@pytest.mark.parametrize("bidirectional", [False, True])
def test_distances_fall_into_the_same_buckets(bidirectional: bool, device: str) -> None:
    """The logarithm is taken in float32, so that the limit between two buckets may fall to either of them."""
    distances = torch.arange(-200, 201)
    found = pos.t5_buckets(distances.to(device), bidirectional=bidirectional)
    assert found.device.type == device
    n = 16 if bidirectional else 32
    place = (distances.abs().clamp(min=n // 2) / (n // 2)).double().log() / math.log(256 / n) * (n // 2)
    limits = (place - place.round()).abs() < 1e-5
    differ = found.cpu() != pos.t5_buckets(distances, bidirectional=bidirectional)
    assert not (differ & ~limits).any()


# --- attention

LENGTHS = torch.tensor([7, 4])
HOLES = torch.ones(2, 1, T, S, dtype=torch.bool)
HOLES[0, :, 1], HOLES[1, :, 3], HOLES[1, :, :, 2:] = False, False, False  # whole rows, and most keys of a text
ATTENTION: dict[str, Case] = {
    "all keys": (att.attention, normal(*QKV)),
    "one head": (att.attention, normal(*[(1, 1, *shape[2:]) for shape in QKV])),
    "causal": (att.causal_attention, normal(*SAME)),
    "causal, more keys": (att.causal_attention, normal(*QKV)),
    "own scale": (lambda q, k, v: att.causal_attention(q, k, v, scale=0.7), normal(*SAME)),
    "rows that see nothing": (lambda q, k, v, m: att.attention(q, k, v, mask=m), [*normal(*QKV), HOLES]),
    "no keys": (att.attention, normal((2, H, T, DH), (2, K, 0, DH), (2, K, 0, DH))),
    "window mask": (
        lambda q, k, v: att.attention(q, k, v, mask=att.sliding_window_mask(T, S, window=3, device=q.device)),
        normal(*QKV),
    ),
    "window, in blocks": (
        lambda q, k, v: attention_variants.sliding_window_attention(q, k, v, window=3),
        normal((2, H, 17, DH), (2, K, 17, DH), (2, K, 17, DH)),
    ),
    "padding": (lambda q, k, v, n: att.attention(q, k, v, mask=att.padding_mask(n, S)), [*normal(*QKV), LENGTHS]),
    "prefix": (lambda q, k, v, n: att.attention(q, k, v, mask=att.prefix_mask(n, S)), [*normal(*SAME), LENGTHS]),
    "bias": (att.biased_attention, normal(*QKV, (H, T, S))),
    "bias and mask": (
        lambda q, k, v, b, m: att.biased_attention(q, k, v, b, mask=m),
        [*normal(*QKV, (H, T, S)), HOLES],
    ),
    "softcap": (
        lambda q, k, v, m: att.softcap_attention(q, k, v, cap=1.5, mask=m),
        [*normal(*QKV), HOLES],
    ),
    "sinks": (att.sink_attention, normal(*QKV, (H,))),
    "sinks and mask": (lambda q, k, v, s, m: att.sink_attention(q, k, v, s, mask=m), [*normal(*QKV, (H,)), HOLES]),
    "weights": (lambda q, k, m: att.attention_weights(q, k, mask=m), [*normal(*QKV[:2]), HOLES]),
    "backward": (
        lambda q, k, v, g, m: att.attention_backward(q, k, v, g, mask=m),
        [*normal(*QKV, (2, H, T, DH)), HOLES],
    ),
    "gated": (attention_variants.gated_attention, normal(*QKV, (2, H, T, DH))),
    "differential": (
        lambda q, k, p, r, v: attention_variants.differential_attention(q, k, p, r, v, 0.3),
        normal(*QKV[:2], *QKV[:2], QKV[2]),
    ),
}


@every_device
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, device: str) -> None:
    check(*ATTENTION[name], device)


def latent(
    x: Tensor, down: Tensor, norm: Tensor, up: Tensor, out: Tensor, q_up: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return latent attention, keys and values written out and absorbed."""
    weights = attention_variants.LatentWeights(
        n_heads=2, d_rope=4, kv_down=down, kv_norm=norm, kv_up=up, out=out, q_up=q_up
    )
    rotation = pos.rope_cos_sin(positions, pos.rope_frequencies(4, device=x.device), dtype=x.dtype)
    cache = attention_variants.latent_cache(x, weights, *rotation)
    mask = att.causal_mask(6, device=x.device)
    return (
        attention_variants.latent_attention(x, cache, weights, *rotation, mask=mask),
        attention_variants.latent_attention_absorbed(x, cache, weights, *rotation, mask=mask),
    )


@every_device
def test_latent_attention(device: str) -> None:
    shapes = [(2, 6, 16), (5 + 4, 16), (5,), (2 * (3 + 3), 5), (16, 2 * 3), (2 * (3 + 4), 16)]
    check(latent, [*normal(*shapes), torch.arange(6)], device)


# --- losses

V = 19
LOGITS = randn(3, 6, V, seed=1)
TARGETS = randint(V, 3, 6)
TARGETS[0, 2:], TARGETS[2, 0] = -100, -100
REAL = TARGETS >= 0
LOSSES: dict[str, Case] = {
    "token_logp": (lo.token_logp, [LOGITS, TARGETS.clamp(min=0)]),
    "cross_entropy": (lo.cross_entropy, [LOGITS, TARGETS]),
    **{
        f"linear_cross_entropy by {chunk}": (
            lambda x, w, y, chunk=chunk: lo.linear_cross_entropy(x, w, y, chunk=chunk),
            [*normal((3, 6, 8), (V, 8)), TARGETS],
        )
        for chunk in (1, 4, 256)
    },
    "label_smoothing_loss": (lo.label_smoothing_loss, [LOGITS, TARGETS]),
    "z_loss": (lambda z, m: lo.z_loss(z, mask=m), [LOGITS, REAL]),
    "focal_loss": (lo.focal_loss, [LOGITS, TARGETS]),
    "unlikelihood_loss": (lambda z, y: lo.unlikelihood_loss(z, lo.repeated_tokens(y, V)), [LOGITS, TARGETS]),
    "multi_token_prediction_loss": (lo.multi_token_prediction_loss, [randn(3, 6, 2, V), TARGETS]),
    "token_mean": (lo.token_mean, [randn(3, 6), REAL]),
    "sequence_mean": (lo.sequence_mean, [randn(3, 6), REAL]),
    "entropies": (
        lambda z, y: (
            information.entropy(z.softmax(-1)),
            information.kl_divergence(z.softmax(-1), y.softmax(-1)),
            information.mutual_information(z.flatten().softmax(0).view(3, -1)),
        ),
        normal((3, V), (3, V)),
    ),
}


@every_device
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, device: str) -> None:
    check(*LOSSES[name], device)


# --- half precision

HALF: dict[str, Case] = {
    name: case
    for name, case in {**NORMS, **ACTIVATIONS, **ATTENTION, **LOSSES}.items()
    if name
    in {
        "layer_norm", "rms_norm", "rms_norm_late_cast", "gemma_rms_norm", "gelu", "gelu_tanh", "silu", "swiglu",
        "swiglu_recomputed", "all keys", "causal", "causal, more keys", "rows that see nothing", "sinks and mask",
        "bias and mask", "softcap", "token_logp", "cross_entropy", "linear_cross_entropy by 4", "z_loss", "focal_loss",
    }
}  # fmt: skip
UNITS = 4
"""Largest error in units of the dtype (its ε) at the largest value.

A result that is rounded once is off by half a unit. Attention and gates round the weights or one factor before the last
product, and a gradient passes through two of these: each adds half a unit or one, and 4 leave room for two more.
"""


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_off_by_a_few_units(name: str, dtype: torch.dtype, device: str) -> None:
    check(*HALF[name], device, dtype=dtype, bound=UNITS * torch.finfo(dtype).eps)


# --- numbers in few bits

CODEBOOKS: dict[str, Callable[[], Tensor]] = {"nf4": cb.nf4_codebook, "fp4": cb.fp4_codebook, "fp8": cb.fp8_codebook}
"""These are made on the CPU, and moved."""


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CODEBOOKS)
def test_codes_are_the_same_bit_for_bit(name: str, dtype: torch.dtype, device: str) -> None:
    """A number is compared with a middle in float64 and multiplied once: there is nothing to differ in."""
    x, codebook = randn(7, 33, dtype=dtype), CODEBOOKS[name]()
    expected = cb.quantize_blockwise(x.double(), codebook=codebook, block=16)
    found = cb.quantize_blockwise(x.to(device), codebook=codebook.to(device), block=16)
    assert torch.equal(found.codes.cpu(), expected.codes)
    assert torch.equal(found.absmax.cpu().double(), expected.absmax)
    back = cb.dequantize_blockwise(found)
    assert (back.device.type, back.dtype) == (device, dtype)
    again = cb.dequantize_blockwise(cb.quantize_blockwise(x, codebook=codebook, block=16))
    assert torch.equal(back.cpu(), again)
    assert (back.cpu().double() - cb.dequantize_blockwise(expected)).abs().max() <= torch.finfo(
        dtype
    ).eps * x.abs().max()


@every_device
def test_factors_are_quantized_too(device: str) -> None:
    """The mean of the factors is a sum, whose order is that of the device."""

    def twice(x: Tensor) -> Tensor:
        return cb.dequantize_blockwise(
            cb.double_quantize(cb.quantize_blockwise(x, codebook=cb.nf4_codebook().to(x.device), block=8), block=16)
        )

    check(twice, [randn(16, 33)], device, gradients=False)


@every_device
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_and_their_codes(bits: int, device: str) -> None:
    """A step is a quotient, which may differ in the last bit; no number here lies where that decides."""
    x = randn(4, 32)
    found, expected = quantize_affine(x.to(device), bits=bits, group=8), quantize_affine(x.double(), bits=bits, group=8)
    assert torch.equal(found.codes.cpu(), expected.codes)
    assert torch.equal(unpack_bits(found.codes, bits=bits).cpu(), unpack_bits(expected.codes, bits=bits))
    assert torch.equal(pack_bits(unpack_bits(found.codes, bits=bits), bits=bits), found.codes)
    check(lambda y: dequantize_affine(quantize_affine(y, bits=bits, group=8)), [x], device, gradients=False)


@every_device
def test_lloyd_max(device: str) -> None:
    check(lambda x, c: cb.lloyd_max(x, c, steps=5), [randn(300), torch.linspace(-1, 1, 5)], device, gradients=False)


# --- choice: filters of logits, and slots of a cache

IDS = randint(V, 3, 9, seed=3)
FILTERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "top_k": lambda z, _: sampling.top_k_filter(z, 4),
    "top_p": lambda z, _: sampling.top_p_filter(z, 0.7),
    "min_p": lambda z, _: sampling.min_p_filter(z, 0.2),
    "typical": lambda z, _: sampling.typical_filter(z, 0.6),
    "epsilon": lambda z, _: sampling.epsilon_filter(z, 0.04),
    "eta": lambda z, _: sampling.eta_filter(z, 0.1),
    "top_n_sigma": lambda z, _: sampling.top_n_sigma_filter(z, 1.0),
    "mirostat": lambda z, _: sampling.mirostat_filter(z, torch.full((3,), 3.0, device=z.device)),
    "repetition": lambda z, ids: sampling.repetition_penalty(z, ids, 1.3),
    "frequency": lambda z, ids: sampling.frequency_presence_penalty(z, ids, frequency=0.2, presence=0.1),
    "no repeated pair": lambda z, ids: sampling.no_repeat_ngram(z, ids, 2),
    "contrastive": lambda z, _: sampling.contrastive_difference(z, z.flip(-1), alpha=0.1),
    "guidance": lambda z, _: sampling.classifier_free_guidance(z.log_softmax(-1), z.flip(-1).log_softmax(-1), 1.5),
    "DoLa": lambda z, _: sampling.dola_scores(z, torch.stack([z.flip(-1), z.roll(1, -1)], 1), alpha=0.1),
    "contrastive search": lambda z, _: sampling.contrastive_search_scores(
        z.softmax(-1)[:, :4], z[:, :16].reshape(3, 4, 4), z[:, :16].reshape(3, 4, 4).flip(-1)
    ),
}


@every_device
@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_the_same_tokens(name: str, device: str) -> None:
    """Equal also in what is minus infinity."""
    check(FILTERS[name], [2 * randn(3, V, seed=5), IDS], device, gradients=False)


@every_device
@pytest.mark.parametrize(
    "draw", [sampling.sample, sampling.gumbel_max, lambda z, **g: sampling.gumbel_top_k(z, 3, **g)]
)
def test_a_generator_of_the_device_draws_the_same_twice(draw: Callable[..., Tensor], device: str) -> None:
    z = randn(64, V).to(device)
    a, b, c = (draw(z, generator=torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2))
    assert a.device.type == device
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@every_device
def test_draws_follow_the_probabilities(device: str) -> None:
    """Each share of 20,000 draws is within 5 standard deviations of its probability."""
    p, n = torch.tensor([0.5, 0.3, 0.15, 0.05]), 20_000
    drawn = sampling.sample(p.log().to(device).expand(n, 4), generator=torch.Generator(device).manual_seed(0))
    share = torch.bincount(drawn.cpu(), minlength=4) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


@every_device
@pytest.mark.parametrize(
    "keep",
    [
        lambda s: ev.heavy_hitters(s, budget=5, recent=2),
        lambda s: ev.sinks_and_recent(s > -9, budget=5, sinks=2),
        lambda s: ev.snapkv_select(s[..., :-2], budget=5, window=2),
        lambda s: ev.largest((s > 0).long(), 6),  # of equal ones the earlier
    ],
)
def test_the_same_slots_stay(keep: Callable[[Tensor], Tensor], device: str) -> None:
    check(keep, [randn(2, 3, 12)], device, gradients=False)
