"""Greedy decoding and sampling, at once or token by token."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least
from llm_study.functional import sampling
from llm_study.generation.beam import beam_search
from llm_study.generation.session import LanguageModel, Session, check_request, check_temperature, follow

__all__ = ["generate", "stream", "process_logits"]


def generate(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    num_beams: int = 1,
    generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Continue prompts: greedily, by sampling, or by beam search.

    Args:
        model: the model; call its ``eval()`` first, if it has dropout.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most; fewer do if all sequences have ended.
        temperature: 0 takes the best token each time; otherwise tokens are drawn from the softmax of the logits
            divided by it. The three filters below matter only then.
        top_k: keep the so many best tokens. Default: all.
        top_p: keep the fewest tokens whose probabilities add up to this. Default: all.
        min_p: keep the tokens at least so probable, relative to the best. Default: all.
        repetition_penalty: make tokens of the text less probable by this factor on their logits. Default: none.
        num_beams: how many sequences beam search keeps; 1 is no beam search.
        generator: source of random numbers. Default: torch's own.
        eos_id: id that ends a sequence, or several; the rest of its row is filled with the (first) one. Default: none,
            whatever ``model.config`` says.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real. Padding stands on the left, and positions
            are counted without it. Default: all are real.

    Returns:
        ``(B, T + new)`` the prompts and what follows them.

    Raises:
        ValueError: if an argument is out of its range, the prompt is empty, an end is no id of the vocabulary, the mask
            has padding that is not on the left, the text needs more positions than the model has learned, or beam
            search is to sample. It is raised before anything is computed.

    Cost: one pass over the weights for each token, after one over the prompt.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model, ids = LlamaForCausalLM(config), torch.tensor([[5, 6, 7]])
        >>> greedy = generate(model, ids, max_new_tokens=4)
        >>> greedy.shape
        torch.Size([1, 7])
        >>> torch.equal(greedy, generate(model, ids, max_new_tokens=4, temperature=1.0, top_k=1))
        True
    """
    check_at_least("num_beams", num_beams, 1)
    if num_beams > 1:
        if temperature:
            raise ValueError(f"num_beams is {num_beams} and temperature is {temperature}: beam search does not sample")
        _check_options(temperature, top_k, top_p, min_p, repetition_penalty)
        adjust = partial(process_logits, repetition_penalty=repetition_penalty)
        found = beam_search(
            model, ids, max_new_tokens=max_new_tokens, num_beams=num_beams, adjust=adjust, eos_id=eos_id, mask=mask
        )
        return found.ids[:, 0, : ids.shape[1] + int(found.lengths[:, 0].max())]
    tokens = stream(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        generator=generator,
        eos_id=eos_id,
        mask=mask,
    )
    return torch.cat([ids, torch.stack(list(tokens), dim=1)], dim=1)


def stream(
    model: LanguageModel,
    ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Continue prompts as :func:`generate` does, and hand out each token as it is made.

    Arguments are checked at once, not when the first token is asked for.

    Args:
        model: the model.
        ids: ``(B, T)`` the prompts.
        max_new_tokens: how many tokens follow at most.
        temperature: 0 takes the best token each time; otherwise tokens are drawn.
        top_k: keep the so many best tokens. Default: all.
        top_p: keep the fewest tokens whose probabilities add up to this. Default: all.
        min_p: keep the tokens at least so probable, relative to the best. Default: all.
        repetition_penalty: make tokens of the text less probable by this factor on their logits. Default: none.
        generator: source of random numbers. Default: torch's own.
        eos_id: id that ends a sequence, or several. Default: none.
        mask: ``(B, T)`` boolean, True where a token of the prompt is real; padding stands on the left. Default: all.

    Returns:
        ``(B,)`` ids of each step, one after the other.

    Raises:
        ValueError: as :func:`generate` does.

    Example:
        >>> from llm_study.core.config import LlamaConfig
        >>> from llm_study.models.llama import LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> [tokens.shape for tokens in stream(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=2)]
        [torch.Size([1]), torch.Size([1])]
    """
    check_request(model, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)
    _check_options(temperature, top_k, top_p, min_p, repetition_penalty)

    def pick(logits: Tensor, text: Tensor) -> Tensor:
        if temperature == 0:
            return process_logits(logits, text, repetition_penalty=repetition_penalty).argmax(-1)
        logits = process_logits(
            logits,
            text,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        return sampling.sample(logits, generator=generator)

    session = Session(model, ids, room=max_new_tokens, mask=mask)
    return follow(session, pick, ids, max_new_tokens=max_new_tokens, eos_id=eos_id, mask=mask)


def process_logits(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> Tensor:
    """Penalize, divide by the temperature, filter: in the order in which transformers does.

    The order matters: a penalty after the filter could not bring a token back, and top-p and min-p look at
    probabilities that the temperature has changed and that top-k has already thinned out.

    Args:
        logits: ``(B, V)`` logits of the next token.
        ids: ``(B, S)`` the text so far.
        temperature: divides the logits. Default: 1.
        top_k: keep the so many best tokens. Default: all.
        top_p: keep the fewest tokens whose probabilities add up to this. Default: all.
        min_p: keep the tokens at least so probable, relative to the best. Default: all.
        repetition_penalty: the factor on logits of tokens of the text. Default: none.

    Returns:
        ``(B, V)`` new logits, at least in float32; what is filtered out is −∞.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> process_logits(logits, torch.tensor([[0]]), temperature=2.0, top_k=2, repetition_penalty=4.0)
        tensor([[  -inf, 1.5000, 1.0000,   -inf]])
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if repetition_penalty is not None:
        logits = sampling.repetition_penalty(logits, ids, repetition_penalty)
    if temperature is not None:
        logits = sampling.temperature_scale(logits, temperature)
    if top_k is not None:
        logits = sampling.top_k_filter(logits, top_k)
    if top_p is not None:
        logits = sampling.top_p_filter(logits, top_p)
    if min_p is not None:
        logits = sampling.min_p_filter(logits, min_p)
    return logits


def _check_options(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, repetition_penalty: float | None
) -> None:
    """Check the ranges of all options, also of those that the temperature makes idle."""
    check_temperature(temperature)
    if top_k is not None:
        check_at_least("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected more than 0, and at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}, expected 0 to 1")
    if repetition_penalty is not None and not repetition_penalty > 0:
        raise ValueError(f"repetition_penalty is {repetition_penalty}, expected more than 0; 1 changes nothing")
