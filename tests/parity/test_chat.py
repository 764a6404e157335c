"""Chat formats against transformers: the same text, the same refusals, and the same mask of the assistant's tokens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_study.tokenizers.chat import TEMPLATES, ChatTemplate, token_mask

WORDS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        [" a ", "\n", "", "{{ 1 }}", "{% if %}", "'\"\\n", "<s>", "<|im_end|>", "[INST]", "<</SYS>>", "文🙂 "]
    ),
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
ANY = st.lists(st.fixed_dictionaries({"role": ROLES, "content": WORDS}), min_size=1, max_size=5)


@st.composite
def orderly(draw: st.DrawFn) -> list[dict[str, str]]:
    """Draw a conversation that most formats take: a system message or none, then a user and the assistant in turn."""
    turns = draw(st.lists(WORDS, min_size=1, max_size=5))
    messages = [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(turns)]
    return [{"role": "system", "content": draw(WORDS)}] * draw(st.booleans()) + messages


def theirs(template: ChatTemplate) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers with our template: bytes as tokens, and the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in template.control])
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template.jinja())


ORACLES = {name: theirs(template) for name, template in TEMPLATES.items()}


class Ours:
    """The same tokenizer, as ours see it."""

    def __init__(self, oracle: PreTrainedTokenizerFast) -> None:
        self.oracle, self.vocab_size = oracle, len(oracle)

    def encode(self, text: str, *, allowed_special: Any = ()) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Any) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Any) -> bytes:
        letters = {letter: byte for byte, letter in byte_letters().items()}
        tokens = self.oracle.convert_ids_to_tokens(list(ids))
        return b"".join(t.encode() if len(t) > 1 else bytes([letters[t]]) for t in tokens)


def byte_letters() -> dict[int, str]:
    """Return byte → letter of the byte-level alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=st.one_of(orderly(), ANY), prompt=st.booleans())
@settings(deadline=None, max_examples=80)
def test_the_same_text_or_the_same_refusal(name: str, messages: list[dict[str, str]], prompt: bool) -> None:
    options: Any = {"tokenize": False, "add_generation_prompt": prompt}
    try:
        text = TEMPLATES[name].render(messages, add_generation_prompt=prompt)
    except ValueError:
        with pytest.raises(TemplateError):
            ORACLES[name].apply_chat_template(messages, **options)
    else:
        assert ORACLES[name].apply_chat_template(messages, **options) == text


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=orderly())
@settings(deadline=None, max_examples=40)
def test_the_same_mask(name: str, messages: list[dict[str, str]]) -> None:
    template, oracle = TEMPLATES[name], ORACLES[name]
    try:
        text, spans = template.render(messages), template.assistant_spans(messages)
    except ValueError:
        return
    found = oracle.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    mask = token_mask(Ours(oracle), found["input_ids"], text, spans)
    assert mask == [bool(flag) for flag in found["assistant_masks"]]
