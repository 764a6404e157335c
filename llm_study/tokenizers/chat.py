"""Conversations as one text: the formats that chat models are trained on, each described by its pieces.

A model sees no roles, only text. A format says what stands around the words of the system, of a user and of the
assistant. The pieces are split where the assistant begins and ends to speak: what it writes itself, its end token
included, is what training counts (:meth:`ChatTemplate.assistant_spans`) and what a model generates.

Control tokens mark the turns, so words that spell one are refused: a user could otherwise end the turn and speak as
another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llm_study.tokenizers.base import Tokenizer

__all__ = ["ChatTemplate", "TEMPLATES", "chat_template", "plain", "token_mask"]

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    r"""A format of conversations.

    A message is a mapping with ``role`` (``"system"``, ``"user"`` or ``"assistant"``) and ``content``, its words. The
    text is ``begin``, the system message, and the turns in order: a user's is ``user[0] + words + user[1]``, the
    assistant's ``prompt + answer[0] + words + answer[1] + after``, of which it writes ``answer[0] + words + answer[1]``
    itself.

    Args:
        user: what stands before and after the words of a user.
        prompt: what tells the assistant to speak; ``add_generation_prompt`` ends the text with it.
        answer: what the assistant writes before and after its words; the end token is the last of it.
        after: what follows an answer and is not written by the assistant.
        begin: what stands before everything.
        system: what stands before and after the system message. Default: the format has no place for one.
        system_in_user: whether the system message is no turn of its own but stands before the words of the first user.
        default_system: the system message of conversations that have none. Default: none.
        alternate: whether users and the assistant must take turns, a user first.
        strip: which white space is removed: that around the ``"words"`` of each turn; that around all of a ``"turn"``,
            a system message in it included; or ``"nothing"``.
        control: the control tokens of the format, which no message may spell.

    Raises:
        ValueError: if a system message is to stand before the words of the first user, or to be there by default, and
            there is no ``system``, or turns do not alternate, so that the assistant might be first.

    Example:
        >>> question = {"role": "user", "content": "1 + 1?"}
        >>> messages = [question, {"role": "assistant", "content": "2"}]
        >>> print(TEMPLATES["chatml"].render(messages, add_generation_prompt=True))
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        2<|im_end|>
        <|im_start|>assistant
        <BLANKLINE>
        >>> text = TEMPLATES["chatml"].render(messages)
        >>> [text[i:j] for i, j in TEMPLATES["chatml"].assistant_spans(messages)]
        ['2<|im_end|>']
    """

    user: tuple[str, str]
    prompt: str
    answer: tuple[str, str]
    after: str = ""
    begin: str = ""
    system: tuple[str, str] | None = None
    system_in_user: bool = False
    default_system: str | None = None
    alternate: bool = False
    strip: Literal["nothing", "words", "turn"] = "nothing"
    control: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.system is None and (self.system_in_user or self.default_system is not None):
            raise ValueError("system is None, expected the pieces around a system message")
        if self.system_in_user and not self.alternate:
            raise ValueError("alternate is False, expected True: with system_in_user a user must speak first")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Write a conversation as one text.

        Args:
            messages: the messages in order, a system message first if there is one.
            add_generation_prompt: whether the text ends where the assistant is to speak.

        Returns:
            The text.

        Raises:
            ValueError: if there are no messages, one has an unknown role or no words, a system message is the second
                one, not the first of all, or has no place in this format, the assistant's turn is empty, turns do not
                alternate where the format wants it, or words spell a control token.
        """
        self._check(messages)
        text = "".join(piece for piece, _ in self._pieces(messages))
        return text + self.prompt if add_generation_prompt else text

    def assistant_spans(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Say which characters of the text the assistant writes: its words and its end tokens.

        Args:
            messages: the messages, as for :meth:`render`.

        Returns:
            For each turn of the assistant, first character and the one after the last, as in ``text[first:last]``.

        Raises:
            ValueError: as :meth:`render` does.
        """
        self._check(messages)
        spans, start = [], 0
        for piece, own in self._pieces(messages):
            if own:
                spans.append((start, start + len(piece)))
            start += len(piece)
        return spans

    def _pieces(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Yield the text in pieces, each with whether the assistant writes it."""
        system, turns = self._split(messages)
        yield self.begin, False
        before = ""
        if system is not None and self.system:
            words = system if self.system_in_user else self._stripped(system)
            whole = self.system[0] + words + self.system[1]
            before, whole = (whole, "") if self.system_in_user else ("", whole)
            yield whole, False
        for message in turns:
            words = self._stripped(message["content"], before)
            before = ""
            if message["role"] == "user":
                yield self.user[0] + words + self.user[1], False
            else:
                yield self.prompt, False
                yield self.answer[0] + words + self.answer[1], True
                yield self.after, False

    def _split(self, messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
        if messages[0]["role"] == "system":
            return messages[0]["content"], messages[1:]
        return self.default_system, messages

    def _stripped(self, words: str, before: str = "") -> str:
        if self.strip == "turn":
            return (before + words).strip()
        return before + (words.strip() if self.strip == "words" else words)

    # --- checks

    def _check(self, messages: Sequence[Message]) -> None:
        if not messages:
            raise ValueError("there are 0 messages, expected at least 1")
        for i, message in enumerate(messages):
            self._check_message(i, message)
        system, turns = self._split(messages)
        first = len(messages) - len(turns)
        if system is not None and self.system_in_user and not turns:
            raise ValueError("message 0 is a system message, which stands in a user's turn, but there is none")
        for i, message in enumerate(turns):
            expected = ROLES[1 + i % 2]
            if self.alternate and message["role"] != expected:
                found = f"message {first + i} is of role {message['role']}, expected {expected}"
                raise ValueError(f"{found}: in this format a user speaks first, and then both in turn")

    def _check_message(self, i: int, message: Message) -> None:
        role, words = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {i} is of role {role!r}, expected one of {', '.join(ROLES)}")
        if not isinstance(words, str):
            raise ValueError(f"message {i} has content of type {type(words).__name__}, expected a string")
        if role == "system" and i:
            raise ValueError(f"message {i} is a system message, expected at most 1, as message 0")
        if role == "system" and self.system is None:
            raise ValueError(f"message {i} is a system message, which this format has no place for: let a user say it")
        if role == "assistant" and not words.strip():
            raise ValueError(f"message {i}, of the assistant, has no words: leave it out, or add a generation prompt")
        for token in self.control:
            if token in words:
                raise ValueError(f"message {i} spells the control token {token}, which would pass for the format's own")

    # --- as transformers has it

    def jinja(self) -> str:
        r"""Return the format as a template of transformers, for ``chat_template`` in ``tokenizer_config.json``.

        It renders what :meth:`render` does, refuses what this refuses, and marks what the assistant writes, so that
        transformers can return the mask of it.

        Returns:
            The template, in the language of Jinja.
        """
        alternate = _FAIL_IF.format("(turn['role'] == 'user') != (loop.index0 % 2 == 0)", "roles must alternate")
        strip = " | trim" if self.strip == "words" else ""
        whole = "(before + turn['content'])"
        words = f"{whole} | trim" if self.strip == "turn" else f"before + (turn['content']{strip})"
        return "".join(
            [
                *self._jinja_checks(),
                "{% set has_system = messages[0]['role'] == 'system' %}",
                "{% set turns = messages[1:] if has_system else messages %}",
                f"{{% set system = messages[0]['content'] if has_system else {_literal(self.default_system)} %}}",
                f"{{{{ {_literal(self.begin)} }}}}",
                self._jinja_system("" if self.system_in_user else strip),
                "{% for turn in turns %}",
                alternate if self.alternate else "",
                f"{{% set before = first if loop.first else '' %}}{{% set words = {words} %}}",
                "{% if turn['role'] == 'user' %}",
                f"{{{{ {_literal(self.user[0])} + words + {_literal(self.user[1])} }}}}",
                f"{{% else %}}{{{{ {_literal(self.prompt)} }}}}{{% generation %}}",
                f"{{{{ {_literal(self.answer[0])} + words + {_literal(self.answer[1])} }}}}",
                f"{{% endgeneration %}}{{{{ {_literal(self.after)} }}}}{{% endif %}}{{% endfor %}}",
                f"{{% if add_generation_prompt %}}{{{{ {_literal(self.prompt)} }}}}{{% endif %}}",
            ]
        )

    def _jinja_checks(self) -> Iterator[str]:
        yield "{% for message in messages %}"
        yield _FAIL_IF.format("message['role'] not in ['system', 'user', 'assistant']", "unknown role")
        yield _FAIL_IF.format("message['content'] is not string", "content must be a string")
        here = "true" if self.system is None else "not loop.first"
        yield _FAIL_IF.format(f"message['role'] == 'system' and {here}", "no place for this system message")
        empty = "message['role'] == 'assistant' and not message['content'] | trim"
        yield _FAIL_IF.format(empty, "an answer has no words")
        for token in self.control:
            yield _FAIL_IF.format(f"{_literal(token)} in message['content']", "words spell a control token")
        yield "{% endfor %}"

    def _jinja_system(self, strip: str) -> str:
        """Return the system message as a turn, or as ``first``, what stands before the first user's words."""
        if self.system is None:
            return "{% set first = '' %}"
        whole = f"{_literal(self.system[0])} + (system{strip}) + {_literal(self.system[1])}"
        if not self.system_in_user:
            return f"{{% set first = '' %}}{{% if system is not none %}}{{{{ {whole} }}}}{{% endif %}}"
        alone = _FAIL_IF.format("system is not none and not turns", "a system message without a user")
        return f"{alone}{{% set first = {whole} if system is not none else '' %}}"


_FAIL_IF = "{{% if {0} %}}{{{{ raise_exception('{1}') }}}}{{% endif %}}"


def _literal(text: str | None) -> str:
    return "none" if text is None else ascii(text)


# --- the formats

_CHATML = ChatTemplate(
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    prompt="<|im_start|>assistant\n",
    answer=("", "<|im_end|>"),
    after="\n",
    control=("<|im_start|>", "<|im_end|>"),
)


def plain(end: str = "<|endoftext|>") -> ChatTemplate:
    r"""Return a format without control tokens of its own: roles are words, and an answer ends as a text does.

    It suits models that know one special token only. The price: words such as ``Assistant:`` are plain text, so a user
    who writes them speaks as the assistant.

    Args:
        end: the token that ends a text.

    Returns:
        The format.

    Example:
        >>> plain("</s>").render([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}])
        'User: 1 + 1?\nAssistant: 2</s>\n'
    """
    return ChatTemplate(
        system=("System: ", "\n"),
        user=("User: ", "\n"),
        prompt="Assistant:",
        answer=(" ", end),
        after="\n",
        control=(end,),
    )


TEMPLATES: Mapping[str, ChatTemplate] = {
    "chatml": _CHATML,
    "qwen2": replace(_CHATML, default_system="You are a helpful assistant."),
    "llama2": ChatTemplate(
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        system_in_user=True,
        user=("<s>[INST] ", " [/INST]"),
        prompt="",
        answer=(" ", " </s>"),
        alternate=True,
        strip="turn",
        control=("<s>", "</s>"),
    ),
    "llama3": ChatTemplate(
        begin="<|begin_of_text|>",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer=("", "<|eot_id|>"),
        strip="words",
        control=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": ChatTemplate(
        begin="<bos>",
        system=("", "\n\n"),
        system_in_user=True,
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        prompt="<start_of_turn>model\n",
        answer=("", "<end_of_turn>"),
        after="\n",
        alternate=True,
        strip="words",
        control=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    ),
    "mistral": ChatTemplate(
        begin="<s>",
        user=("[INST] ", " [/INST]"),
        prompt="",
        answer=("", "</s>"),
        alternate=True,
        control=("<s>", "</s>"),
    ),
    "plain": plain(),
}
"""The formats by name. ``qwen2`` is ChatML with a system message by default, ``gemma`` that of Gemma 3, ``mistral``
that of Mixtral 8x7B Instruct v0.1, which has no place for a system message; ``plain`` is :func:`plain`, for any model
that knows an end of texts."""


def chat_template(name: str, *, end: str | None = None) -> ChatTemplate:
    """Find a format by its name.

    Args:
        name: its name in :data:`TEMPLATES`.
        end: the token that ends a text of the model, for ``plain``. Default: ``<|endoftext|>``.

    Returns:
        The format.

    Raises:
        ValueError: if there is no format of this name.

    Example:
        >>> chat_template("plain", end="</s>").control, chat_template("chatml", end="</s>").control
        (('</s>',), ('<|im_start|>', '<|im_end|>'))
    """
    if name not in TEMPLATES:
        raise ValueError(f"the chat format is {name!r}, expected one of {', '.join(TEMPLATES)}")
    return plain(end) if name == "plain" and end is not None else TEMPLATES[name]


# --- masks


def token_mask(tokenizer: Tokenizer, ids: Sequence[int], text: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Say which tokens of a text reach into one of some spans; for the loss of the assistant's tokens alone.

    Args:
        tokenizer: a tokenizer that loses nothing, such as byte-level BPE.
        ids: the tokens of the text.
        text: the text.
        spans: first character and the one after the last of each, such as those of
            :meth:`ChatTemplate.assistant_spans`.

    Returns:
        For each token, whether a byte of it belongs to a span.

    Raises:
        ValueError: if the tokens, decoded, are not the text.

    Example:
        >>> class Letters:
        ...     vocab_size = 128
        ...     def encode(self, text, *, allowed_special=()):
        ...         return list(text.encode())
        ...     def decode(self, ids):
        ...         return bytes(ids).decode()
        ...     def decode_bytes(self, ids):
        ...         return bytes(ids)
        >>> token_mask(Letters(), list(b"abcd"), "abcd", [(1, 3)])
        [False, True, True, False]
    """
    data = text.encode()
    if tokenizer.decode_bytes(ids) != data:
        raise ValueError(f"the {len(ids)} tokens do not decode to the text of {len(text)} characters")
    inside = bytearray(len(data))
    for first, last in spans:
        start, stop = (len(text[:i].encode()) for i in (first, last))
        inside[start:stop] = b"\1" * (stop - start)
    mask, place = [], 0
    for id in ids:
        size = len(tokenizer.decode_bytes([id]))
        mask.append(any(inside[place : place + size]))
        place += size
    return mask
