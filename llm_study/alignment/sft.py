"""Supervised fine-tuning: conversations in a file, the loss of what the assistant says, and rows that hold several.

A model sees the whole conversation and is asked for the words of the assistant only: everything else is condition. Each
step of the way is a function of its own. :func:`read_chats` reads a file, :func:`tokenize_chat` turns a conversation
into ids and targets, :func:`pack_examples` (or :func:`pad_examples`) lays them out in rows, :func:`draw_rows` picks the
rows of a step, and :func:`sft_loss` is what :class:`llm_study.training.loop.Trainer` minimizes.

Conversations that share a row do not see each other, and each counts its positions from 0, so loss and gradient are
those of the conversations alone. :func:`sft_loss` weighs every token of the assistant the same;
:func:`conversation_loss` every conversation.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal, check_ndim
from llm_study.data.batches import seed_of
from llm_study.data.objectives import IGNORE
from llm_study.data.packing import best_fit_decreasing, block_diagonal_mask, pack
from llm_study.functional.losses import token_logp
from llm_study.tokenizers.base import Tokenizer, check_text
from llm_study.tokenizers.chat import ChatTemplate, Message, token_mask

__all__ = [
    "Example",
    "read_chats",
    "numbered_chats",
    "tokenize_chat",
    "pack_examples",
    "pad_examples",
    "draw_rows",
    "sft_loss",
    "conversation_weights",
    "conversation_loss",
    "embedding_noise",
    "neftune",
]

ANY_FORMAT = ChatTemplate(system=("", ""), user=("", ""), prompt="", answer=("", ""))
"""A format that takes whatever any format takes."""


# --- conversations in a file


def read_chats(path: str | os.PathLike[str], *, template: ChatTemplate | None = None) -> list[list[Message]]:
    """Read conversations from a JSONL file, one a line.

    A line is an object with ``messages``, a list of objects with ``role`` and ``content``. Other keys are passed over,
    and so are empty lines.

    Args:
        path: the file.
        template: the format that the conversations are to be written in, whose rules they must follow. Default: the
            rules that all formats have.

    Returns:
        The messages of each conversation.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no JSON, or no conversation: it has no messages, an unknown role, a second system
            message, an empty answer, no answer at all, or what the template does not take. The message begins with file
            and line. Or if there is no conversation in the file.

    Example:
        >>> read_chats("no/such/file.jsonl")
        Traceback (most recent call last):
        FileNotFoundError: no/such/file.jsonl: there is no such file
    """
    return [messages for _, messages in numbered_chats(path, template=template)]


def numbered_chats(
    path: str | os.PathLike[str], *, template: ChatTemplate | None = None
) -> list[tuple[int, list[Message]]]:
    r"""Read conversations as :func:`read_chats` does, each with the number of its line, for messages about it.

    Args:
        path: the file.
        template: the format that the conversations are to be written in. Default: the rules that all formats have.

    Returns:
        For each conversation its line, counted from 1, and its messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`read_chats` says.

    Example:
        >>> import tempfile
        >>> turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "chat.jsonl"
        ...     _ = file.write_text("\n" + json.dumps({"messages": turns}))
        ...     [line for line, _ in numbered_chats(file)]
        [2]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    rules, chats = ANY_FORMAT if template is None else template, []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                chats.append((number, _read_line(line, rules)))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    check_at_least(f"{path}: number of conversations", len(chats), 1, hint="write one a line, as JSON")
    return chats


def _read_line(line: bytes, rules: ChatTemplate) -> list[Message]:
    """Return the messages of a line of JSON; an error says what is wrong with it, not where it stands."""
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{error.object[error.start]:02X} at {error.start} is no UTF-8: convert it") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list):
        what = f"an object without a list of messages: {sorted(found)}" if isinstance(found, dict) else _kind(found)
        raise ValueError(f'is {what}, expected {{"messages": [{{"role": …, "content": …}}, …]}}')
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {i} is {_kind(message)}, expected an object with role and content")
    check_text(rules.render(messages))
    if not rules.assistant_spans(messages):
        raise ValueError(f"none of the {len(messages)} messages is of the assistant: nothing is to be learned from it")
    return messages


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"


# --- ids and targets


@dataclass(frozen=True, eq=False)
class Example:
    """A conversation as a model is trained on it.

    Args:
        ids: ``(T,)`` token ids.
        targets: ``(T,)`` the token that follows each, where the assistant writes it; -100 elsewhere.

    Raises:
        ValueError: if the tensors have different shapes, or are no vectors.

    Example:
        >>> example = Example(torch.tensor([5, 6, 7]), torch.tensor([-100, 7, -100]))
        >>> len(example), example.n_targets
        (3, 1)
    """

    ids: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        check_ndim("ids", self.ids.shape, ("T",))
        check_equal("shape of targets", tuple(self.targets.shape), "shape of ids", tuple(self.ids.shape))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """Number of tokens that are predicted."""
        return int((self.targets != IGNORE).sum())


def tokenize_chat(
    messages: Sequence[Message], *, tokenizer: Tokenizer, template: ChatTemplate, max_length: int | None = None
) -> Example:
    r"""Turn a conversation into ids and targets; what counts is what the assistant writes, its end tokens included.

    .. math:: y_t = \begin{cases} x_{t+1} & \text{if a byte of } x_{t+1} \text{ is the assistant's,} \\
        -100 & \text{otherwise.} \end{cases}

    A conversation that is too long loses its end, never its beginning: what is left has the condition that it had, so
    each of its terms stays as it was, while an answer without its question teaches something else.

    Args:
        messages: the messages.
        tokenizer: a tokenizer that loses nothing, which knows the control tokens of the template as special tokens.
        template: the format.
        max_length: number of tokens at most. Default: any.

    Returns:
        The example.

    Raises:
        ValueError: if the format does not take the messages, the tokenizer lacks a control token or loses something,
            or nothing of the assistant is to be predicted: it has no turn, or none is left after the cut.

    Example:
        >>> from llm_study.tokenizers.bpe import ByteLevelBPE
        >>> template = ChatTemplate(user=("", "?"), prompt="", answer=("", "<end>"), control=("<end>",))
        >>> tokenizer = ByteLevelBPE.train(["1"], vocab_size=257, special_tokens=["<end>"])
        >>> messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
        >>> example = tokenize_chat(messages, tokenizer=tokenizer, template=template)
        >>> [tokenizer.decode([i]) for i in example.ids.tolist()]
        ['1', '+', '1', '?', '2', '<end>']
        >>> [None if i < 0 else tokenizer.decode([i]) for i in example.targets.tolist()]
        [None, None, None, '2', '<end>', None]
    """
    text, spans = template.render(messages), template.assistant_spans(messages)
    ids = tokenizer.encode(text, allowed_special=template.control)
    own = token_mask(tokenizer, ids, text, spans)
    following = [id if inside else IGNORE for id, inside in zip(ids[1:], own[1:], strict=True)]
    following.append(IGNORE)
    length = len(ids) if max_length is None else max_length
    check_at_least("max_length", length, 1)
    example = Example(torch.tensor(ids[:length]), torch.tensor(following[:length]))
    if not example.n_targets:
        cut = f"the first {length} of {len(ids)} tokens" if length < len(ids) else f"the {len(ids)} tokens"
        hint = "raise max_length, or leave it out" if any(own) else "leave it out"
        raise ValueError(f"{cut} of a conversation have 0 that the assistant writes, expected at least 1: {hint}")
    return example


# --- rows


def pack_examples(
    examples: Sequence[Example],
    length: int,
    *,
    fit: Callable[[Sequence[int], int], list[list[int]]] = best_fit_decreasing,
    pad_id: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay conversations out in rows of one length, several in a row; none is cut.

    Args:
        examples: the conversations.
        length: number of tokens ``T`` of a row.
        fit: ``(lengths, capacity) → rows``, says which conversations share a row.
        pad_id: id that fills the rows up.

    Returns:
        ``(B, T)`` ids, targets, positions within the conversation, and number of the conversation, -1 for padding.

    Raises:
        ValueError: if there is no conversation, or one is too long.

    References:
        Krell et al. (2021), arXiv:2107.02027.

    Example:
        >>> a = Example(torch.tensor([5, 6, 7]), torch.tensor([-100, 7, -100]))
        >>> ids, targets, positions, segments = pack_examples([a, a], 8)
        >>> ids, segments
        (tensor([[5, 6, 7, 5, 6, 7, 0, 0]]), tensor([[ 0,  0,  0,  1,  1,  1, -1, -1]]))
    """
    packed = pack([x.ids for x in examples], length, targets=[x.targets for x in examples], fit=fit, pad_id=pad_id)
    return packed.ids, packed.targets, packed.positions, packed.segments


def pad_examples(examples: Sequence[Example], *, pad_id: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay conversations out one a row, as long as the longest of them.

    Args:
        examples: the conversations, each of which gets a row, in this order.
        pad_id: id that fills the rows up.

    Returns:
        ``(B, T)`` ids, targets, positions, and number of the conversation, -1 for padding; as :func:`pack_examples`.

    Raises:
        ValueError: if there is no conversation.

    Example:
        >>> a = Example(torch.tensor([5, 6, 7]), torch.tensor([-100, 7, -100]))
        >>> b = Example(torch.tensor([5, 8]), torch.tensor([8, -100]))
        >>> pad_examples([a, b])[0]
        tensor([[5, 6, 7],
                [5, 8, 0]])
    """
    longest = max((len(x) for x in examples), default=0)
    return pack_examples(examples, longest, fit=lambda lengths, _: [[i] for i in range(len(lengths))], pad_id=pad_id)


def draw_rows(rows: tuple[Tensor, ...], *, batch_size: int, seed: int, step: int) -> tuple[Tensor, ...]:
    """Pick the rows of one step: all rows once in each pass, in an order of its own.

    Args:
        rows: ``(N, …)`` tensors whose first dimension counts the rows, such as those of :func:`pack_examples`.
        batch_size: number ``B`` of rows.
        seed: seed of the run.
        step: number of the step, from 0.

    Returns:
        ``(B, …)`` rows of each tensor, the same whenever the step is asked for.

    Raises:
        ValueError: if there are no rows, ``batch_size`` is below 1, or ``step`` is negative.

    Example:
        >>> rows = (torch.arange(4),)
        >>> both = [draw_rows(rows, batch_size=2, seed=0, step=step)[0] for step in (0, 1)]
        >>> torch.cat(both).sort().values
        tensor([0, 1, 2, 3])
    """
    N = len(rows[0])
    check_at_least("number of rows", N, 1)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("step", step, 0)
    first = step * batch_size
    epochs = range(first // N, (first + batch_size - 1) // N + 1)
    order = torch.cat([torch.randperm(N, generator=torch.Generator().manual_seed(seed_of(seed, e))) for e in epochs])
    chosen = order[first - epochs[0] * N :][:batch_size]
    return tuple(x[chosen.to(x.device)] for x in rows)


# --- losses


def sft_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    r"""Loss of the assistant's tokens, each of which weighs the same; what the ``Trainer`` minimizes.

    .. math:: \sum_{b,t \,:\, y_{bt} \ne -100} -\ln p(y_{bt} \mid x_{b,\le t}\text{ of the same conversation})

    Args:
        model: called with ids ``(B, T)``, ``mask`` ``(B, T, T)`` and ``positions`` ``(B, T)``, gives logits
            ``(B, T, V)``.
        batch: ``(B, T)`` ids, targets, positions and numbers of the conversations, as :func:`pack_examples` gives them.

    Returns:
        ``()`` the sum over all targets that count, in float32 at least; and ``()`` how many they are.

    Cost: that of the model, and ``B * T**2`` bytes for the mask.

    References:
        Ouyang et al. (2022), arXiv:2203.02155; for rows that are shared Krell et al. (2021), arXiv:2107.02027.

    Example:
        >>> class Lookup(nn.Embedding):
        ...     def forward(self, ids, *, mask, positions):
        ...         return super().forward(ids)
        >>> rows = pack_examples([Example(torch.tensor([0, 1, 2]), torch.tensor([-100, 2, -100]))], 4)
        >>> loss, count = sft_loss(Lookup.from_pretrained(torch.zeros(3, 3)), rows)
        >>> loss.item(), count.item()  # ln 3
        (1.098612..., 1)
    """
    nll, counted = _losses(model, batch)
    return nll.sum(), counted.sum()


def conversation_weights(targets: Tensor, segments: Tensor) -> Tensor:
    r"""Weights of tokens such that every conversation weighs the same: one over the number of its targets.

    Args:
        targets: ``(B, T)`` what is to be predicted; -100 where nothing is.
        segments: ``(B, T)`` number of the conversation at each position, negative for padding. A conversation stands
            in one row.

    Returns:
        ``(B, T)`` weights in float64, 0 where nothing is predicted. Those of a conversation add up to 1.

    Raises:
        ValueError: if the shapes differ, or are not those of rows.

    Example:
        >>> conversation_weights(torch.tensor([[7, 8, -100, 9, -100]]), torch.tensor([[0, 0, 0, 1, -1]]))
        tensor([[0.5000, 0.5000, 0.0000, 1.0000, 0.0000]], dtype=torch.float64)
    """
    check_equal("shape of targets", tuple(targets.shape), "shape of segments", tuple(segments.shape))
    check_ndim("segments", segments.shape, ("B", "T"))
    counted = targets != IGNORE
    row = torch.arange(len(segments), device=segments.device)[:, None]
    number = segments.clamp(min=0) + row * (int(segments.max()) + 1)  # the same row may be there twice
    sizes = number[counted].bincount(minlength=int(number.max()) + 1)
    return (1 / sizes[number].double()).where(counted, 0)


def conversation_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    r"""Loss of conversations, each of which weighs the same, however long its answers are.

    .. math:: \sum_i \frac{1}{n_i} \sum_{t \,:\, y_{it} \ne -100} -\ln p(y_{it} \mid x_{i,\le t})

    Args:
        model: as for :func:`sft_loss`.
        batch: ``(B, T)`` ids, targets, positions and numbers of the conversations, as :func:`pack_examples` gives them.

    Returns:
        ``()`` the sum of the conversations' means, in float32 at least; and ``()`` how many conversations they are.

    Cost: as :func:`sft_loss`.

    Example:
        >>> class Lookup(nn.Embedding):
        ...     def forward(self, ids, *, mask, positions):
        ...         return super().forward(ids)
        >>> long = Example(torch.tensor([0, 1, 2]), torch.tensor([1, 2, -100]))
        >>> loss, count = conversation_loss(Lookup.from_pretrained(torch.zeros(3, 3)), pack_examples([long, long], 6))
        >>> loss.item(), count.item()  # 2 ln 3
        (2.197224..., 2)
    """
    _, targets, _, segments = batch
    nll, _ = _losses(model, batch)
    weights = conversation_weights(targets, segments)
    return (weights.to(nll.dtype) * nll).sum(), weights.sum().round().long()


def _losses(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, 0 where none is predicted, and where one is; ``(B, T)`` both."""
    ids, targets, positions, segments = batch
    logits = model(ids, mask=block_diagonal_mask(segments), positions=positions)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    counted = targets != IGNORE
    return -token_logp(logits, targets.where(counted, 0)).where(counted, 0), counted


# --- noise


def embedding_noise(
    x: Tensor, alpha: float, *, lengths: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw the noise of NEFTune: uniform, and smaller the more numbers a text has, so that its length stays the same.

    .. math:: \varepsilon = \frac{\alpha}{\sqrt{TD}}\,u, \qquad u \sim \mathrm{Uniform}(-1, 1)^{T \times D}, \qquad
        \mathbb{E}\,\lVert\varepsilon\rVert^2 = \frac{\alpha^2}{3}

    Args:
        x: ``(B, T, D)`` the embeddings that the noise is for; only shape, dtype and device matter.
        alpha: size of the noise.
        lengths: ``(B, T)`` number of tokens of the text that stands at each position, or whatever broadcasts to it.
            Default: ``T``, padding counted, as transformers does.
        generator: where random numbers come from. Default: torch's own.

    Returns:
        ``(B, T, D)`` the noise, in the dtype of ``x``.

    Raises:
        ValueError: if ``x`` has not three dimensions, or ``alpha`` is negative.

    References:
        Jain et al. (2023), arXiv:2310.05914, algorithm 1.

    Example:
        >>> noise = embedding_noise(torch.zeros(1000, 4, 8), 6.0, generator=torch.Generator().manual_seed(0))
        >>> noise.abs().max() <= 6 / 32**0.5, round(noise.square().sum(dim=(1, 2)).mean().item())  # 36 / 3
        (tensor(True), 12)
    """
    check_ndim("x", x.shape, ("B", "T", "D"))
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, expected at least 0")
    _, T, D = x.shape
    noise = torch.empty_like(x).uniform_(-1, 1, generator=generator)
    size = alpha / (D * torch.as_tensor(T if lengths is None else lengths, device=x.device)).double().sqrt()
    return noise * size[..., None].to(x.dtype)


@contextmanager
def neftune(model: nn.Module, alpha: float, *, generator: torch.Generator | None = None) -> Iterator[None]:
    """Add noise to the embeddings of a model in training mode, as long as the context lasts.

    Args:
        model: the model; the first embedding in it is that of the tokens.
        alpha: size of the noise, see :func:`embedding_noise`.
        generator: where random numbers come from. Default: torch's own, which checkpoints remember.

    Yields:
        Nothing.

    Raises:
        ValueError: if the model has no embedding, or ``alpha`` is negative.

    References:
        Jain et al. (2023), arXiv:2310.05914.

    Example:
        >>> model, ids = nn.Sequential(nn.Embedding(3, 2)), torch.tensor([[0, 1]])
        >>> plain = model(ids)
        >>> with neftune(model, 5.0):
        ...     torch.equal(model(ids), plain), torch.equal(model.eval()(ids), plain)
        (False, True)
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, expected at least 0")
    found = next((x for x in model.modules() if isinstance(x, nn.Embedding)), None)
    if found is None:
        raise ValueError(f"the {type(model).__name__} has 0 embeddings, expected one whose vectors get noise")

    def add(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return output + embedding_noise(output, alpha, generator=generator) if module.training else output

    handle = found.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
