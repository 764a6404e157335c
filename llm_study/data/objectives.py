r"""Pretraining objectives: how a text without labels becomes an input and what the model has to predict.

Everything works on token ids and draws from a ``torch.Generator``, so that a seed repeats a corruption. A target is
aligned with the position that predicts it, and it is −100 where nothing is to be predicted: the loss leaves such
positions out. What is cut out of a text can be put back: :func:`restore_spans` and :func:`restore_middle` undo
:func:`corrupt_spans` and the orders :func:`psm` and :func:`spm`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_boolean, check_equal, check_ndim
from llm_study.functional.attention import prefix_mask

__all__ = [
    "IGNORE",
    "Corrupted",
    "PrefixCorrupted",
    "Denoiser",
    "MiddleTokens",
    "UL2_DENOISERS",
    "causal",
    "mask_tokens",
    "replaced_tokens",
    "span_counts",
    "span_lengths",
    "random_spans",
    "corrupt_spans",
    "restore_spans",
    "span_corruption",
    "prefix_lm",
    "random_cuts",
    "psm",
    "spm",
    "restore_middle",
    "fill_in_the_middle",
    "fill_in_the_middle_text",
    "denoise",
    "ul2",
]

IGNORE = -100
"""The target of a position at which nothing is to be predicted."""


class Corrupted(NamedTuple):
    """What a model reads, and what it has to say.

    Args:
        ids: ``(…, T)`` what the model, or its encoder, reads.
        targets: ``(…, T)`` what it has to predict at each position, −100 where nothing; of an encoder–decoder
            ``(U,)`` what the decoder has to write.

    Example:
        >>> ids, targets = Corrupted(torch.tensor([5, 0]), torch.tensor([-100, 6]))
        >>> int((targets != IGNORE).sum())  # one position is predicted
        1
    """

    ids: Tensor
    """What the model reads."""
    targets: Tensor
    """What it has to predict."""


class PrefixCorrupted(NamedTuple):
    """What a prefix language model reads, what it has to say, and who sees whom.

    Args:
        ids: ``(B, T)`` what the model reads.
        targets: ``(B, T)`` the next token, −100 where it still belongs to the prefix.
        mask: ``(B, T, T)`` boolean, True where a token (row) may look at another (column).

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.long)
        >>> PrefixCorrupted(one, one, one[None].bool()).mask.shape
        torch.Size([1, 1, 1])
    """

    ids: Tensor
    """What the model reads."""
    targets: Tensor
    """The next token, or −100."""
    mask: Tensor
    """Who sees whom."""


def causal(ids: Tensor) -> Corrupted:
    r"""Let each position predict the next token.

    .. math:: \ln p(x) = \sum_t \ln p(x_t \mid x_{<t})

    Args:
        ids: ``(…, T + 1)`` token ids.

    Returns:
        Input ``(…, T)``, all but the last token, and targets ``(…, T)``, all but the first. Both are views of ``ids``.

    Raises:
        ValueError: if a text has fewer than two tokens, or ``ids`` holds no integers.

    References:
        Radford et al. (2018), equation (1).

    Example:
        >>> ids, targets = causal(torch.tensor([5, 6, 7]))
        >>> ids.tolist(), targets.tolist()
        ([5, 6], [6, 7])
    """
    _check_ids(ids, 2)
    return Corrupted(ids[..., :-1], ids[..., 1:])


def mask_tokens(
    ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    keep: float = 0.1,
    swap: float = 0.1,
    special: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Corrupted:
    r"""Hide some tokens; the model sees the rest, to the left and to the right, and predicts them.

    Each token is selected with probability ``rate``, independently of the others. Of the selected ones a share
    ``1 - keep - swap`` becomes the mask token, a share ``swap`` a token drawn evenly from the vocabulary, and a share
    ``keep`` stays as it is; all of them are predicted.

    Args:
        ids: ``(…, T)`` token ids.
        mask_id: the mask token.
        vocab_size: number of tokens ``V``; what is swapped in is drawn from all of them.
        rate: probability that a token is selected.
        keep: share of the selected tokens that stay.
        swap: share of the selected tokens that become random ones.
        special: ``(…, T)`` boolean, True where a token is never selected: padding, beginning, separator. Default:
            nowhere.
        generator: source of the draws. Default: torch's.

    Returns:
        Input and targets, both ``(…, T)``. Targets are the original ids of the selected tokens, −100 elsewhere.

    Raises:
        ValueError: if ``rate`` is not in (0, 1), ``keep`` or ``swap`` or their sum not in [0, 1], an id or ``mask_id``
            is outside the vocabulary, there are no tokens, or ``special`` has another shape or is not boolean.

    References:
        Devlin et al. (2018), arXiv:1810.04805, section 3.1, task 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> ids, targets = mask_tokens(torch.arange(5, 13), mask_id=4, vocab_size=20, rate=0.4, generator=generator)
        >>> ids.tolist(), targets.tolist()
        ([5, 6, 4, 4, 4, 10, 11, 12], [-100, -100, 7, 8, 9, -100, -100, -100])
    """
    _check_ids(ids, 1, vocab_size)
    _check_token("mask_id", mask_id, vocab_size)
    _check_share("rate", rate, "()")
    for name, share in (("keep", keep), ("swap", swap), ("keep + swap", keep + swap)):
        _check_share(name, share, "[]")
    selected = _draw(rate, ids, generator)
    if special is not None:
        check_boolean("special", special.dtype)
        check_equal("shape of special", tuple(special.shape), "shape of ids", tuple(ids.shape))
        selected = selected & ~special
    masked = selected & _draw(1 - keep - swap, ids, generator)
    corrupted = ids.masked_fill(masked, mask_id)
    if swap > 0:
        swapped = selected & ~masked & _draw(swap / (keep + swap), ids, generator)
        words = torch.randint(vocab_size, ids.shape, generator=generator, device=ids.device).to(ids.dtype)
        corrupted = torch.where(swapped, words, corrupted)
    return Corrupted(corrupted, ids.masked_fill(~selected, IGNORE))


def replaced_tokens(
    ids: Tensor,
    selected: Tensor,
    logits: Tensor,
    *,
    special: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Corrupted:
    r"""Replace tokens by what a generator finds plausible; a discriminator says of each token whether it was replaced.

    A draw that happens to be the original token counts as original. No gradient flows through the draw.

    Args:
        ids: ``(…, T)`` the original ids.
        selected: ``(…, T)`` boolean, True where the generator's input was masked.
        logits: ``(…, T, V)`` what the generator predicts; looked at only where ``selected``.
        special: ``(…, T)`` boolean, True where nothing is asked, such as padding. Default: nowhere.
        generator: source of the draws. Default: torch's.

    Returns:
        Input and targets, both ``(…, T)``. A target is 1 where the token is another than in the original, 0 where it
        is the same, and −100 where ``special``.

    Raises:
        ValueError: if there are no tokens, an id is outside the vocabulary, a shape does not fit, or a mask is not
            boolean.

    References:
        Clark et al. (2020), arXiv:2003.10555, section 2.

    Example:
        >>> logits = torch.full((3, 10), -1e9)
        >>> logits[:, 7] = 0.0  # a generator that always says 7
        >>> ids, targets = replaced_tokens(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]), logits)
        >>> ids.tolist(), targets.tolist()  # the last 7 is right by chance: not replaced
        ([7, 6, 7], [1, 0, 0])
    """
    _check_ids(ids, 1, logits.shape[-1])
    check_equal("leading shape of logits", tuple(logits.shape[:-1]), "shape of ids", tuple(ids.shape))
    for name, mask in (("selected", selected), ("special", special)):
        if mask is not None:
            check_boolean(name, mask.dtype)
            check_equal(f"shape of {name}", tuple(mask.shape), "shape of ids", tuple(ids.shape))
    corrupted = ids.clone()
    if selected.any():
        p = torch.softmax(logits[selected].detach().float(), dim=-1)  # (N, V)
        corrupted[selected] = torch.multinomial(p, 1, generator=generator)[:, 0].to(ids.dtype)
    targets = (corrupted != ids).long()
    return Corrupted(corrupted, targets if special is None else targets.masked_fill(special, IGNORE))


def span_counts(length: int, *, rate: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """How many tokens are cut out of a text, and in how many spans.

    Args:
        length: number of tokens of the text, at least 2: one is cut out and one stays.
        rate: share of the tokens that is cut out.
        mean_length: mean length of a span, at least 1.

    Returns:
        Number of tokens cut out, ``rate * length`` rounded, and number of spans, that divided by ``mean_length`` and
        rounded; both at least 1, and few enough that a token stays before each span.

    Raises:
        ValueError: if ``length`` is below 2, ``rate`` not in (0, 1), or ``mean_length`` below 1.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.3.4. Its code rounds products in float32, where ours are in
        float64: at a few lengths the two differ by one token.

    Example:
        >>> span_counts(512)
        (77, 26)
    """
    check_at_least("length", length, 2, hint="one token is cut out and one stays")
    _check_share("rate", rate, "()")
    _check_mean_length(mean_length)
    noise = min(max(round(rate * length), 1), length - 1)
    spans = min(max(round(noise / mean_length), 1), length - noise)
    return noise, spans


def span_lengths(length: int, *, rate: float = 0.15, mean_length: float = 3.0, eos: bool = True) -> tuple[int, int]:
    """Lengths of input and target after span corruption; they depend on no draw.

    Each span leaves one sentinel in the input and has one in the target.

    Args:
        length: number of tokens of the text, at least 2.
        rate: share of the tokens that is cut out.
        mean_length: mean length of a span, at least 1.
        eos: whether both end with a token that says so.

    Returns:
        Length of the input and length of the target.

    Raises:
        ValueError: if ``length`` is below 2, ``rate`` not in (0, 1), or ``mean_length`` below 1.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.1.4 and its code: 568 tokens fill an input of 512.

    Example:
        >>> span_lengths(568)
        (512, 114)
    """
    noise, spans = span_counts(length, rate=rate, mean_length=mean_length)
    return length - noise + spans + eos, noise + spans + eos


def random_spans(
    length: int, *, rate: float = 0.15, mean_length: float = 3.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the spans that are cut out of a text.

    Kept and cut pieces alternate, beginning with a kept one and ending with a cut one. All masks with the numbers of
    :func:`span_counts` are equally likely.

    Args:
        length: number of tokens of the text, at least 2.
        rate: share of the tokens that is cut out.
        mean_length: mean length of a span, at least 1.
        generator: source of the draws. Default: torch's.

    Returns:
        ``(T,)`` boolean, True where a token is cut out.

    Raises:
        ValueError: if ``length`` is below 2, ``rate`` not in (0, 1), or ``mean_length`` below 1.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.3.4, with the law of its code.

    Example:
        >>> random_spans(12, rate=0.4, mean_length=2.0, generator=torch.Generator().manual_seed(6)).int().tolist()
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    """
    noise, spans = span_counts(length, rate=rate, mean_length=mean_length)
    kept, cut = _composition(length - noise, spans, generator), _composition(noise, spans, generator)
    pieces = torch.stack([kept, cut], dim=1).flatten()  # kept, cut, kept, cut, …
    return torch.arange(2 * spans).remainder(2).bool().repeat_interleave(pieces)


def corrupt_spans(ids: Tensor, cut: Tensor, *, sentinels: Sequence[int], eos_id: int | None = None) -> Corrupted:
    """Cut spans out of a text; a sentinel marks each gap, and the target says what was in it.

    The target is the sentinel of each span, followed by its tokens; where text goes on after the last span, one more
    sentinel ends it.

    Args:
        ids: ``(T,)`` token ids.
        cut: ``(T,)`` boolean, True where a token is cut out.
        sentinels: ids that mark the gaps, in order; none of them may be in the text.
        eos_id: token that ends input and target. Default: none.

    Returns:
        Input ``(T,)`` and target ``(U,)``, of lengths that depend on the spans.

    Raises:
        ValueError: if the text is empty, ``cut`` has another shape or is not boolean, there are fewer sentinels than
            the spans need, a sentinel stands twice, is in the text or is ``eos_id``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.1.4 and figure 2.

    Example:
        >>> cut = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0, 1, 0]).bool()
        >>> ids, targets = corrupt_spans(torch.arange(1, 11), cut, sentinels=[99, 98, 97])
        >>> ids.tolist()
        [1, 2, 99, 5, 6, 7, 8, 98, 10]
        >>> targets.tolist()
        [99, 3, 4, 98, 9, 97]
    """
    check_ndim("ids", ids.shape, ("T",), hint="corrupt one text at a time")
    _check_ids(ids, 1)
    check_boolean("cut", cut.dtype)
    check_equal("shape of cut", tuple(cut.shape), "shape of ids", tuple(ids.shape))
    needed = int(_starts(cut).sum()) + int(not cut[-1])
    check_at_least("number of sentinels", len(sentinels), needed, hint=f"the target needs {needed}")
    marks = _sentinels(sentinels, ids, eos_id)
    inputs = _mark_runs(ids, cut, marks)
    lead = int(cut[0])  # a text that begins with a span: its target begins with a sentinel all the same
    targets = torch.cat([marks[:lead], _mark_runs(ids, ~cut, marks[lead:])])
    end = ids.new_tensor([] if eos_id is None else [eos_id])
    return Corrupted(torch.cat([inputs, end]), torch.cat([targets, end]))


def restore_spans(ids: Tensor, targets: Tensor, *, sentinels: Sequence[int], eos_id: int | None = None) -> Tensor:
    """Put what the target says into the gaps of the input: the inverse of :func:`corrupt_spans`.

    Args:
        ids: ``(T,)`` input with sentinels.
        targets: ``(U,)`` sentinels, each followed by the tokens of its gap.
        sentinels: ids that mark the gaps.
        eos_id: token that is left out where it ends input or target. Default: none.

    Returns:
        ``(N,)`` the text. A gap of which the target says nothing stays empty.

    Raises:
        ValueError: if the target does not begin with a sentinel.

    Example:
        >>> restore_spans(torch.tensor([1, 99, 4]), torch.tensor([99, 2, 3, 98]), sentinels=[99, 98]).tolist()
        [1, 2, 3, 4]
    """
    text, said = (side[:-1] if side and side[-1] == eos_id else side for side in (ids.tolist(), targets.tolist()))
    if said and said[0] not in sentinels:
        raise ValueError(f"the target begins with {said[0]}, expected one of the sentinels {list(sentinels)}")
    gaps: dict[int, list[int]] = {}
    for token in said:
        if token in sentinels:
            gap = gaps.setdefault(token, [])
        else:
            gap.append(token)
    pieces = [gaps.get(token, []) if token in sentinels else [token] for token in text]
    return ids.new_tensor([token for piece in pieces for token in piece])


def span_corruption(
    ids: Tensor,
    *,
    sentinels: Sequence[int],
    rate: float = 0.15,
    mean_length: float = 3.0,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Corrupted:
    """Cut random spans out of a text; the encoder reads the rest, the decoder writes the spans: T5's objective.

    Args:
        ids: ``(T,)`` token ids, at least 2.
        sentinels: ids that mark the gaps, in order, one for each span; none of them may be in the text.
        rate: share of the tokens that is cut out.
        mean_length: mean length of a span, at least 1.
        eos_id: token that ends input and target. Default: none.
        generator: source of the draws. Default: torch's.

    Returns:
        Input ``(T,)`` and target ``(U,)``, of the lengths of :func:`span_lengths`.

    Raises:
        ValueError: if there are fewer than two tokens, ``rate`` is not in (0, 1), ``mean_length`` below 1, there are
            fewer sentinels than spans, a sentinel stands twice, is in the text or is ``eos_id``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, sections 3.1.4 and 3.3.4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> ids, targets = span_corruption(torch.arange(1, 13), sentinels=[99, 98], rate=0.4, generator=generator)
        >>> ids.tolist(), targets.tolist()
        ([1, 2, 3, 99, 8, 9, 10, 11, 98], [99, 4, 5, 6, 7, 98, 12])
    """
    check_ndim("ids", ids.shape, ("T",), hint="corrupt one text at a time")
    cut = random_spans(len(ids), rate=rate, mean_length=mean_length, generator=generator).to(ids.device)
    return corrupt_spans(ids, cut, sentinels=sentinels, eos_id=eos_id)


def prefix_lm(
    ids: Tensor, *, lengths: Tensor | None = None, generator: torch.Generator | None = None
) -> PrefixCorrupted:
    """Read a prefix in both directions, then predict the rest token by token.

    Args:
        ids: ``(B, T + 1)`` token ids.
        lengths: ``(B,)`` integers, how many tokens each prefix has, from 1 to ``T``. Default: drawn evenly.
        generator: source of the draws. Default: torch's.

    Returns:
        Input and targets ``(B, T)`` and the mask ``(B, T, T)``. The last token of the prefix predicts the first one
        after it; targets before are −100.

    Raises:
        ValueError: if a text has fewer than two tokens, or a length is outside 1 … ``T``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 3.2.1; Liu et al. (2018), arXiv:1801.10198.

    Example:
        >>> ids, targets, mask = prefix_lm(torch.tensor([[5, 6, 7, 8]]), lengths=torch.tensor([2]))
        >>> ids.tolist(), targets.tolist()
        ([[5, 6, 7]], [[-100, 7, 8]])
        >>> mask[0].int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    check_ndim("ids", ids.shape, ("B", "T + 1"))
    _check_ids(ids, 2)
    (B, T), device = (ids.shape[0], ids.shape[1] - 1), ids.device
    if lengths is None:
        lengths = torch.randint(1, T + 1, (B,), generator=generator).to(device)
    check_equal("number of lengths", tuple(lengths.shape), "batch size (B,)", (B,))
    if B and not 1 <= lengths.min() <= lengths.max() <= T:
        raise ValueError(f"prefix lengths are from {lengths.min()} to {lengths.max()}, expected 1 to {T}")
    given = torch.arange(T, device=device) < lengths[:, None] - 1  # (B, T): the next token is of the prefix
    return PrefixCorrupted(ids[:, :-1], ids[:, 1:].masked_fill(given, IGNORE), prefix_mask(lengths, T)[:, 0])


@dataclass(frozen=True, kw_only=True)
class MiddleTokens:
    """The three ids that mark the parts of a text whose middle was moved to the end.

    Args:
        prefix: stands before the beginning of the text.
        suffix: stands before its end.
        middle: stands before its middle.

    Raises:
        ValueError: if two of them are equal.

    Example:
        >>> MiddleTokens(prefix=97, suffix=98, middle=99).middle
        99
    """

    prefix: int
    suffix: int
    middle: int

    def __post_init__(self) -> None:
        if len({self.prefix, self.suffix, self.middle}) < 3:
            raise ValueError(f"prefix, suffix and middle are {self}, expected three different ids")


def random_cuts(length: int, *, generator: torch.Generator | None = None) -> tuple[int, int]:
    """Draw where a text is cut in three.

    Two of the ``length + 1`` places between, before and after the tokens are drawn evenly and independently, and
    sorted; any part may be empty.

    Args:
        length: number of tokens, or of characters, at least 1.
        generator: source of the draws. Default: torch's.

    Returns:
        Where the middle begins and where it ends.

    Raises:
        ValueError: if there is nothing to cut.

    References:
        Bavarian et al. (2022), arXiv:2207.14255, section 3.

    Example:
        >>> random_cuts(10, generator=torch.Generator().manual_seed(2))
        (3, 8)
    """
    check_at_least("length", length, 1, hint="an empty text has no middle")
    first, second = sorted(torch.randint(length + 1, (2,), generator=generator).tolist())
    return first, second


def psm(prefix: Tensor, middle: Tensor, suffix: Tensor, *, tokens: MiddleTokens) -> Tensor:
    """Order a text as prefix, suffix, middle, so that a causal model learns to fill in the middle.

    Args:
        prefix: ``(P,)`` ids of the beginning.
        middle: ``(M,)`` ids of the middle.
        suffix: ``(S,)`` ids of the end.
        tokens: what marks the parts.

    Returns:
        ``(P + M + S + 3,)`` ids, trained on as any other text, with :func:`causal`.

    References:
        Bavarian et al. (2022), arXiv:2207.14255, section 3.

    Example:
        >>> prefix, middle, suffix = torch.arange(1, 7).split([2, 3, 1])
        >>> psm(prefix, middle, suffix, tokens=MiddleTokens(prefix=97, suffix=98, middle=99)).tolist()
        [97, 1, 2, 98, 6, 99, 3, 4, 5]
    """
    mark = prefix.new_tensor
    return torch.cat([mark([tokens.prefix]), prefix, mark([tokens.suffix]), suffix, mark([tokens.middle]), middle])


def spm(prefix: Tensor, middle: Tensor, suffix: Tensor, *, tokens: MiddleTokens) -> Tensor:
    """Order a text as suffix, prefix, middle; prefix and middle stay in one piece.

    Args:
        prefix: ``(P,)`` ids of the beginning.
        middle: ``(M,)`` ids of the middle.
        suffix: ``(S,)`` ids of the end.
        tokens: what marks the parts: both marks of :func:`psm` stand in front, an empty prefix followed by the suffix.

    Returns:
        ``(P + M + S + 3,)`` ids, trained on as any other text, with :func:`causal`.

    References:
        Bavarian et al. (2022), arXiv:2207.14255, section 3.1 and appendix D.

    Example:
        >>> prefix, middle, suffix = torch.arange(1, 7).split([2, 3, 1])
        >>> spm(prefix, middle, suffix, tokens=MiddleTokens(prefix=97, suffix=98, middle=99)).tolist()
        [97, 98, 6, 99, 1, 2, 3, 4, 5]
    """
    mark = prefix.new_tensor
    return torch.cat([mark([tokens.prefix, tokens.suffix]), suffix, mark([tokens.middle]), prefix, middle])


def restore_middle(ids: Tensor, *, tokens: MiddleTokens) -> Tensor:
    """Put the parts of a reordered text back: the inverse of :func:`psm` and of :func:`spm`.

    Args:
        ids: ``(N,)`` ids that either of them returned; a text without marks is returned as it is.
        tokens: what marks the parts.

    Returns:
        ``(N - 3,)`` the text.

    Raises:
        ValueError: if some of the marks are missing, stand twice or in another order.

    Example:
        >>> tokens = MiddleTokens(prefix=97, suffix=98, middle=99)
        >>> restore_middle(torch.tensor([97, 1, 2, 98, 6, 99, 3, 4, 5]), tokens=tokens).tolist()
        [1, 2, 3, 4, 5, 6]
    """
    marks = ids.new_tensor([tokens.prefix, tokens.suffix, tokens.middle])
    places = torch.isin(ids, marks).nonzero().flatten()
    if not len(places):
        return ids
    if ids[places].tolist() != marks.tolist() or places[0] != 0:
        raise ValueError(f"the marks are {ids[places].tolist()}, expected {marks.tolist()}, the first in front")
    _, suffix_at, middle_at = places.tolist()
    return torch.cat([ids[1:suffix_at], ids[middle_at + 1 :], ids[suffix_at + 1 : middle_at]])


def fill_in_the_middle(
    ids: Tensor,
    *,
    tokens: MiddleTokens,
    rate: float = 0.5,
    spm_rate: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move, with some probability, a random middle of a document to its end, cutting between tokens.

    Args:
        ids: ``(N,)`` ids of one document, before documents are joined and cut to the length of the context.
        tokens: what marks the parts; none of them may be in the document.
        rate: probability that the document is reordered; otherwise it is returned as it is.
        spm_rate: probability that a reordered document gets the order of :func:`spm` instead of that of :func:`psm`.
        generator: source of the draws. Default: torch's.

    Returns:
        ``(N,)`` or ``(N + 3,)`` ids.

    Raises:
        ValueError: if the document is empty or holds a mark, or ``rate`` or ``spm_rate`` is not in [0, 1].

    References:
        Bavarian et al. (2022), arXiv:2207.14255, section 3.

    Example:
        >>> tokens, generator = MiddleTokens(prefix=97, suffix=98, middle=99), torch.Generator().manual_seed(8)
        >>> fill_in_the_middle(torch.arange(1, 7), tokens=tokens, rate=1.0, generator=generator).tolist()
        [97, 1, 2, 98, 4, 5, 6, 99, 3]
    """
    check_ndim("ids", ids.shape, ("N",), hint="reorder one document at a time")
    _check_ids(ids, 1)
    marks = ids.new_tensor([tokens.prefix, tokens.suffix, tokens.middle])
    if torch.isin(ids, marks).any():
        raise ValueError(f"the document holds {int(ids[torch.isin(ids, marks)][0])}, one of the marks {marks.tolist()}")
    order = _draw_order(rate, spm_rate, generator)
    if order is None:
        return ids
    first, second = random_cuts(len(ids), generator=generator)
    return order(ids[:first], ids[first:second], ids[second:], tokens=tokens)


def fill_in_the_middle_text(
    text: str,
    encode: Callable[[str], Sequence[int]],
    *,
    tokens: MiddleTokens,
    rate: float = 0.5,
    spm_rate: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move, with some probability, a random middle of a text to its end, cutting between characters.

    The parts are encoded one by one, so that a cut inside a word is one that users make in an editor. The order of
    :func:`spm` encodes prefix and middle apart too.

    Args:
        text: one document.
        encode: text → ids, such as the method of a tokenizer; must not return marks.
        tokens: what marks the parts.
        rate: probability that the document is reordered; otherwise its ids are returned in order.
        spm_rate: probability that a reordered document gets the order of :func:`spm` instead of that of :func:`psm`.
        generator: source of the draws. Default: torch's.

    Returns:
        ``(N,)`` ids.

    Raises:
        ValueError: if the text is empty, or ``rate`` or ``spm_rate`` is not in [0, 1].

    References:
        Bavarian et al. (2022), arXiv:2207.14255, section 3.

    Example:
        >>> tokens, generator = MiddleTokens(prefix=0, suffix=1, middle=2), torch.Generator().manual_seed(8)
        >>> fill_in_the_middle_text("abcdef", str.encode, tokens=tokens, rate=1.0, generator=generator).tolist()
        [0, 97, 98, 1, 100, 101, 102, 2, 99]
    """
    check_at_least("number of characters", len(text), 1, hint="an empty text has no middle")
    order = _draw_order(rate, spm_rate, generator)
    if order is None:
        return torch.tensor(list(encode(text)), dtype=torch.long)
    first, second = random_cuts(len(text), generator=generator)
    parts = (text[:first], text[first:second], text[second:])
    prefix, middle, suffix = (torch.tensor(list(encode(part)), dtype=torch.long) for part in parts)
    return order(prefix, middle, suffix, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One of the tasks of UL2.

    Args:
        mode: name of the family, ``R``, ``S`` or ``X``, for which the model reads a token of its own.
        rate: share of the tokens that is cut out.
        mean_length: mean length of a span; None for a single span at the end of the text, which makes the task a
            prefix language model.

    Example:
        >>> Denoiser(mode="R", rate=0.15, mean_length=3.0).mode
        'R'
    """

    mode: str
    rate: float
    mean_length: float | None = None


UL2_DENOISERS = (
    Denoiser(mode="R", rate=0.15, mean_length=3.0),
    Denoiser(mode="R", rate=0.15, mean_length=8.0),
    Denoiser(mode="S", rate=0.25),
    Denoiser(mode="X", rate=0.5, mean_length=3.0),
    Denoiser(mode="X", rate=0.5, mean_length=8.0),
    Denoiser(mode="X", rate=0.15, mean_length=64.0),
    Denoiser(mode="X", rate=0.5, mean_length=64.0),
)
"""The seven denoisers of UL2 (Tay et al., 2022)."""


def denoise(
    ids: Tensor,
    denoiser: Denoiser,
    *,
    sentinels: Sequence[int],
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Corrupted:
    """Corrupt a text as one denoiser does, without its mode token.

    Args:
        ids: ``(T,)`` token ids, at least 2.
        denoiser: what to cut out.
        sentinels: ids that mark the gaps, in order; none of them may be in the text.
        eos_id: token that ends input and target. Default: none.
        generator: source of the draws. Default: torch's.

    Returns:
        Input ``(T,)`` and target ``(U,)``.

    Raises:
        ValueError: as :func:`span_corruption`.

    References:
        Tay et al. (2022), arXiv:2205.05131.

    Example:
        >>> ids, targets = denoise(torch.arange(1, 9), Denoiser(mode="S", rate=0.25), sentinels=[99])
        >>> ids.tolist(), targets.tolist()
        ([1, 2, 3, 4, 5, 6, 99], [99, 7, 8])
    """
    if denoiser.mean_length is not None:
        return span_corruption(
            ids,
            sentinels=sentinels,
            rate=denoiser.rate,
            mean_length=denoiser.mean_length,
            eos_id=eos_id,
            generator=generator,
        )
    check_ndim("ids", ids.shape, ("T",), hint="corrupt one text at a time")
    noise, _ = span_counts(len(ids), rate=denoiser.rate)
    cut = torch.arange(len(ids), device=ids.device) >= len(ids) - noise
    return corrupt_spans(ids, cut, sentinels=sentinels, eos_id=eos_id)


def ul2(
    ids: Tensor,
    *,
    sentinels: Sequence[int],
    modes: Mapping[str, int],
    denoisers: Sequence[Denoiser] = UL2_DENOISERS,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Corrupted:
    """Corrupt a text as a denoiser drawn evenly from several does, and tell the model which family it is from.

    Args:
        ids: ``(T,)`` token ids, at least 2.
        sentinels: ids that mark the gaps, in order; none of them may be in the text.
        modes: id of the token of each family, which stands in front of the input.
        denoisers: what to draw from.
        eos_id: token that ends input and target. Default: none.
        generator: source of the draws. Default: torch's.

    Returns:
        Input ``(T,)``, which begins with the mode, and target ``(U,)``.

    Raises:
        ValueError: if there is no denoiser, or none of the modes is that of the denoiser drawn; else as
            :func:`span_corruption`.

    References:
        Tay et al. (2022), arXiv:2205.05131.

    Example:
        >>> modes, generator = {"R": 90, "S": 91, "X": 92}, torch.Generator().manual_seed(2)
        >>> ids, targets = ul2(torch.arange(1, 9), sentinels=[99, 98], modes=modes, generator=generator)
        >>> ids.tolist(), targets.tolist()
        ([91, 1, 2, 3, 4, 5, 6, 99], [99, 7, 8])
    """
    check_at_least("number of denoisers", len(denoisers), 1)
    if missing := {denoiser.mode for denoiser in denoisers} - set(modes):
        raise ValueError(f"modes has ids for {sorted(modes)}, expected one for {sorted(missing)} too")
    denoiser = denoisers[int(torch.randint(len(denoisers), (), generator=generator))]
    pair = denoise(ids, denoiser, sentinels=sentinels, eos_id=eos_id, generator=generator)
    return Corrupted(torch.cat([ids.new_tensor([modes[denoiser.mode]]), pair.ids]), pair.targets)


def _draw(rate: float, ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return booleans of the shape of ``ids``, each True with probability ``rate``."""
    return torch.bernoulli(torch.full(ids.shape, rate, device=ids.device), generator=generator).bool()


def _draw_order(rate: float, spm_rate: float, generator: torch.Generator | None) -> Callable[..., Tensor] | None:
    """Return the order of a document, None for the usual one."""
    _check_share("rate", rate, "[]")
    _check_share("spm_rate", spm_rate, "[]")
    reorder, suffix_first = torch.rand(2, generator=generator).tolist()
    if reorder >= rate:
        return None
    return spm if suffix_first < spm_rate else psm


def _composition(total: int, parts: int, generator: torch.Generator | None) -> Tensor:
    """Return ``(parts,)`` positive integers with a sum, all such vectors equally likely: cut at distinct places."""
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    return torch.cat([cuts, torch.tensor([total])]).diff(prepend=torch.tensor([0]))


def _starts(runs: Tensor) -> Tensor:
    """Return ``(T,)`` where a run of True begins."""
    return runs & ~torch.cat([runs.new_zeros(1), runs[:-1]])


def _mark_runs(ids: Tensor, runs: Tensor, marks: Tensor) -> Tensor:
    """Return the ids with the first run of True replaced by the first mark, the second by the second, and so on."""
    first = _starts(runs)
    out = ids.clone()
    out[first] = marks[: int(first.sum())]
    return out[first | ~runs]


def _sentinels(sentinels: Sequence[int], ids: Tensor, eos_id: int | None) -> Tensor:
    """Return the sentinels as a tensor, once it is sure that they can be told apart."""
    marks = ids.new_tensor(sentinels)
    if eos_id in sentinels:
        raise ValueError(f"eos_id is {eos_id}, one of the sentinels: take another id")
    check_equal("number of sentinels", len(sentinels), "number of different sentinels", len(set(sentinels)))
    if torch.isin(ids, marks).any():
        raise ValueError(f"the text holds {int(ids[torch.isin(ids, marks)][0])}, one of the sentinels")
    return marks


def _check_ids(ids: Tensor, least: int, vocab_size: int | None = None) -> None:
    """Check that there are integers, enough of them, and, if a size is given, inside the vocabulary."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids have dtype {ids.dtype}, expected integers")
    check_at_least("number of tokens of a text", ids.shape[-1] if ids.ndim else 0, least)
    if vocab_size is not None and ids.numel() and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"ids are from {ids.min()} to {ids.max()}, expected 0 to {vocab_size - 1}")


def _check_token(name: str, token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise ValueError(f"{name} is {token}, expected 0 to {vocab_size - 1}, an id of the vocabulary")


def _check_share(name: str, share: float, ends: str) -> None:
    inside = 0 < share < 1 if ends == "()" else 0 <= share <= 1
    if not inside:  # also where it is NaN
        raise ValueError(f"{name} is {share}, expected a number in {ends[0]}0, 1{ends[1]}")


def _check_mean_length(mean_length: float) -> None:
    if not mean_length >= 1:
        raise ValueError(f"mean_length is {mean_length}, expected at least 1: a span has at least one token")
