"""T5 against transformers: logits and gradients of both generations, padding, folders both ways, and decoding."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llm_study.core.config import T5Config, config_from_dict
from llm_study.core.hub import CONFIG
from llm_study.generation import generate
from llm_study.models import from_pretrained
from llm_study.models.t5 import T5ForConditionalGeneration, shift_right
from tests.parity.decoders import keep_float64
from tests.parity.tiny_models import assert_all_close, outcome, padded, random_ids, scramble, tensors_of

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,  # four heads are narrower than the model
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
SECOND: dict[str, Any] = {**BASE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GENERATIONS: dict[str, dict[str, Any]] = {"1.0": BASE, "1.1": SECOND}
every_generation = pytest.mark.parametrize("generation", GENERATIONS)
Values = dict[str, Tensor]
LIMITS = {torch.float32: 5e-5, torch.float64: 1e-11}


def oracle(generation: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """Return transformers' model, tiny and scrambled; that of version 1.1 with a head of its own."""
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**GENERATIONS[generation], **changes}))
    theirs.set_attn_implementation("eager")
    if generation == "1.1":  # transformers 5 ties it, unless a file says otherwise
        theirs.lm_head.weight = nn.Parameter(torch.randn_like(theirs.shared.weight))
    scramble(theirs, 0)
    model: nn.Module = theirs.to(dtype).eval()
    return model


def pair(
    generation: str, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[T5ForConditionalGeneration, nn.Module]:
    """Return our model with the weights of the oracle, and the oracle."""
    theirs = oracle(generation, dtype=dtype, **changes)
    ours = T5ForConditionalGeneration(T5Config.from_dict(theirs.config.to_dict())).to(dtype).eval()
    return ours.load_hub(tensors_of(theirs)), theirs


def assert_near(
    found: dict[str, Tensor], expected: dict[str, Tensor], precise: dict[str, Tensor] | None = None
) -> None:
    """Fail unless all values agree; ``precise`` tells how far those expected may be off themselves."""
    limit = LIMITS[next(iter(expected.values())).dtype]
    assert_all_close(found, expected, expected if precise is None else precise, limit)


def assert_parity(
    ours: nn.Module,
    theirs: nn.Module,
    ids: Tensor,
    decoder_ids: Tensor,
    *,
    mask: Tensor | None = None,
    decoder_mask: Tensor | None = None,
) -> None:
    """Fail unless logits and gradients of all parameters agree, up to three times the oracle's own rounding errors."""
    real = torch.ones_like(decoder_ids, dtype=torch.bool) if decoder_mask is None else decoder_mask
    found = outcome(ours, ours(ids, decoder_ids, mask=mask, decoder_mask=decoder_mask), real)
    given = {
        "attention_mask": None if mask is None else mask.long(),
        "decoder_attention_mask": None if decoder_mask is None else decoder_mask.long(),
    }

    def answer(model: nn.Module) -> dict[str, Tensor]:
        logits = model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False, **given).logits
        return outcome(model, logits, real)

    with pytest.MonkeyPatch.context() as monkeypatch:
        expected, double = answer(theirs), copy.deepcopy(theirs).double()
        keep_float64(double, monkeypatch)
        assert_near(found, expected, answer(double))


# --- logits and gradients


@every_generation
def test_logits_and_gradients(generation: str) -> None:
    ours, theirs = pair(generation)
    assert_parity(ours, theirs, random_ids(2, 24), random_ids(2, 16, seed=1))


@every_generation
def test_in_float64(generation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(generation, dtype=torch.float64)
    keep_float64(theirs, monkeypatch)
    assert_parity(ours, theirs, random_ids(2, 24), random_ids(2, 16, seed=1))


@every_generation
@pytest.mark.parametrize("target_side", ["left", "right"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(generation: str, side: str, target_side: str) -> None:
    ours, theirs = pair(generation)
    mask, decoder_mask = padded(side, length=20), padded(target_side).flip(0)
    assert_parity(ours, theirs, random_ids(3, 20), random_ids(3, seed=1), mask=mask, decoder_mask=decoder_mask)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_decoder_layers": 3},
        {"num_layers": 1, "num_decoder_layers": 1},
        {"feed_forward_proj": "gelu"},
        {"feed_forward_proj": "gated-silu"},
        {"feed_forward_proj": "gated-relu"},
        {"layer_norm_epsilon": 0.1},
        {"d_kv": 16, "num_heads": 3},
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        {"tie_word_embeddings": False},  # tied all the same, but not scaled
        {"decoder_start_token_id": 5},
    ],
    ids=str,
)
def test_other_settings(changes: dict[str, Any]) -> None:
    ours, theirs = pair("1.0", **changes)
    assert_parity(ours, theirs, random_ids(2, 24), random_ids(2, 16, seed=1))


def test_the_loss_is_that_of_labels() -> None:
    ours, theirs = pair("1.0")
    labels = random_ids(2, 9, seed=1)
    labels[1, 6:] = -100
    decoder_ids = shift_right(labels, start_id=0, pad_id=0)
    assert torch.equal(decoder_ids, theirs.prepare_decoder_input_ids_from_labels(labels))
    logits = ours(random_ids(2, 12), decoder_ids)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected = theirs(input_ids=random_ids(2, 12), labels=labels).loss
    assert abs(loss - expected) <= 5e-5 * expected


@torch.no_grad()
def test_the_encoder_alone() -> None:
    ours, theirs = pair("1.0")
    mask = padded("left")
    expected = theirs.encoder(input_ids=random_ids(3), attention_mask=mask.long()).last_hidden_state
    assert_near({"memory": ours.encode(random_ids(3), mask=mask)[mask]}, {"memory": expected[mask]})


# --- folders


def reread(folder: Path) -> nn.Module:
    theirs, told = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    assert not any(told.values())
    model: nn.Module = theirs.eval()
    return model


@torch.no_grad()
@every_generation
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000], ids=["one file", "shards"])
def test_folders_go_both_ways(generation: str, shard_bytes: int, tmp_path: Path) -> None:
    theirs = oracle(generation)
    ids, decoder_ids = random_ids(2, 20), random_ids(2, 12, seed=1)
    expected = theirs(input_ids=ids, decoder_input_ids=decoder_ids).logits
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)

    ours = from_pretrained(tmp_path / "theirs")
    assert isinstance(ours, T5ForConditionalGeneration)
    assert_near({"logits": ours(ids, decoder_ids)}, {"logits": expected})
    assert ours.config.scale_decoder_outputs == ours.config.tie_word_embeddings == (generation == "1.0")
    assert (ours.lm_head.weight is ours.shared.weight) == (generation == "1.0")

    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=shard_bytes)
    assert torch.equal(reread(tmp_path / "ours")(input_ids=ids, decoder_input_ids=decoder_ids).logits, expected)
    again = from_pretrained(tmp_path / "ours")
    assert torch.equal(again(ids, decoder_ids), ours(ids, decoder_ids))
    assert again.config == ours.config


@every_generation
def test_what_is_written_is_what_transformers_would_write(generation: str, tmp_path: Path) -> None:
    theirs = oracle(generation)
    theirs.save_pretrained(tmp_path / "theirs")
    from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    for name, value in theirs.config.to_dict().items():
        if name not in ("_name_or_path", "transformers_version"):
            assert again[name] == value, name


@torch.no_grad()
@every_generation
def test_the_older_config_json(generation: str, tmp_path: Path) -> None:
    theirs = oracle(generation)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    del written["scale_decoder_outputs"]  # transformers 4 had it not, and wrote what version 1.1 does
    written["tie_word_embeddings"] = generation == "1.0"
    written["torch_dtype"] = written.pop("dtype")
    (tmp_path / CONFIG).write_text(json.dumps(written), "utf-8")
    ids, decoder_ids = random_ids(2, 20), random_ids(2, 12, seed=1)
    expected = theirs(input_ids=ids, decoder_input_ids=decoder_ids).logits
    assert torch.equal(reread(tmp_path)(input_ids=ids, decoder_input_ids=decoder_ids).logits, expected)
    ours = from_pretrained(tmp_path)
    assert_near({"logits": ours(ids, decoder_ids)}, {"logits": expected})


def test_a_config_json_of_t5_small() -> None:
    config = config_from_dict({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **SMALL})
    theirs = transformers.T5Config(**SMALL)
    with torch.device("meta"):
        count = sum(p.numel() for p in T5ForConditionalGeneration(config).parameters())
        expected = sum(p.numel() for p in transformers.T5ForConditionalGeneration(theirs).parameters())
    assert count == expected == 60_506_624


SMALL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "n_positions": 512,
    "output_past": True,
    "relative_attention_num_buckets": 32,
}


# --- decoding


def lively(generation: str) -> tuple[T5ForConditionalGeneration, nn.Module]:
    """Return models that do not repeat the token that they have just read: embeddings are a small part of the sum."""
    theirs = oracle(generation)
    with torch.no_grad():
        theirs.shared.weight.mul_(0.05)
    ours = T5ForConditionalGeneration(T5Config.from_dict(theirs.config.to_dict())).eval()
    return ours.load_hub(tensors_of(theirs)), theirs


def until(rows: Tensor, eos_id: int) -> list[list[int]]:
    """Return rows up to their end; what follows it is the end again, or padding."""
    found = []
    for row in rows.tolist():
        stop = row.index(eos_id, 1) + 1 if eos_id in row[1:] else len(row)
        assert set(row[stop:]) <= {eos_id, 0}
        found.append(row[:stop])
    return found


@torch.no_grad()
@every_generation
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_decoding(generation: str, beams: int, side: str | None) -> None:
    ours, theirs = lively(generation)
    ids, mask = random_ids(3, 18), None if side is None else padded(side, length=18)
    given = ours.given(ids, mask=mask)
    free = generate(given, given.start, max_new_tokens=14, num_beams=beams)  # further than the largest distance
    assert len(free.unique()) > 7  # no single token over and over
    for eos_id in (1, int(free[0, 6])):  # one that does not come, and one that ends a row
        options = {"max_new_tokens": 14, "num_beams": beams}
        found = generate(given, given.start, **options, eos_id=eos_id)
        attention_mask = torch.ones_like(ids) if mask is None else mask.long()
        expected = theirs.generate(
            ids, attention_mask=attention_mask, do_sample=False, eos_token_id=eos_id, pad_token_id=0, **options
        )
        assert until(found, eos_id) == until(expected, eos_id)
        if beams == 1:
            logits = theirs(input_ids=ids, attention_mask=attention_mask, decoder_input_ids=free[:, :-1]).logits
            assert torch.equal(logits.argmax(-1), free[:, 1:])
