"""Decoding by comparison: with a weaker model, without the condition, with an early layer, with what was written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_equal
from llm_study.functional.sampling import (
    classifier_free_guidance,
    contrastive_difference,
    contrastive_search_scores,
    dola_scores,
    sample,
    temperature_scale,
)
from llm_study.generation.session import LanguageModel, Session, check_request, check_temperature, follow

__all__ = ["LayeredModel", "outputs_of", "contrastive_decode", "guided_decode", "dola_decode", "contrastive_search"]


class LayeredModel(LanguageModel, Protocol):
    """A model whose layers can be looked at: ``model.head(model.norm(x))`` makes logits of what a layer gives.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.models.gpt2 import GPT2ForCausalLM
        >>> config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        >>> model: LayeredModel = GPT2ForCausalLM(config).eval()
        >>> with outputs_of(model.layers) as found:
        ...     logits = model(torch.tensor([[5, 6, 7]]))
        >>> len(found), torch.equal(model.head(model.norm(found[-1])), logits)
        (2, True)
    """

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, each of which gives ``(B, T, D)``."""

    @property
    def norm(self) -> nn.Module:
        """The norm after the last layer."""

    def head(self, x: Tensor) -> Tensor:
        """Turn normalized vectors into logits.

        Args:
            x: ``(B, T, D)`` what the norm after the last layer gives.

        Returns:
            ``(B, T, V)`` logits.
        """


@contextmanager
def outputs_of(modules: Sequence[nn.Module] | nn.ModuleList) -> Iterator[list[Tensor]]:
    """Note what modules give while a model runs.

    Args:
        modules: whose outputs are noted, in the order in which they run.

    Yields:
        ``(…)`` outputs, in a list that fills up.

    Example:
        >>> double = nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad(), outputs_of([double]) as found:
        ...     _ = double.weight.fill_(2.0), double(torch.ones(1, 1))
        >>> found[0]
        tensor([[2.]])
    """
    found: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: found.append(output)) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def contrastive_decode(
    expert: LanguageModel,
    amateur: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    contrast: Callable[[Tensor, Tensor], Tensor] = contrastive_difference,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Take tokens that a strong model finds more probable than a weak one does.

    Args:
        expert: the strong model.
        amateur: the weak model, with the same vocabulary.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        contrast: ``(B, V), (B, V) → (B, V)``, scores of the tokens from the logits of both; their options are filled
            in by :func:`functools.partial`. The default and
            :func:`llm_study.functional.sampling.contrastive_scores` are made for this.
        temperature: 0 takes the best token each time; otherwise tokens are drawn from the softmax of the scores divided
            by it.
        generator: source of random numbers. Default: torch's own.
        eos_id: id that ends a sequence, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, T + new)`` the prompts and what follows them.

    Raises:
        ValueError: if the vocabularies differ in size, the temperature is negative, or one of the models cannot do
            what is asked.

    Cost: that of both models.

    References:
        Li et al. (2023), arXiv:2210.15097, whose search is a beam search; here it is greedy or draws.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> expert, amateur = LlamaForCausalLM(config), LlamaForCausalLM(config)
        >>> contrastive_decode(expert, amateur, torch.tensor([[5, 6, 7]]), max_new_tokens=4).shape
        torch.Size([1, 7])
    """
    check_equal("vocab_size of the amateur", amateur.config.vocab_size, "of the expert", expert.config.vocab_size)
    check_temperature(temperature)
    for model in (expert, amateur):
        check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    strong, weak = (Session(model, ids, room=max_new_tokens, mask=mask) for model in (expert, amateur))
    pick = _picker(temperature, generator)
    tokens = follow(
        lambda new: contrast(strong(new), weak(new)), pick, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask
    )
    return torch.cat([ids, torch.stack(list(tokens), dim=1)], dim=1)


def guided_decode(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    scale: float,
    negative: Tensor | None = None,
    negative_mask: Tensor | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Follow the prompt more closely than the model would: classifier-free guidance.

    The same model continues two texts by the same tokens, one after the prompt and one after a weaker prompt, and each
    token is chosen by :func:`llm_study.functional.sampling.classifier_free_guidance`.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        scale: 1 is the model itself, more follows the prompt more closely.
        negative: ``(B, N)`` the weaker prompts. Default: the last token of each prompt.
        negative_mask: ``(B, N)`` boolean, True where a token of them is real; padding stands on the left. Default: all.
        temperature: 0 takes the best token each time; otherwise tokens are drawn.
        generator: source of random numbers. Default: torch's own.
        eos_id: id that ends a sequence, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, T + new)`` the prompts and what follows them.

    Raises:
        ValueError: if there is not one negative prompt for each prompt, the scale or the temperature is negative, or
            the model cannot do what is asked.

    Cost: twice that of greedy decoding.

    References:
        Sanchez et al. (2023), arXiv:2306.17806.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> guided_decode(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=4, scale=1.5).shape
        torch.Size([1, 7])
    """
    check_temperature(temperature)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}, expected 0 or more, and finite; 1 is no guidance")
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    negative = ids[:, -1:] if negative is None else negative
    check_request(model, negative, max_new_tokens=max_new_tokens, mask=negative_mask)
    check_equal("number of negative prompts", negative.shape[0], "number of prompts", ids.shape[0])
    given = Session(model, ids, room=max_new_tokens, mask=mask)
    without = Session(model, negative, room=max_new_tokens, mask=negative_mask)
    pick = _picker(temperature, generator)
    tokens = follow(
        lambda new: classifier_free_guidance(given(new), without(new), scale),
        pick,
        ids,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        mask=mask,
    )
    return torch.cat([ids, torch.stack(list(tokens), dim=1)], dim=1)


def dola_decode(
    model: LayeredModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    layers: Sequence[int],
    alpha: float = 0.1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Take tokens that the last layer finds more probable than an early layer does: DoLa.

    For each token the early layer is the one whose distribution is farthest from that of the last layer; see
    :func:`llm_study.functional.sampling.dola_scores`.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        layers: how many layers have been passed where the early distributions are read, each 1 to ``L - 1``.
        alpha: how plausible a token must be for the last layer, relative to the best, in (0, 1].
        temperature: 0 takes the best token each time; otherwise tokens are drawn.
        generator: source of random numbers. Default: torch's own.
        eos_id: id that ends a sequence, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, T + new)`` the prompts and what follows them.

    Raises:
        ValueError: if ``layers`` is empty or names a layer that is not early, ``alpha`` is out of its range, the
            temperature is negative, or the model cannot do what is asked.

    Cost: that of greedy decoding, and one more product with the matrix of the head for each early layer.

    References:
        Chuang et al. (2024), arXiv:2309.03883.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        ... )
        >>> dola_decode(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=4, layers=[1, 2]).shape
        torch.Size([1, 7])
    """
    check_temperature(temperature)
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    check_at_least("number of early layers", len(layers), 1)
    if wrong := [layer for layer in layers if not 1 <= layer < len(model.layers)]:
        raise ValueError(f"layers has {wrong[0]}, expected 1 to {len(model.layers) - 1}: the model has one more")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected more than 0, and at most 1")
    session, early = Session(model, ids, room=max_new_tokens, mask=mask), [model.layers[n - 1] for n in sorted(layers)]

    def source(new: Tensor | None) -> Tensor:
        with outputs_of(early) as found:
            logits = session(new)
        return dola_scores(logits, model.head(model.norm(torch.stack([x[:, -1] for x in found], dim=1))), alpha=alpha)

    pick = _picker(temperature, generator)
    tokens = follow(source, pick, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    return torch.cat([ids, torch.stack(list(tokens), dim=1)], dim=1)


def contrastive_search(
    model: LayeredModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    top_k: int,
    alpha: float = 0.6,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Take, among the best few tokens, one that is probable and whose hidden state is unlike those before.

    All candidates are read as one batch, which gives the hidden state of each, and the logits that follow the one that
    is chosen by :func:`llm_study.functional.sampling.contrastive_search_scores`.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        top_k: number of candidates.
        alpha: weight of the similarity, in [0, 1]; 0 is greedy.
        eos_id: id that ends a sequence, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B, T + new)`` the prompts and what follows them.

    Raises:
        ValueError: if ``top_k`` is below 1 or beyond the vocabulary, ``alpha`` is outside [0, 1], or the model cannot
            do what is asked.

    Cost: ``top_k`` rows for each prompt, and ``2 * B * top_k * S * D`` FLOPs for the similarities of a token.

    References:
        Su et al. (2022), arXiv:2202.06417.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> contrastive_search(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=4, top_k=3).shape
        torch.Size([1, 7])
    """
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask, reads_last=True)
    check_at_least("top_k", top_k, 1)
    check_at_least("vocab_size", model.config.vocab_size, top_k, hint="top_k candidates are taken from it")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 to 1")
    search = _Search(model, ids, room=max_new_tokens, top_k=top_k, alpha=alpha, mask=mask)
    tokens = follow(search.logits, search.pick, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    return torch.cat([ids, torch.stack(list(tokens), dim=1)], dim=1)


class _Search:
    """A contrastive search: the cache has ``top_k`` rows for each prompt, which are alike but for the last token."""

    def __init__(
        self, model: LayeredModel, ids: Tensor, *, room: int, top_k: int, alpha: float, mask: Tensor | None
    ) -> None:
        self.model, self.top_k, self.alpha = model, top_k, alpha
        self.session = Session(model, ids, room=room, mask=mask, copies=top_k)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        self.real = torch.cat([real, real.new_ones(len(ids), room)], dim=1)  # (B, T + room)
        self.first = torch.arange(len(ids), device=ids.device) * top_k  # (B,) first row of each prompt

    def logits(self, _: Tensor | None) -> Tensor:
        """Return ``(B, V)`` logits of the next token: the prompt is read at first, all others when they are picked."""
        if self.session.cache.length == 0:
            logits, hidden = self._read(None)
            self.next, self.past = logits[self.first], hidden[self.first]  # (B, V), (B, T, D)
        return self.next

    def pick(self, logits: Tensor, text: Tensor) -> Tensor:
        """Read all candidates, return the best, ``(B,)``, and let all rows go on from it."""
        probabilities, tokens = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).topk(
            self.top_k
        )
        logits, hidden = self._read(tokens.flatten())  # (B * k, V), (B * k, 1, D)
        candidates = hidden.view(*tokens.shape, -1)
        real = self.real[:, : text.shape[1]]
        scores = contrastive_search_scores(probabilities, candidates, self.past, alpha=self.alpha, mask=real)
        best = scores.argmax(-1)  # (B,)
        rows = self.first + best
        self.session.reorder(rows.repeat_interleave(self.top_k))
        self.next, self.past = logits[rows], torch.cat([self.past, hidden[rows]], dim=1)
        return tokens.gather(1, best[:, None])[:, 0]

    def _read(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits after the last token, and the hidden states of all that were read."""
        with outputs_of(self.model.layers[-1:]) as found:
            logits = self.session(tokens)
        return logits, self.model.norm(found[0])


def _picker(temperature: float, generator: torch.Generator | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what chooses a token of each sequence: the best, or one that is drawn."""
    if temperature == 0:
        return lambda scores, _: scores.argmax(-1)
    return lambda scores, _: sample(temperature_scale(scores, temperature), generator=generator)
