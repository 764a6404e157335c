"""The right tokenizer for a folder, the ids before a text, and what is said of folders without a tokenizer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llm_study.tokenizers.unigram import Unigram

from llm_study.tokenizers.auto import leading_ids, load_tokenizer
from llm_study.tokenizers.base import TOKENIZER, Tokenizer
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.wordpiece import WordPiece

TEXTS = ["low lower lowest, new newer newest", "大语言模型 naïve café"] * 4


def trained(kind: str) -> Any:
    if kind == "BPE":
        return ByteLevelBPE.train(TEXTS, vocab_size=270)
    if kind == "WordPiece":
        return WordPiece.train(TEXTS, vocab_size=80)
    return Unigram.train(TEXTS, vocab_size=80)


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram"])
def test_the_model_decides(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind)
    tokenizer.save(tmp_path / TOKENIZER)
    for path in (tmp_path, tmp_path / TOKENIZER, str(tmp_path)):
        found: Tokenizer = load_tokenizer(path)
        assert type(found) is type(tokenizer)
        assert found.vocab_size == tokenizer.vocab_size
        assert found.encode("low newest 大") == tokenizer.encode("low newest 大")
        assert leading_ids(path) == []


def test_files_of_ranks(tmp_path: Path) -> None:
    tokenizer = trained("BPE")
    tokenizer.save(tmp_path / "our.tiktoken")
    for path in (tmp_path, tmp_path / "our.tiktoken"):
        assert load_tokenizer(path).encode("low newest 大") == tokenizer.encode("low newest 大")
        assert leading_ids(path) == []
    tokenizer.save(tmp_path / "another.tiktoken")
    with pytest.raises(ValueError, match=r"2 files of ranks, expected 1: name one of another.tiktoken, our.tiktoken$"):
        load_tokenizer(tmp_path)
    trained("WordPiece").save(tmp_path / TOKENIZER)
    assert type(load_tokenizer(tmp_path)) is WordPiece  # tokenizer.json says more than ranks


def test_nothing_to_read(tmp_path: Path) -> None:
    for function in (load_tokenizer, leading_ids):
        with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder or file"):
            function(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"has neither tokenizer\.json nor a \.tiktoken file; transformers"):
            function(tmp_path)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 0}}},
            "type WordLevel, expected one of BPE, WordPiece, Unigram",
        ),
        ({"model": {"vocab": {"a": 0}}}, "is of type WordLevel, expected"),
        ({"model": {}}, "has no model with a vocab"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "lacks"),
    ],
)
def test_bad_files(tmp_path: Path, raw: Any, text: str) -> None:
    (tmp_path / TOKENIZER).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=text) as caught:
        load_tokenizer(tmp_path)
    assert TOKENIZER in str(caught.value)


TEMPLATE = {"type": "TemplateProcessing", "special_tokens": {"<a>": {"ids": [7]}, "<b>": {"ids": [8, 9]}}}
A, B, TEXT = {"SpecialToken": {"id": "<a>"}}, {"SpecialToken": {"id": "<b>"}}, {"Sequence": {"id": "A"}}


@pytest.mark.parametrize(
    ("processor", "ids"),
    [
        (None, []),
        ({"type": "ByteLevel", "trim_offsets": True}, []),
        ({**TEMPLATE, "single": [TEXT]}, []),
        ({**TEMPLATE, "single": [B, A, TEXT, A]}, [8, 9, 7]),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {**TEMPLATE, "single": [A, TEXT]}]}, [7]),
        ({"type": "Sequence", "processors": [{**TEMPLATE, "single": [p, TEXT]} for p in (A, B)]}, [8, 9, 7]),
        ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, [2]),
        ({"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<s>", 1]}, [1]),
    ],
)
def test_ids_before_a_text(tmp_path: Path, processor: Any, ids: list[int]) -> None:
    raw = {"model": {"type": "Unigram", "vocab": []}, "post_processor": processor}
    (tmp_path / TOKENIZER).write_text(json.dumps(raw))
    assert leading_ids(tmp_path) == ids


@pytest.mark.parametrize("processor", [{}, 3, {"type": "TemplateProcessing"}, {**TEMPLATE, "special_tokens": {}}])
def test_bad_post_processors(tmp_path: Path, processor: Any) -> None:
    processor = {"single": [A, TEXT], **processor} if isinstance(processor, dict) else processor
    raw = {"model": {"type": "Unigram", "vocab": []}, "post_processor": processor}
    (tmp_path / TOKENIZER).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"tokenizer\.json: its post_processor names tokens without ids"):
        leading_ids(tmp_path)


def test_tokenizers_do_not_import_torch(tmp_path: Path) -> None:
    trained("BPE").save(tmp_path / TOKENIZER)
    code = "import sys; from llm_study.tokenizers import auto, base, bpe, chat, unigram, wordpiece; "
    code += "auto.load_tokenizer(sys.argv[1]).encode('a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0
