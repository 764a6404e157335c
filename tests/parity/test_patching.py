"""Ids of bytes are those of ByT5 in transformers."""

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from llm_study.tokenizers.patching import ByteTokenizer


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.text())
def test_ids_are_those_of_byt5(text: str) -> None:
    ours, theirs = ByteTokenizer(), ByT5Tokenizer()
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.vocab_size == len(theirs)


def test_special_tokens_are_those_of_byt5() -> None:
    ours, theirs = ByteTokenizer(), ByT5Tokenizer()
    for token in ours.special_tokens:
        assert ours.encode(token, allowed_special=[token]) == [theirs.convert_tokens_to_ids(token)]
