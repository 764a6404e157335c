"""The folder that ``python -m llm_study train`` writes is one of transformers: same logits, same ids, same end."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_study.__main__ import main
from llm_study.models import from_pretrained
from llm_study.tokenizers.auto import load_tokenizer
from llm_study.training.pretrain import END
from tests.parity.closeness import assert_close

TEXT = "".join(f"Der Hund Nr. {i} schläft, 猫 {i * i % 7} läuft.\n" for i in range(120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("train")
    (place / "text.txt").write_text(TEXT, "utf-8")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "length": 24}
    settings = {**sizes, "num_key_value_heads": 2, "vocab_size": 320, "batch_size": 4, "learning_rate": 0.03}
    (place / "run.toml").write_text("".join(f"{name} = {x}\n" for name, x in settings.items()))
    command = ["--text", place / "text.txt", "--out", place / "out", "--config", place / "run.toml", "--steps", 20]
    assert main(["train", *map(str, command)]) == 0
    return place / "out"


def test_transformers_reads_the_model(folder: Path) -> None:
    ours, theirs = from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.randint(ours.config.vocab_size, (3, 24))
    with torch.no_grad():
        assert_close(ours(ids), theirs(ids).logits)
    assert ours(ids).std() > 0.5  # it has learned something that could be wrong
    assert theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight


def test_transformers_reads_the_tokenizer(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, "a  b\n\n猫é🙂", ""):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token, theirs.eos_token_id) == (END, ours.vocab_size - 1)
    assert theirs(f"a{END}")["input_ids"][-1] == theirs.eos_token_id


def test_both_end_a_text_at_the_same_token(folder: Path) -> None:
    end = load_tokenizer(folder).vocab_size - 1
    assert GenerationConfig.from_pretrained(folder).eos_token_id == end
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == end
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 24
