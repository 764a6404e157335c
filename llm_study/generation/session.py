"""A model in the middle of a text: the prompt is read once, then token after token, with what was read kept in a cache.

Decoding knows a model through :class:`LanguageModel` only, and everything that decoders here do is a question to a
:class:`Session`: what are the logits after these tokens?
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_boolean, check_equal, check_ndim
from llm_study.core.config import ModelConfig
from llm_study.nn.binding import bind
from llm_study.nn.cache import Cache, KVCache

__all__ = ["LanguageModel", "Session", "follow", "end_ids", "check_request", "check_temperature"]


class LanguageModel(Protocol):
    """What decoding asks of a model; every decoder of ``llm_study.models`` is one.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.models.gpt2 import GPT2ForCausalLM
        >>> config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        >>> model: LanguageModel = GPT2ForCausalLM(config)
        >>> model(torch.tensor([[5, 6, 7]]), logits_to_keep=1).shape
        torch.Size([1, 1, 97])
    """

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model, from which the cache takes its own."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights: the cache stands on their device and has their dtype.

        Returns:
            ``(…)`` tensors.
        """

    def __call__(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Return the logits of the token that follows each position."""


class Session:
    """A model, a cache with what it has read, and the positions that come next.

    Called without an argument it reads the prompt; called with one token for each sequence it reads these. Either
    way it returns the logits of the token after the last one. The first of these binds the model
    (:func:`llm_study.nn.binding.bind`): its parts are not to be replaced, moved, or given hooks where none are then,
    before the text ends.

    Args:
        model: the model.
        prompt: ``(B, T)`` token ids.
        room: how many tokens may follow the prompt.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Positions are
            counted without it. Default: all are real.
        copies: how many rows each prompt gets, one after the other, for searches that go on from it in several ways.

    Attributes:
        cache: keys and values of all tokens that were read.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[5, 6, 7, 8]])
        >>> session = Session(model, ids[:, :3], room=1)
        >>> session().shape  # reads 5, 6, 7
        torch.Size([1, 97])
        >>> torch.allclose(session(torch.tensor([8])), model(ids)[:, -1], atol=1e-6)  # reads 8
        True
    """

    def __init__(
        self, model: LanguageModel, prompt: Tensor, *, room: int, mask: Tensor | None = None, copies: int = 1
    ) -> None:
        self.model = model
        self._step: Callable[..., Tensor] | None = None  # the model, bound
        mask = None if mask is None or bool(mask.all()) else mask
        self._prompt = prompt.repeat_interleave(copies, dim=0)
        self._mask = None if mask is None else mask.repeat_interleave(copies, dim=0)
        self._next = None if self._mask is None else self._mask.sum(-1, keepdim=True)  # (B, 1) positions
        weight = next(model.parameters())
        B, T = self._prompt.shape
        self.cache = KVCache(model.config, B, T + room, dtype=weight.dtype, device=weight.device)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor | None = None) -> Tensor:
        """Read the prompt, or the next token of each sequence.

        Args:
            tokens: ``(B,)`` ids. Default: read the prompt.

        Returns:
            ``(B, V)`` logits after the last token that was read.
        """
        if tokens is None:
            positions = None if self._mask is None else (self._mask.cumsum(-1) - 1).clamp(min=0)
            logits = self.model(self._prompt, mask=self._mask, positions=positions, cache=self.cache, logits_to_keep=1)
        else:
            if self._step is None:
                self._step = bind(self.model) if isinstance(self.model, nn.Module) else self.model
            logits = self._step(tokens[:, None], positions=self._next, cache=self.cache, logits_to_keep=1)
            self._next = None if self._next is None else self._next + 1
        return logits[:, -1]

    @torch.inference_mode()
    def reorder(self, rows: Tensor) -> None:
        """Let each row go on from another one.

        Args:
            rows: ``(B,)`` indices: row ``i`` becomes what row ``rows[i]`` is.
        """
        self.cache.reorder(rows)
        self._next = None if self._next is None else self._next[rows]


def follow(
    source: Callable[[Tensor | None], Tensor],
    pick: Callable[[Tensor, Tensor], Tensor],
    ids: Tensor,
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Choose a token, tell the source, choose the next: the loop of every decoder that keeps one text for each prompt.

    It ends early when all sequences have ended.

    Args:
        source: ``(B,) → (B, V)``, logits after a token of each sequence, or after the prompt when called with None; a
            :class:`Session` is one.
        pick: ``(B, V), (B, S) → (B,)``, chooses a token of each sequence from its logits and its text so far, in which
            padding is replaced by the last token of the prompt.
        ids: ``(B, T)`` the prompt.
        max_new_tokens: how many tokens follow at most.
        eos_id: ids that end a sequence; what follows in its row is the first of them. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real. Default: all are.

    Yields:
        ``(B,)`` the tokens of each step.

    Example:
        >>> logits = torch.eye(3)  # after token i comes i + 1, after 2 comes 0
        >>> source = lambda tokens: logits[[1]] if tokens is None else logits[(tokens + 1) % 3]
        >>> pick = lambda logits, text: logits.argmax(-1)
        >>> [int(tokens) for tokens in follow(source, pick, torch.tensor([[0]]), max_new_tokens=5, eos_id=0)]
        [1, 2, 0]
    """
    B, T = ids.shape
    seen = ids if mask is None else torch.where(mask, ids, ids[:, -1:])
    text = torch.cat([seen, ids.new_empty(B, max_new_tokens)], dim=1)
    ends, tokens = torch.tensor(end_ids(eos_id), device=ids.device), None
    ended = torch.zeros(B, dtype=torch.bool, device=ids.device)
    for step in range(T, T + max_new_tokens):
        with torch.inference_mode():
            tokens = pick(source(tokens), text[:, :step])
            if len(ends):
                tokens = torch.where(ended, ends[0], tokens)
                ended = torch.isin(tokens, ends)  # a row that had ended before was just given an end
        text[:, step] = tokens
        yield text[:, step].clone()  # made outside inference mode: it may be trained on
        if len(ends) and bool(ended.all()):
            return


def end_ids(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids that end a sequence.

    Args:
        eos_id: one id, several, or None.

    Returns:
        All of them.

    Example:
        >>> end_ids(2), end_ids([2, 7]), end_ids(None)
        ((2,), (2, 7), ())
    """
    if eos_id is None:
        return ()
    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)


def check_request(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    reads_last: bool = False,
) -> None:
    """Check that a model can continue a prompt, before anything is computed.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompt.
        max_new_tokens: how many tokens may follow it.
        eos_id: ids that end a sequence.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real.
        reads_last: whether the last new token is read, too, as it need not be to end there.

    Raises:
        ValueError: if the prompt is empty, no token is asked for, an end is outside the vocabulary, the mask does not
            fit or pads on the right, or prompt and new tokens need more positions than the model has learned.

    Cost: nothing is computed; the mask, if there is one, is looked at once.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.models.gpt2 import GPT2ForCausalLM
        >>> model = GPT2ForCausalLM(GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4))
        >>> check_request(model, torch.tensor([[5, 6, 7]]), max_new_tokens=62)  # the last token is never read
        >>> check_request(model, torch.tensor([[5, 6, 7]]), max_new_tokens=63)
        Traceback (most recent call last):
        ValueError: n_positions is 64, expected at least 65: 3 tokens of the prompt and 63 new ones, the last not read
    """
    check_ndim("ids", ids.shape, ("B", "T"), hint="use ids[None] for one prompt")
    check_at_least("number of prompts", ids.shape[0], 1)
    check_at_least("length of the prompt", ids.shape[1], 1, hint="begin with bos_token_id to generate from nothing")
    check_at_least("max_new_tokens", max_new_tokens, 1)
    V = model.config.vocab_size
    for end in end_ids(eos_id):
        if not 0 <= end < V:
            raise ValueError(f"eos_id is {end}, expected 0 to {V - 1}: vocab_size is {V}")
    if mask is not None:
        _check_left_padded(mask, ids)
    longest = ids.shape[1] if mask is None else int(mask.sum(-1).max())
    learned: int | None = getattr(model.config, "n_positions", None)
    if learned is not None:
        hint = f"{longest} tokens of the prompt and {max_new_tokens} new ones" + (", the last not read") * (
            not reads_last
        )
        check_at_least("n_positions", learned, longest + max_new_tokens - (not reads_last), hint=hint)


def _check_left_padded(mask: Tensor, ids: Tensor) -> None:
    check_boolean("mask", mask.dtype, hint="True where a token is real: convert with .bool()")
    check_equal("shape of mask", tuple(mask.shape), "shape of ids", tuple(ids.shape))
    wrong = ~mask[:, -1] | (mask[:, :-1] & ~mask[:, 1:]).any(-1)  # (B,)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of mask is {mask[row].int().tolist()}, expected zeros, then ones: pad prompts on the left"
        )


def check_temperature(temperature: float) -> None:
    """Check that a temperature is one.

    Args:
        temperature: 0 for the best token, more to sample.

    Raises:
        ValueError: if it is below 0, infinite, or no number.

    Example:
        >>> check_temperature(-1.0)
        Traceback (most recent call last):
        ValueError: temperature is -1.0, expected 0 (greedy) or more, and finite
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected 0 (greedy) or more, and finite")
