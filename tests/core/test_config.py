"""Configurations: what is read, what is refused and with which words, and that what is written says the same."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from llm_study.core.config import (
    BertConfig,
    DecoderConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModelConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Rope,
    T5Config,
    config_from_dict,
    model_types,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4}
T5: dict[str, Any] = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
KINDS = [BertConfig, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Olmo2Config, Qwen2Config]
KINDS += [Qwen3Config, T5Config]


def raw(kind: type[ModelConfig], **more: Any) -> dict[str, Any]:
    """Return the smallest ``config.json`` of a family, with additions."""
    sizes = {GPT2Config: GPT2, BertConfig: SIZES, T5Config: T5}.get(kind, GROUPED)
    return {"model_type": kind.model_type, **sizes, **more}


every_kind = pytest.mark.parametrize("kind", KINDS)
every_decoder = pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, DecoderConfig)])


# --- what is read


def test_every_family_is_known() -> None:
    assert model_types() == tuple(sorted(kind.model_type for kind in KINDS))


@every_kind
def test_the_model_type_picks_the_class(kind: type[ModelConfig]) -> None:
    assert type(config_from_dict(raw(kind))) is kind


@every_kind
def test_what_is_written_says_the_same(kind: type[ModelConfig]) -> None:
    more = {"eos_token_id": [3, 4], "architectures": ["Some"], "dtype": "bfloat16", "tie_word_embeddings": True}
    config = config_from_dict(raw(kind, **more))
    assert config_from_dict(config.to_dict()) == config
    assert (config.eos_token_id, config.architectures, config.dtype) == ((3, 4), ("Some",), "bfloat16")
    assert config.to_dict()["eos_token_id"] == [3, 4]


@every_kind
def test_both_names_of_the_dtype_are_read(kind: type[ModelConfig]) -> None:
    assert config_from_dict(raw(kind, torch_dtype="float16")).dtype == "float16"
    assert config_from_dict(raw(kind, torch_dtype="float16", dtype="float32")).dtype == "float32"
    assert config_from_dict(raw(kind)).dtype is None


@every_kind
def test_what_is_no_field_is_left_out(kind: type[ModelConfig]) -> None:
    assert config_from_dict(raw(kind, max_new_tokens=9, made_up=[1, 2])) == config_from_dict(raw(kind))


@every_kind
def test_nothing_can_be_changed(kind: type[ModelConfig]) -> None:
    config = config_from_dict(raw(kind))
    with pytest.raises(FrozenInstanceError):
        config.vocab_size = 3
    assert hash(config) == hash(replace(config))


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Olmo2Config, Gemma2Config])
@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, Rope(rope_theta=5e5)),
        ({"type": "linear", "factor": 4}, Rope(rope_theta=5e5, rope_type="linear", factor=4.0)),
        ({"rope_type": "default"}, Rope(rope_theta=5e5)),
        (LLAMA3, Rope(rope_theta=5e5, **LLAMA3)),
    ],
)
def test_both_generations_of_rope(kind: type[DecoderConfig], scaling: dict[str, Any] | None, expected: Rope) -> None:
    old = kind.from_dict(raw(kind, rope_theta=500000, rope_scaling=scaling))
    new = kind.from_dict(raw(kind, rope_parameters={"rope_theta": 500000, **(scaling or {})}))
    assert old == new
    assert old.rope(0) == old.rope_parameters == expected
    assert old.to_dict()["rope_parameters"] == expected.to_dict()
    assert "rope_theta" not in old.to_dict()


def test_llama3_takes_the_longest_text_where_the_entry_does_not_say_what_it_was() -> None:
    scaling = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    config = LlamaConfig.from_dict(raw(LlamaConfig, rope_scaling=scaling, max_position_embeddings=333))
    assert config.rope_parameters.original_max_position_embeddings == 333


def test_both_generations_of_gemma3() -> None:
    old = {"rope_theta": 2e6, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    sliding = {"rope_type": "default", "rope_theta": 5e3}
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    first = Gemma3TextConfig.from_dict(raw(Gemma3TextConfig, **old, sliding_window_pattern=3))
    new = {"rope_parameters": {"sliding_attention": sliding, "full_attention": full}}
    second = Gemma3TextConfig.from_dict(raw(Gemma3TextConfig, **new, layer_types=[*kinds, *kinds, kinds[0]]))
    assert first == second
    assert [first.rope(i).rope_theta for i in range(7)] == [5e3, 5e3, 2e6, 5e3, 5e3, 2e6, 5e3]
    assert first.to_dict()["rope_parameters"] == new["rope_parameters"]
    assert "rope_sliding" not in first.to_dict()


@pytest.mark.parametrize(
    ("kind", "more", "windows"),
    [
        (LlamaConfig, {}, [None] * 7),
        (LlamaConfig, {"sliding_window": 8}, [None] * 7),
        (MistralConfig, {"sliding_window": 8}, [8] * 7),
        (MistralConfig, {"sliding_window": None}, [None] * 7),
        (Qwen2Config, {"sliding_window": 8, "max_window_layers": 2}, [None] * 7),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}, [None] * 5 + [8] * 2),
        (Qwen3Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, [8] * 7),
        (Qwen3Config, {"use_sliding_window": True, "sliding_window": 8}, [None] * 7),
        (Gemma2Config, {"sliding_window": 8}, [8, None, 8, None, 8, None, 8]),
        (Gemma2Config, {"sliding_window": 8, "layer_types": ["full_attention"] * 7}, [None] * 7),
        (Gemma3TextConfig, {"sliding_window": 8}, [8] * 5 + [None, 8]),
    ],
)
def test_windows(kind: type[DecoderConfig], more: dict[str, Any], windows: list[int | None]) -> None:
    config = kind.from_dict(raw(kind, **more))
    assert [config.window(layer) for layer in range(7)] == windows


def test_what_a_file_leaves_open() -> None:
    config = LlamaConfig.from_dict({**SIZES, "head_dim": None, "num_key_value_heads": None})
    assert (config.head_dim, config.num_key_value_heads) == (4, 8)
    assert GPT2Config.from_dict({**GPT2, "n_inner": None}).n_inner == 128
    assert GPT2Config.from_dict({**GPT2, "n_inner": 5}).n_inner == 5
    assert T5Config.from_dict({**T5, "num_decoder_layers": None}).num_decoder_layers == 2
    assert T5Config.from_dict({**T5, "num_decoder_layers": 5}).num_decoder_layers == 5
    assert len(T5Config.from_dict({**T5, "num_decoder_layers": 5}).kv_layers()) == 5


@pytest.mark.parametrize(
    ("more", "tied", "scaled"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),  # transformers 4 of version 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),  # transformers 5 of the same
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False, False),
    ],
)
def test_both_generations_of_t5(more: dict[str, Any], tied: bool, scaled: bool) -> None:
    config = T5Config.from_dict({**T5, **more})
    assert (config.tie_word_embeddings, config.scale_decoder_outputs) == (tied, scaled)


@pytest.mark.parametrize(
    ("name", "function", "gated"),
    [
        ("relu", "relu", False),
        ("gelu", "gelu", False),
        ("gated-gelu", "gelu_new", True),
        ("gated-silu", "silu", True),
        ("gated-gelu_new", "gelu_new", True),
    ],
)
def test_feed_forward_parts_of_t5(name: str, function: str, gated: bool) -> None:
    said = {"feed_forward_proj": name, "dense_act_fn": function, "is_gated_act": gated}
    config = T5Config.from_dict({**T5, **said})
    assert (config.dense_act_fn, config.is_gated_act) == (function, gated)


# --- what is refused


def message(raw_config: dict[str, Any]) -> str:
    """Return what is said of a configuration that is refused."""
    with pytest.raises(ValueError) as caught:
        config_from_dict(raw_config, source="some/config.json")
    return str(caught.value)


@every_kind
def test_a_missing_field_is_named(kind: type[ModelConfig]) -> None:
    whole = raw(kind)
    for name in {GPT2Config: GPT2, T5Config: T5}.get(kind, SIZES):
        lacking = {key: value for key, value in whole.items() if key != name}
        assert message(lacking) == f"some/config.json: {name} is missing"


@pytest.mark.parametrize(
    ("value", "found"), [("gemma3", "'gemma3'"), (None, "None"), (["llama"], r"['llama']"), ("Llama", "'Llama'")]
)
def test_an_unknown_family_is_told_the_known_ones(value: object, found: str) -> None:
    known = "bert, gemma2, gemma3_text, gpt2, llama, mistral, olmo2, qwen2, qwen3, t5"
    assert message({"model_type": value}) == f"some/config.json: model_type is {found}, expected one of {known}"


@pytest.mark.parametrize(
    ("kind", "more", "text"),
    [
        (LlamaConfig, {"vocab_size": "97"}, "vocab_size is '97', expected an integer"),
        (LlamaConfig, {"vocab_size": 97.0}, "vocab_size is 97.0, expected an integer"),
        (LlamaConfig, {"vocab_size": True}, "vocab_size is True, expected an integer"),
        (LlamaConfig, {"vocab_size": None}, "vocab_size is None, expected an integer"),
        (LlamaConfig, {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', expected a number"),
        (LlamaConfig, {"rms_norm_eps": True}, "rms_norm_eps is True, expected a number"),
        (LlamaConfig, {"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        (LlamaConfig, {"hidden_act": None}, "hidden_act is None, expected a string"),
        (LlamaConfig, {"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected an integer or a list or null"),
        (LlamaConfig, {"eos_token_id": [1, "2"]}, "an entry of eos_token_id is '2', expected an integer"),
        (Gemma2Config, {"layer_types": "full"}, "layer_types is 'full', expected a list"),
        (LlamaConfig, {"rope_scaling": [1]}, "rope_parameters is [1], expected an object"),
        (LlamaConfig, {"rope_theta": "big"}, "rope_theta is 'big', expected a number"),
        (LlamaConfig, {"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        (LlamaConfig, {"num_hidden_layers": -1}, "num_hidden_layers is -1, expected at least 1"),
        (LlamaConfig, {"num_key_value_heads": -2}, "num_key_value_heads is -2, expected at least 1"),
        (LlamaConfig, {"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide num_attention_heads = 8"),
        (LlamaConfig, {"head_dim": 5}, "head_dim is 5, expected an even number"),
        (LlamaConfig, {"head_dim": 0, "hidden_size": 33}, "num_attention_heads = 8 does not divide hidden_size = 33"),
        (MistralConfig, {"sliding_window": 0}, "sliding_window is 0, expected at least 1"),
        (Gemma2Config, {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 7"),
        (Gemma2Config, {"layer_types": ["chunked_attention"] * 7}, "layer_types has 'chunked_attention', expected"),
        (Gemma2Config, {"sliding_window": None}, "layer_types has 'sliding_attention', but there is no sliding_window"),
        (Gemma2Config, {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0, expected a positive number"),
        (Gemma2Config, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, expected False"),
        (GPT2Config, {"n_head": 5}, "n_head = 5 does not divide n_embd = 32 (remainder 2)"),
        (GPT2Config, {"scale_attn_weights": False}, "scale_attn_weights is False, expected True"),
        (GPT2Config, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2Config, {"add_cross_attention": True}, "add_cross_attention is True, expected False"),
        (BertConfig, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        (BertConfig, {"is_decoder": True}, "is_decoder is True, expected False"),
        (BertConfig, {"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 32"),
        (T5Config, {"is_encoder_decoder": False}, "is_encoder_decoder is False, expected True"),
        (T5Config, {"d_kv": 0}, "d_kv is 0, expected at least 1"),
        (T5Config, {"num_decoder_layers": -1}, "num_decoder_layers is -1, expected at least 1"),
        (T5Config, {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2, expected at least 4"),
        (T5Config, {"relative_attention_num_buckets": 30}, "near and far in two directions = 4 does not divide"),
        (T5Config, {"relative_attention_max_distance": 16}, "relative_attention_max_distance is 16, expected at least"),
        (T5Config, {"feed_forward_proj": "swi-glu"}, "feed_forward_proj is 'swi-glu', expected an activation such as"),
        (T5Config, {"dense_act_fn": "silu"}, "dense_act_fn is 'silu', feed_forward_proj is 'relu', expected the first"),
        (
            T5Config,
            {"is_gated_act": True},
            "is_gated_act is True, feed_forward_proj is 'relu', expected the first to be",
        ),
        (LlamaConfig, {"quantization_config": {"bits": 4}}, "quantization_config is set: quantized weights are not"),
        (LlamaConfig, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1.0"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(kind: type[ModelConfig], more: dict[str, Any], text: str) -> None:
    assert message(raw(kind, **more)).startswith(f"some/config.json: {text}")


@pytest.mark.parametrize("kind", [LlamaConfig, Gemma3TextConfig])
@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope", "mrope", None])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_an_unknown_scaling_is_named(kind: type[ModelConfig], name: str | None, key: str) -> None:
    said = message(raw(kind, rope_scaling={key: name, "factor": 2.0}))
    assert said == f"some/config.json: rope_type is {name!r}, expected one of default, linear, llama3"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"factor": None}, "rope_type 'llama3' needs factor"),
        ({"factor": 0}, "factor is 0.0, expected a positive number"),
        ({"factor": float("inf")}, "factor is inf, expected a positive number"),
        ({"low_freq_factor": 4.0}, "low_freq_factor is 4.0, high_freq_factor is 4.0, expected the first to be smaller"),
        ({"original_max_position_embeddings": 8.5}, "original_max_position_embeddings is 8.5, expected an integer"),
    ],
)
def test_bad_numbers_of_a_scaling(change: dict[str, Any], text: str) -> None:
    assert text in message(raw(LlamaConfig, rope_scaling={**LLAMA3, **change}))


def test_a_scaling_without_its_factor() -> None:
    assert "rope_type 'linear' needs factor" in message(raw(LlamaConfig, rope_scaling={"rope_type": "linear"}))
    with pytest.raises(ValueError, match="rope_type 'default' takes no factor"):
        Rope(factor=2.0)
    with pytest.raises(ValueError, match=r"rope_theta is -1\.0, expected a positive number"):
        Rope(rope_theta=-1.0)


# --- what it costs to import


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = "import sys, llm_study.core.config, llm_study.core.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- labels of a classifier


def test_labels_are_read_in_the_order_of_their_numbers() -> None:
    config = BertConfig.from_dict(raw(BertConfig, id2label={"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}))
    assert config.labels == tuple("abcdefghijk")
    assert config.to_dict()["id2label"]["10"] == "k"
    assert BertConfig.from_dict(config.to_dict()) == config
    assert "id2label" not in BertConfig.from_dict(raw(BertConfig)).to_dict()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has the numbers 0, 2, expected 0 to 1"),
        ({"id2label": ["a", "b"]}, "id2label is .*, expected an object"),
        ({"id2label": {"0": 1}}, "label 0 is 1, expected a string"),
        ({"id2label": {"0": "a", "1": "a"}}, "labels is .*, expected at least one name, and each once"),
        ({"num_labels": 0}, "labels is .*, expected at least one name"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', expected one of single_label_classification, "),
    ],
)
def test_labels_without_a_sense(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict(raw(BertConfig, **more))
