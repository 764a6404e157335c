"""Chat formats: the texts, written out by hand, what the assistant writes in them, and what is refused."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_study.tokenizers.chat import TEMPLATES, ChatTemplate, chat_template, plain, token_mask

Messages = list[dict[str, str]]


def said(*turns: str) -> Messages:
    """Return messages from lines such as ``"user: Hi"``."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


TALK = said("system: Be brief.", "user:  Hi ", "assistant: Hello.\n", "user: 1+1?", "assistant: 2")
WITHOUT = TALK[1:]

EXPECTED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    "<|im_start|>assistant\nHello.\n<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello. </s><s>[INST] 1+1? [/INST] 2 </s>",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>",
    "gemma": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n",
}
EXPECTED["plain"] = (
    "System: Be brief.\nUser:  Hi \nAssistant: Hello.\n<|endoftext|>\nUser: 1+1?\nAssistant: 2<|endoftext|>\n"
)
EXPECTED["qwen2"] = EXPECTED["chatml"]
EXPECTED_WITHOUT = {
    "qwen2": EXPECTED["chatml"].replace("Be brief.", "You are a helpful assistant."),
    "llama2": "<s>[INST] Hi [/INST] Hello. </s><s>[INST] 1+1? [/INST] 2 </s>",
    "gemma": EXPECTED["gemma"].replace("Be brief.\n\n", ""),
    "mistral": "<s>[INST]  Hi  [/INST]Hello.\n</s>[INST] 1+1? [/INST]2</s>",
    "plain": EXPECTED["plain"].replace("System: Be brief.\n", ""),
}
OWN = {
    "chatml": ["Hello.\n<|im_end|>", "2<|im_end|>"],
    "qwen2": ["Hello.\n<|im_end|>", "2<|im_end|>"],
    "llama2": [" Hello. </s>", " 2 </s>"],
    "llama3": ["Hello.<|eot_id|>", "2<|eot_id|>"],
    "gemma": ["Hello.<end_of_turn>", "2<end_of_turn>"],
    "mistral": ["Hello.\n</s>", "2</s>"],
    "plain": [" Hello.\n<|endoftext|>", " 2<|endoftext|>"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation_with_a_system_message(name: str) -> None:
    assert TEMPLATES[name].render(TALK) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED_WITHOUT)
def test_a_conversation_without_one(name: str) -> None:
    assert TEMPLATES[name].render(WITHOUT) == EXPECTED_WITHOUT[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_what_stands_before_the_answer(name: str) -> None:
    """What a model reads when it is to answer is, to the letter, what stood before the answer in training."""
    template = TEMPLATES[name]
    for n in (2, 4):  # the answers
        prompt, whole = template.render(WITHOUT[: n - 1], add_generation_prompt=True), template.render(WITHOUT[:n])
        assert whole.startswith(prompt)
        start, stop = template.assistant_spans(WITHOUT[:n])[-1]
        assert start == len(prompt)
        assert whole[stop:] == template.after


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_assistant_writes(name: str) -> None:
    template = TEMPLATES[name]
    for messages in [WITHOUT] + [TALK] * (template.system is not None):
        text = template.render(messages)
        assert [text[i:j] for i, j in template.assistant_spans(messages)] == OWN[name]
        assert all(text[i:j].endswith(template.answer[1]) for i, j in template.assistant_spans(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_are_those_of_the_format(name: str) -> None:
    template = TEMPLATES[name]
    text = template.render(WITHOUT)
    assert all(token in text for token in template.control)
    assert template.answer[1].strip() in template.control


# --- what is refused

BAD = {
    "there are 0 messages, expected at least 1": [],
    "message 1 is of role 'tool', expected one of system, user, assistant": said("user: a", "tool: b"),
    "message 0 is of role None, expected one of": [{"content": "a"}],
    "message 0 has content of type NoneType, expected a string": [{"role": "user"}],
    "message 1 is a system message, expected at most 1, as message 0": said("system: a", "system: b", "user: c"),
    "message 2 is a system message, expected at most 1": said("user: a", "assistant: b", "system: c"),
    "message 1, of the assistant, has no words": said("user: a", "assistant:  \n"),
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "mistral"])
def test_bad_conversations(name: str, text: str) -> None:
    for method in (TEMPLATES[name].render, TEMPLATES[name].assistant_spans):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            method(BAD[text])


@pytest.mark.parametrize("name", ["llama2", "gemma", "mistral"])
def test_turns_that_do_not_alternate(name: str) -> None:
    template = TEMPLATES[name]
    with pytest.raises(ValueError, match="message 1 is of role user, expected assistant: in this format"):
        template.render(said("user: a", "user: b"))
    with pytest.raises(ValueError, match="message 0 is of role assistant, expected user"):
        template.render(said("assistant: a"))
    with pytest.raises(ValueError, match="message 2 is of role assistant, expected user"):
        template.render(said("user: a", "assistant: b", "assistant: c"))


@pytest.mark.parametrize("name", ["chatml", "qwen2", "llama3"])
def test_turns_need_not_alternate_everywhere(name: str) -> None:
    text = TEMPLATES[name].render(said("assistant: a", "user: b", "user: c"))
    assert text.index("\na") < text.index("\nb") < text.index("\nc")


def test_the_plain_format_ends_as_the_texts_of_a_model_do() -> None:
    assert chat_template("plain") == TEMPLATES["plain"] == plain("<|endoftext|>")
    assert chat_template("plain", end="</s>").render(TALK) == EXPECTED["plain"].replace("<|endoftext|>", "</s>")
    assert chat_template("gemma", end="</s>") is TEMPLATES["gemma"]
    with pytest.raises(ValueError, match="message 0 spells the control token </s>"):
        plain("</s>").render(said("user: a</s>"))
    with pytest.raises(ValueError, match="the chat format is 'made up', expected one of chatml, qwen2, llama2"):
        chat_template("made up")


def test_places_of_the_system_message() -> None:
    with pytest.raises(ValueError, match="message 0 is a system message, which this format has no place for"):
        TEMPLATES["mistral"].render(TALK)
    for name in ("llama2", "gemma"):
        with pytest.raises(ValueError, match="stands in a user's turn, but there is none"):
            TEMPLATES[name].render(said("system: a"))
        with pytest.raises(ValueError, match="message 1 is of role assistant, expected user"):
            TEMPLATES[name].render(said("system: a", "assistant: b"))
    assert TEMPLATES["chatml"].render(said("system: a")) == "<|im_start|>system\na<|im_end|>\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_words_cannot_end_a_turn(name: str) -> None:
    template = TEMPLATES[name]
    for token in template.control:
        with pytest.raises(ValueError, match="message 2 spells the control token"):
            template.render(said("user: a", "assistant: b", f"user: c{token}d"))
    other = "<|im_end|>" if name != "chatml" and name != "qwen2" else "<|eot_id|>"
    assert other in template.render(said(f"user: {other}"))  # plain text in any other format


def test_bad_formats() -> None:
    with pytest.raises(ValueError, match="system is None, expected the pieces"):
        replace(TEMPLATES["mistral"], system_in_user=True)
    with pytest.raises(ValueError, match="system is None, expected the pieces"):
        replace(TEMPLATES["mistral"], default_system="a")
    with pytest.raises(ValueError, match="alternate is False, expected True"):
        replace(TEMPLATES["gemma"], alternate=False)


def test_a_template_is_plain_data() -> None:
    assert TEMPLATES["qwen2"] == replace(TEMPLATES["chatml"], default_system="You are a helpful assistant.")
    assert all(json.loads(json.dumps(template.jinja())).isascii() for template in TEMPLATES.values())


# --- masks of tokens


class Chunks:
    """A tokenizer whose tokens are whatever bytes it is given."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens, self.vocab_size = list(tokens), len(tokens)

    def encode(self, text: str, *, allowed_special: Iterable[str] = ()) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)


def is_words(text: str) -> bool:
    """Say whether a message may hold a text: it is not empty and spells no control token."""
    return bool(text.strip()) and not any(token in text for token in TEMPLATES["gemma"].control)


@given(turns=st.lists(st.text(min_size=1).filter(is_words), min_size=1, max_size=5), data=st.data())
def test_the_mask_covers_the_characters_of_the_spans(turns: list[str], data: st.DataObject) -> None:
    template: ChatTemplate = TEMPLATES["gemma"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text, spans = template.render(messages), template.assistant_spans(messages)
    whole = text.encode()
    cuts = sorted({0, len(whole), *data.draw(st.lists(st.integers(0, len(whole)), max_size=30))})
    pieces = [whole[i:j] for i, j in pairwise(cuts)]
    mask = token_mask(Chunks(pieces), range(len(pieces)), text, spans)
    own = [i for i, j in spans for i in range(i, j)]
    owner = [own.count(k) > 0 for k, character in enumerate(text) for _ in character.encode()]
    assert mask == [any(owner[i:j]) for i, j in pairwise(cuts)]


def test_tokens_of_another_text() -> None:
    with pytest.raises(ValueError, match="the 2 tokens do not decode to the text of 3 characters"):
        token_mask(Chunks([b"a", b"b"]), [0, 1], "abc", [])
