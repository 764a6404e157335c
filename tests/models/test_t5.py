"""T5's laws: no future, no padding, no neighbors, distances only; a cache; what files may hold; what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import T5Config
from llm_study.data.packing import block_diagonal_mask, pack, unpack
from llm_study.models.auto import model_class
from llm_study.models.t5 import T5ForConditionalGeneration, shift_right
from llm_study.nn.cache import KVCache

V = 29
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "dropout_rate": 0.0,
}
SECOND = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GENERATIONS: dict[str, dict[str, Any]] = {"1.0": {}, "1.1": SECOND}
every_generation = pytest.mark.parametrize("generation", GENERATIONS)


def model(generation: str = "1.0", **changes: Any) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(**{**SIZES, **GENERATIONS[generation], "initializer_factor": 2.0, **changes})
    return T5ForConditionalGeneration(config).double().eval()


def random_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def other(ids: Tensor, at: int) -> Tensor:
    """Return the same ids, but for one position."""
    changed = ids.clone()
    changed[:, at] = (ids[:, at] + 7) % V
    return changed


# --- laws


@torch.no_grad()
@every_generation
def test_the_source_is_seen_by_all_and_the_target_by_what_comes_after(generation: str) -> None:
    t5, source, target = model(generation), random_ids(2, 9), random_ids(2, 7, seed=2)
    before, memory = t5(source, target), t5.encode(source)
    for s in range(9):
        assert ((t5.encode(other(source, s)) - memory).abs().amax(-1) > 1e-9).all()
        assert ((t5(other(source, s), target) - before).abs().amax(-1) > 1e-9).all()
    for t in range(7):
        changed = (t5(source, other(target, t)) - before).abs().amax(-1)
        assert (changed[:, :t] < 1e-12).all()
        assert (changed[:, t:] > 1e-9).all()


@torch.no_grad()
@every_generation
@pytest.mark.parametrize("target_side", ["left", "right"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(generation: str, side: str, target_side: str) -> None:
    t5, junk = model(generation), random_ids(2, 4, seed=5)
    source, target = random_ids(2, 7), random_ids(2, 6, seed=2)
    padded, mask = add_padding(source, junk, side)
    padded_target, target_mask = add_padding(target, junk, target_side)
    found = t5(padded, padded_target, mask=mask, decoder_mask=target_mask)
    assert found.isfinite().all()
    assert close(found[target_mask].view(2, 6, V), t5(source, target))
    assert close(t5.encode(padded, mask=mask)[mask].view(2, 7, 12), t5.encode(source))
    careless = t5(padded, padded_target, decoder_mask=target_mask)
    assert not close(careless[target_mask].view(2, 6, V), t5(source, target), 1e-4)


def add_padding(ids: Tensor, junk: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """Return ids with junk on one side, and where they are real."""
    parts = (junk, ids) if side == "left" else (ids, junk)
    return torch.cat(parts, 1), torch.cat([torch.full_like(x, x is ids, dtype=torch.bool) for x in parts], 1)


@torch.no_grad()
@every_generation
def test_pairs_of_a_batch_do_not_see_each_other(generation: str) -> None:
    t5, source, target = model(generation), random_ids(3, 8), random_ids(3, 5, seed=2)
    mask = torch.arange(8) < torch.tensor([8, 3, 6])[:, None]
    together = t5(source, target, mask=mask)
    for b in range(3):
        assert close(t5(source[b : b + 1], target[b : b + 1], mask=mask[b : b + 1])[0], together[b])


@torch.no_grad()
@every_generation
def test_pairs_that_share_a_row_do_not_see_each_other(generation: str) -> None:
    t5 = model(generation)
    sources, targets = [random_ids(1, n)[0] for n in (5, 3, 7)], [random_ids(1, n, 2)[0] for n in (4, 6, 2)]
    together, written = pack(sources, 16), pack(targets, 13)
    assert len(together.ids) == len(written.ids) == 1
    found = t5(
        together.ids,
        written.ids,
        mask=block_diagonal_mask(together.segments),
        decoder_mask=block_diagonal_mask(written.segments),
        cross_mask=(written.segments[:, :, None] == together.segments[:, None]) & (written.segments >= 0)[:, :, None],
    )
    assert found.isfinite().all()
    for row, source, target in zip(unpack(found, written.segments), sources, targets, strict=True):
        assert close(row, t5(source[None], target[None])[0])


@torch.no_grad()
def test_masks_that_hide_nothing_change_nothing() -> None:
    t5, source, target = model(), random_ids(2, 8), random_ids(2, 5, seed=2)
    plain = t5(source, target)
    flat = {"mask": torch.ones(2, 8), "decoder_mask": torch.ones(2, 5)}
    wide = {"mask": torch.ones(2, 8, 8), "decoder_mask": torch.ones(2, 5, 5), "cross_mask": torch.ones(2, 5, 8)}
    for options in (flat, wide, {"cross_mask": wide["cross_mask"]}):
        assert close(t5(source, target, **{name: x.bool() for name, x in options.items()}), plain)


@torch.no_grad()
def test_without_the_tables_the_order_of_the_source_is_lost() -> None:
    t5, source, target = model(), random_ids(2, 8), random_ids(2, 5, seed=2)
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    assert not close(t5.encode(source[:, order]), t5.encode(source)[:, order], 1e-4)
    t5.get_parameter("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight").zero_()
    assert close(t5.encode(source[:, order]), t5.encode(source)[:, order])
    assert close(t5(source[:, order], target), t5(source, target))


@torch.no_grad()
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_every_layer_of_a_stack_uses_the_table_of_the_first(stack: str) -> None:
    t5, source, target = model(), random_ids(2, 8), random_ids(2, 6, seed=2)
    tables = [name for name, _ in t5.named_parameters() if "relative_attention_bias" in name]
    name = f"{stack}.block.0.layer.0.SelfAttention"
    assert f"{name}.relative_attention_bias.weight" in tables
    assert len(tables) == 2
    t5.get_parameter(f"{name}.o.weight").zero_()  # what the first layer attends to is thrown away
    before = t5(source, target)
    t5.get_parameter(f"{name}.relative_attention_bias.weight").copy_(torch.randn(8, 3))
    assert not close(t5(source, target), before, 1e-4)


@torch.no_grad()
def test_tokens_of_one_bucket_may_be_swapped() -> None:
    t5, source = model(num_layers=1), random_ids(1, 20)
    swapped = source[:, [*range(12), 13, 12, *range(14, 20)]]
    assert (source != swapped).any()
    changed = (t5.encode(swapped) - t5.encode(source)).abs().amax(-1)[0]
    buckets = [[BUCKETS.get(key - i, 3 if key < i else 7) for key in (12, 13)] for i in range(20)]
    for i, (a, b) in enumerate(buckets):
        assert changed[i] > 1e-9 if a != b else changed[i] < 1e-12, i
    assert [i for i, (a, b) in enumerate(buckets) if a != b] == [9, 11, 12, 13, 14, 16]


BUCKETS = {0: 0, -1: 1, -2: 2, -3: 2, 1: 5, 2: 6, 3: 6}  # of 8, with 6 as the largest distance, by hand; then 3 and 7


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_its_equation(layer: int) -> None:
    t5 = model()
    table = t5.get_parameter("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    bias = torch.stack([torch.stack([table[BUCKETS[j - i]] for j in range(4)]) for i in range(4)])
    attention: Any = t5.encoder.get_submodule(f"block.{layer}.layer.0.SelfAttention")
    met: list[Tensor] = []
    attention.register_forward_hook(lambda _, inputs, output: met.extend((inputs[0], output)))
    t5.encode(random_ids(1, 4))
    heads = []
    for h in range(3):
        q, k, v = (x[0, :, 5 * h : 5 * h + 5] for x in (f(met[0]) for f in (attention.q, attention.k, attention.v)))
        heads.append((q @ k.T + bias[..., h]).softmax(-1) @ v)  # no scale
    assert close(met[1][0], torch.cat(heads, -1) @ attention.o.weight.T)


@torch.no_grad()
def test_what_the_decoder_gives_is_scaled_before_a_tied_head() -> None:
    source, target = random_ids(2, 8), random_ids(2, 6, seed=2)
    first, second = model()(source, target), model("1.1")(source, target)
    assert close(first * 12**0.5, model(scale_decoder_outputs=False)(source, target))
    assert close(second, model("1.1", scale_decoder_outputs=True)(source, target) * 12**0.5)


@torch.no_grad()
@every_generation
def test_feed_forward_parts_are_their_equations(generation: str) -> None:
    part: Any = model(generation).decoder.get_submodule("block.0.layer.2.DenseReluDense")
    x = torch.randn(2, 3, 12).double()
    if generation == "1.0":
        expected = part.wo(part.wi(x).clamp(min=0))
    else:
        gate = part.wi_0(x)
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        expected = part.wo(0.5 * gate * (1 + inner.tanh()) * part.wi_1(x))
    assert close(part(x), expected)


@torch.no_grad()
@every_generation
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float32, 1e-5)])
def test_the_dtype_stays_and_is_near(generation: str, dtype: torch.dtype, tolerance: float) -> None:
    exact, source, target = model(generation, initializer_factor=1.0), random_ids(2, 9), random_ids(2, 7, seed=2)
    found = model(generation, initializer_factor=1.0).to(dtype).load_hub(exact.state_dict())
    expected = exact(source, target)
    for y in (found(source, target, mask=torch.ones(2, 9) > 0), found.given(source)(target)):
        assert y.dtype == dtype
        assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_everything_is_made_where_the_ids_are() -> None:
    with torch.device("meta"):  # a tensor on another device would not meet those here
        t5 = T5ForConditionalGeneration(T5Config(**SIZES))
    ids = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    for options in ({}, {"mask": ids == 0, "decoder_mask": ids == 0}):
        memory = t5.encoder(t5.shared(ids), mask=options.get("mask"))
        pairs = t5.decoder.pairs(memory)
        y = t5.head(t5.decoder(t5.shared(ids), mask=options.get("decoder_mask"), pairs=pairs))
        assert (y.shape, y.device.type) == ((2, 9, V), "meta")


# --- the decoder of a source that was read


@torch.no_grad()
@every_generation
@pytest.mark.parametrize("padded", [False, True], ids=["no mask", "mask"])
def test_a_cache_changes_nothing(generation: str, padded: bool) -> None:
    t5, source, target = model(generation), random_ids(2, 8), random_ids(2, 15, seed=2)
    mask = torch.arange(8) < torch.tensor([8, 5])[:, None] if padded else None
    decoder_mask = torch.arange(15) >= torch.tensor([0, 3])[:, None] if padded else None
    whole = t5(source, target, mask=mask, decoder_mask=decoder_mask)
    given = t5.given(source, mask=mask)
    real = torch.ones(2, 15, dtype=torch.bool) if decoder_mask is None else decoder_mask
    assert close(given(target, mask=decoder_mask)[real], whole[real])
    cache, found = KVCache(given.config, 2, 15, dtype=torch.float64), []
    for begin, end in ((0, 4), (4, 5), (5, 6), (6, 9), *((t, t + 1) for t in range(9, 15))):
        part = None if decoder_mask is None else decoder_mask[:, begin:end]
        found.append(given(target[:, begin:end], mask=part, cache=cache))
    assert close(torch.cat(found, dim=1)[real], whole[real])
    assert close(given(target, mask=decoder_mask, logits_to_keep=2), given(target, mask=decoder_mask)[:, -2:])


@torch.no_grad()
def test_several_targets_of_each_source() -> None:
    t5, source, target = model(), random_ids(2, 8), random_ids(6, 5, seed=2)
    mask = torch.arange(8) < torch.tensor([8, 5])[:, None]
    given = t5.given(source, mask=mask)
    for rows in (target, target[:2], target):  # what was repeated for one call is not taken for the next
        n = len(rows) // 2
        expected = t5(source.repeat_interleave(n, 0), rows, mask=mask.repeat_interleave(n, 0))
        assert close(given(rows), expected)


def test_a_given_source_begins_as_the_config_says_and_keeps_no_gradients() -> None:
    given = model(decoder_start_token_id=7).given(random_ids(3, 8))
    assert given.start.tolist() == [[7]] * 3
    assert given(given.start).requires_grad
    assert not any(x.requires_grad for pair in given._pairs for x in pair)


def test_targets_are_shifted() -> None:
    targets = torch.tensor([[4, 5, -100, 6, -100], [1, 2, 3, 4, 5]])
    assert shift_right(targets).tolist() == [[0, 4, 5, 0, 6], [0, 1, 2, 3, 4]]
    assert shift_right(targets, start_id=8, pad_id=9).tolist() == [[8, 4, 5, 9, 6], [8, 1, 2, 3, 4]]
    assert shift_right(targets[1], start_id=8).tolist() == [8, 1, 2, 3, 4]


# --- training


@torch.no_grad()
@every_generation
def test_fresh_weights_keep_the_size_of_sums(generation: str) -> None:
    sizes = {"d_model": 64, "d_ff": 200, "d_kv": 16, "num_heads": 8, "vocab_size": 200, "initializer_factor": 1.0}
    t5 = model(generation, **sizes, relative_attention_num_buckets=32, relative_attention_max_distance=128)
    expected = {"q": (64 * 16) ** -0.5, "k": 1 / 8, "v": 1 / 8, "o": 128**-0.5, "wo": 200**-0.5, "shared": 1.0}
    expected |= {"wi": 1 / 8, "wi_0": 1 / 8, "wi_1": 1 / 8, "relative_attention_bias": 1 / 8}
    expected |= {"lm_head": 1.0}
    for name, weight in t5.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(expected[name.split(".")[-2]], rel=0.15), name


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    t5, source, target = model(dropout_rate=0.4), random_ids(2, 8), random_ids(2, 6, seed=2)
    plain = model()(source, target)
    assert close(t5(source, target), plain)
    assert not close(t5.train()(source, target), plain, 1e-3)
    assert close(model().train()(source, target), plain)  # with a probability of 0


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_dropped_weights_of_attention_keep_the_causal_order_and_the_bias(masked: bool) -> None:
    t5, source, target = model(dropout_rate=1e-9).train(), random_ids(2, 8), random_ids(2, 6, seed=2)
    real = torch.arange(8) < torch.tensor([8, 5])[:, None]
    options = {"mask": real, "decoder_mask": real[:, 2:]} if masked else {}
    assert close(t5(source, target, **options), model()(source, target, **options), 1e-8)  # another path, none dropped


@torch.no_grad()
def test_hidden_features_are_dropped() -> None:
    part: Any = model(dropout_rate=0.5).encoder.get_submodule("block.0.layer.1.DenseReluDense")
    x = torch.randn(2, 3, 12).double()
    before = part(x)
    assert not close(part.train()(x), before, 1e-3)


@torch.no_grad()
def test_weights_of_attention_are_dropped_everywhere() -> None:
    t5, source, target = model(dropout_rate=0.5), random_ids(2, 8), random_ids(2, 6, seed=2)
    for module in t5.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()  # those outside of attention
    before = t5(source, target)
    for stack in (t5.encoder, t5.decoder):
        stack.training = True
        stack.drop.eval()
        assert not close(t5(source, target), before, 1e-3)
        stack.training = False


# --- files


def stored(t5: T5ForConditionalGeneration) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in t5.named_parameters()}


def test_names_that_files_have_for_the_embedding() -> None:
    t5, fresh = model(), model(initializer_factor=1.0)
    tensors = stored(t5)
    shared = tensors.pop("shared.weight")
    for copies in (("encoder.embed_tokens.weight",), ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")):
        fresh.load_hub({**tensors, **dict.fromkeys(copies, shared)})
        assert torch.equal(fresh.shared.weight, shared)
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(8, 3)}
    fresh.load_hub({**stored(t5), **unused, "lm_head.weight": shared, "encoder.embed_tokens.weight": shared})
    with pytest.raises(ValueError, match=r"beyond what the model has, decoder\.embed_tokens\.weight"):
        fresh.load_hub({**stored(t5), "decoder.embed_tokens.weight": shared + 1})


@torch.no_grad()
def test_a_head_that_is_not_tied_although_the_file_says_so() -> None:
    second, source, target = model("1.1"), random_ids(2, 8), random_ids(2, 6, seed=2)
    assert second.lm_head.weight is not second.shared.weight
    fresh = model("1.1", tie_word_embeddings=True, scale_decoder_outputs=False)  # as transformers 5 writes it
    assert fresh.lm_head.weight is fresh.shared.weight
    fresh.load_hub(stored(second))
    assert close(fresh(source, target), second(source, target), 0)
    assert not fresh.config.tie_word_embeddings
    tied = model("1.1", tie_word_embeddings=True, scale_decoder_outputs=False)
    tied.load_hub({**stored(second), "lm_head.weight": second.shared.weight.detach()})
    assert tied.lm_head.weight is tied.shared.weight
    before = tied(source, target)
    with pytest.raises(ValueError, match=r"lacks decoder\.final_layer_norm\.weight"):
        tied.load_hub({name: x for name, x in stored(second).items() if name != "decoder.final_layer_norm.weight"})
    assert close(tied(source, target), before, 0)  # a folder that is refused changes nothing
    with pytest.raises(ValueError, match=r"lm_head\.weight and shared\.weight differ, but tie_word_embeddings is true"):
        model().load_hub({**stored(model()), "lm_head.weight": torch.zeros(V, 12)})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("shared.weight", None, r"lacks shared\.weight of shape \(29, 12\)"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", None, "lacks encoder.*bias"),
        ("decoder.block.2.layer.1.EncDecAttention.k.weight", None, r"lacks decoder.*k\.weight of shape \(15, 12\)"),
        ("decoder.final_layer_norm.weight", torch.zeros(11), r"norm\.weight has shape \(11,\), expected \(12,\)"),
        ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", torch.zeros(8, 3), "beyond what"),
        ("encoder.block.2.layer.0.layer_norm.weight", torch.zeros(12), "beyond what the model has"),
    ],
)
def test_a_wrong_tensor_is_named(name: str, tensor: Tensor | None, message: str) -> None:
    tensors = {**stored(model()), name: tensor}
    with pytest.raises(ValueError, match=message):
        model().load_hub({name: x for name, x in tensors.items() if x is not None})


def test_another_architecture_of_the_family_is_refused() -> None:
    assert model_class(T5Config(**SIZES, architectures=("T5ForConditionalGeneration",))) is T5ForConditionalGeneration
    with pytest.raises(ValueError, match="architectures is T5EncoderModel, expected one of"):
        model_class(T5Config(**SIZES, architectures=("T5EncoderModel",)))


# --- bad input

IDS = torch.zeros(2, 3, dtype=torch.long)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ids", "decoder_ids", "options", "message"),
    [
        (IDS + V, IDS, {}, "^ids has 29, expected 0 to 28"),
        (IDS, IDS + V, {}, "^decoder_ids has 29, expected 0 to 28"),
        (IDS, IDS[0], {}, r"decoder_ids has shape \(3,\)"),
        (IDS, IDS[:1], {}, "batch size of decoder_ids is 1, batch size of the source is 2"),
        (IDS, IDS, {"mask": torch.ones(2, 3)}, "mask has dtype torch.float32, expected torch.bool"),
        (IDS, IDS, {"mask": ones(2, 4)}, r"mask is \(2, 4\), shape of ids is \(2, 3\)"),
        (IDS, IDS, {"decoder_mask": ones(2, 4)}, r"decoder_mask is \(2, 4\), shape of ids is \(2, 3\)"),
        (IDS, IDS, {"mask": ones(2, 3, 3)}, r"mask has shape \(2, 3, 3\): say in cross_mask"),
        (IDS, IDS[:, :2], {"cross_mask": ones(2, 3, 3)}, r"source is \(2, 3, 3\), shape that fits is \(2, 2, 3\)"),
        (IDS, IDS[:, :2], {"cross_mask": torch.ones(2, 2, 3)}, "mask of the source has dtype torch.float32"),
    ],
)
def test_bad_input_is_told(ids: Tensor, decoder_ids: Tensor, options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(ids, decoder_ids, **options)


def test_bad_input_of_a_given_source() -> None:
    t5 = model()
    given = t5.given(IDS)
    for call, message in [
        (lambda: t5.given(IDS, mask=ones(2, 3, 3)), r"shape of mask is \(2, 3, 3\), shape of ids is \(2, 3\)"),
        (lambda: given(torch.cat([IDS, IDS[:1]])), "number of sources = 2 does not divide number of rows = 3"),
        (lambda: given(IDS + V), "ids has 29, expected 0 to 28"),
        (lambda: given(IDS, logits_to_keep=0), "logits_to_keep is 0, expected 1 to 3"),
        (lambda: given(IDS, mask=ones(2, 3, 3), cache=KVCache(given.config, 2, 4)), "go without it"),
        (lambda: given(IDS, cache=KVCache(given.config, 2, 2)), "room for 2, expected room for 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
