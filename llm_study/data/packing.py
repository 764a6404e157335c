"""Packing: documents of many lengths in rows of one length, so that hardly anything of a batch is padding.

Which documents share a row is a problem of bins: :func:`first_fit_decreasing` and :func:`best_fit_decreasing` need
little more than the fewest rows possible, of which :func:`least_rows` gives a lower bound. :func:`pack` lays the
documents out; :func:`concatenate` strings them together and cuts every so many tokens, which leaves no room unused but
cuts documents in two.

Documents that share a row must not see each other, and each counts its positions from 0. With
:func:`block_diagonal_mask` and ``positions`` a model gives every token the logits that it would get if its document
stood alone, so a mean over tokens has the same value and the same gradient, packed or not. A mean of the documents' own
means has not, for long documents count no more in it than short ones: :func:`unpack` gives back to each its losses.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal, check_ndim
from llm_study.data.objectives import IGNORE

__all__ = [
    "Packed",
    "pack",
    "concatenate",
    "cut",
    "unpack",
    "block_diagonal_mask",
    "first_fit_decreasing_reference",
    "first_fit_decreasing",
    "best_fit_decreasing_reference",
    "best_fit_decreasing",
    "least_rows",
]

PADDING = -1  # the segment of a position where no document stands


@dataclass(frozen=True, eq=False)
class Packed:
    """Documents in rows of one length; four tensors of the same shape.

    Args:
        ids: ``(B, T)`` token ids.
        targets: ``(B, T)`` what is to be predicted at each position; -100 where nothing is.
        positions: ``(B, T)`` position of each token in its document, or in the piece of it that stands in the row; 0
            for padding.
        segments: ``(B, T)`` number of the document that each token is from; -1 for padding.

    Example:
        >>> packed = pack([[5, 6, 7], [8, 9]], 8)
        >>> packed.segments
        tensor([[ 0,  0,  0,  1,  1, -1, -1, -1]])
        >>> packed.efficiency
        0.625
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor

    @property
    def efficiency(self) -> float:
        """Share of the positions where a token stands."""
        return (self.segments != PADDING).double().mean().item()


# --- which documents share a row


def first_fit_decreasing_reference(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing, by trying all rows; :func:`first_fit_decreasing` is the fast twin.

    Args:
        lengths: number of tokens of each document, from 1 to ``capacity``.
        capacity: number of tokens that a row has room for.

    Returns:
        For each row the numbers of the documents that it holds.

    Cost: a look at each row for each document.

    References:
        Johnson, Demers, Ullman, Garey and Graham (1974), Worst-Case Performance Bounds for Simple One-Dimensional
        Packing Algorithms, SIAM Journal on Computing 3(4).

    Example:
        >>> first_fit_decreasing_reference([3, 5, 2, 6], 8)
        [[3, 2], [1, 0]]
    """
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled = [sum(lengths[j] for j in row) for row in rows]
        fits = [row for row, n in enumerate(filled) if n + lengths[i] <= capacity]
        if fits:
            rows[fits[0]].append(i)
        else:
            rows.append([i])
    return rows


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    r"""First-fit decreasing: the longest document first, each into the first row that has room for it.

    The rows are the leaves of a tree whose nodes know the largest room below them, so that the first row with enough of
    it is found by walking down.

    With :math:`m` rows at best, it never takes more than :math:`\frac{11}{9}m + \frac{6}{9}`.

    Args:
        lengths: number of tokens of each document, from 1 to ``capacity``.
        capacity: number of tokens that a row has room for.

    Returns:
        For each row the numbers of the documents that it holds, the longest first.

    Raises:
        ValueError: if a document is empty, or longer than a row.

    Cost: ``n * log(n)`` steps for ``n`` documents.

    References:
        Johnson, Demers, Ullman, Garey and Graham (1974), Worst-Case Performance Bounds for Simple One-Dimensional
        Packing Algorithms, SIAM Journal on Computing 3(4). The bound: Dósa (2007), The Tight Bound of First Fit
        Decreasing Bin-Packing Algorithm Is FFD(I) ≤ 11/9 OPT(I) + 6/9.

    Example:
        >>> first_fit_decreasing([3, 5, 2, 6], 8)
        [[3, 2], [1, 0]]
    """
    order, rows = _longest_first(lengths, capacity), list[list[int]]()
    leaves = 1 << max(len(order) - 1, 0).bit_length()  # a power of two, at least as many as there will be rows
    room = [capacity] * (2 * leaves)  # node i has the children 2 i and 2 i + 1
    for i in order:
        node = 1
        while node < leaves:
            node *= 2
            node += room[node] < lengths[i]  # to the right only where the left has not enough
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(i)
        room[node] -= lengths[i]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def best_fit_decreasing_reference(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing, by trying all rows; :func:`best_fit_decreasing` is the fast twin.

    Args:
        lengths: number of tokens of each document, from 1 to ``capacity``.
        capacity: number of tokens that a row has room for.

    Returns:
        For each row the numbers of the documents that it holds.

    Cost: a look at each row for each document.

    References:
        Johnson, Demers, Ullman, Garey and Graham (1974), Worst-Case Performance Bounds for Simple One-Dimensional
        Packing Algorithms, SIAM Journal on Computing 3(4).

    Example:
        >>> best_fit_decreasing_reference([5, 6, 2], 8)  # the 2 fills up the row of the 6
        [[1, 2], [0]]
    """
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled = [sum(lengths[j] for j in row) for row in rows]
        fits = [row for row, n in enumerate(filled) if n + lengths[i] <= capacity]
        if fits:
            rows[max(fits, key=lambda row: filled[row])].append(i)  # the fullest; of equal ones the first
        else:
            rows.append([i])
    return rows


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    r"""Best-fit decreasing: the longest document first, each into the row that it fills best.

    Rows are kept by the room that is left in them: lengths are integers, so there are never more than ``capacity``
    different rooms, however many documents there are.

    With :math:`m` rows at best, it never takes more than :math:`\frac{11}{9}m + 4`.

    Args:
        lengths: number of tokens of each document, from 1 to ``capacity``.
        capacity: number of tokens that a row has room for.

    Returns:
        For each row the numbers of the documents that it holds, the longest first.

    Raises:
        ValueError: if a document is empty, or longer than a row.

    Cost: ``n * log(n)`` steps for ``n`` documents, and up to ``n * capacity`` copies of a list entry, which are fast.

    References:
        Johnson, Demers, Ullman, Garey and Graham (1974), Worst-Case Performance Bounds for Simple One-Dimensional
        Packing Algorithms, SIAM Journal on Computing 3(4). For texts: Krell et al. (2021), arXiv:2107.02027; Ding et
        al. (2024), arXiv:2404.10830.

    Example:
        >>> best_fit_decreasing([5, 6, 2], 8)  # the 2 fills up the row of the 6
        [[1, 2], [0]]
    """
    rows, rooms = list[list[int]](), list[int]()  # rooms: those that some row has left, ascending
    waiting: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room a heap of numbers of rows
    for i in _longest_first(lengths, capacity):
        smallest = bisect_left(rooms, lengths[i])
        if smallest < len(rooms):
            room = rooms[smallest]
            row = heappop(waiting[room])
            if not waiting[room]:
                del rooms[smallest]
        else:
            row, room = len(rows), capacity
            rows.append([])
        rows[row].append(i)
        left = room - lengths[i]
        if not waiting[left]:
            insort(rooms, left)
        heappush(waiting[left], row)
    return rows


def least_rows(lengths: Sequence[int], capacity: int) -> int:
    r"""Number of rows that no packing can do without.

    Let :math:`C` be the capacity and :math:`0 \le \alpha \le C/2`. Documents longer than :math:`C - \alpha` want a row
    that they share with none of length :math:`\alpha` or more, those longer than :math:`C/2` want each a row of its
    own, and what the latter leave is all there is for the documents of length :math:`\alpha` to :math:`C/2` before
    further rows are needed:

    .. math::

        m \ge \lvert J_1\rvert + \lvert J_2\rvert +
        \max\!\left(0,\; \left\lceil \frac{1}{C}\Bigl(\sum_{J_3} n_i - \sum_{J_2} (C - n_i)\Bigr)\right\rceil\right)

    with :math:`J_1 = \{n_i > C - \alpha\}`, :math:`J_2 = \{C - \alpha \ge n_i > C/2\}` and
    :math:`J_3 = \{C/2 \ge n_i \ge \alpha\}`. The largest of these bounds is taken; :math:`\alpha = 0` gives at least
    the number of tokens over :math:`C`.

    Args:
        lengths: number of tokens of each document, from 1 to ``capacity``.
        capacity: number of tokens that a row has room for.

    Returns:
        The bound.

    Raises:
        ValueError: if a document is empty, or longer than a row.

    Cost: ``D**2`` steps for ``D`` different lengths.

    References:
        Martello and Toth (1990), Lower Bounds and Reduction Procedures for the Bin Packing Problem, Discrete Applied
        Mathematics 28(1).

    Example:
        >>> least_rows([5, 5, 5], 8)  # 15 tokens would fit into two rows of 8, but no two of the documents do
        3
        >>> least_rows([6, 3, 3, 3], 8)  # nor does a 3 fit beside the 6, and beside two others
        3
    """
    _longest_first(lengths, capacity)
    best, count, half = 0, Counter(lengths), capacity / 2
    for alpha in {0, *(n for n in count if n <= half)}:
        alone = sum(c for n, c in count.items() if n > capacity - alpha)
        wide = {n: c for n, c in count.items() if half < n <= capacity - alpha}
        rest = sum(c * n for n, c in count.items() if alpha <= n <= half)
        rest -= sum(c * (capacity - n) for n, c in wide.items())
        best = max(best, alone + sum(wide.values()) + max(0, -(-rest // capacity)))
    return best


# --- the rows


def pack(
    documents: Sequence[Tensor | Sequence[int]],
    length: int,
    *,
    targets: Sequence[Tensor | Sequence[int]] | None = None,
    fit: Callable[[Sequence[int], int], list[list[int]]] = best_fit_decreasing,
    pad_id: int = 0,
) -> Packed:
    """Lay documents out in rows, none of them cut.

    Args:
        documents: ``(n,)`` token ids of each document, with the ids that mark its beginning and end, if any.
        length: number of tokens ``T`` of a row; no document may be longer, see :func:`cut`.
        targets: ``(n,)`` for each document what is to be predicted at each of its positions. Default: the token that
            follows, and nothing, -100, at the last.
        fit: ``(lengths, capacity) → rows``, says which documents share a row.
        pad_id: id that fills the rows up.

    Returns:
        The rows. Within a row documents stand in the order that ``fit`` says, padding stands at the end.

    Raises:
        ValueError: if there is no document, one is empty, too long or no vector of integers, or there are not as many
            targets as tokens.

    Cost: that of ``fit``, and one copy of the tokens.

    References:
        Krell et al. (2021), arXiv:2107.02027; Ding et al. (2024), arXiv:2404.10830.

    Example:
        >>> packed = pack([[5, 6, 7], [1, 2, 3, 4], [8, 9]], 5)
        >>> packed.ids
        tensor([[1, 2, 3, 4, 0],
                [5, 6, 7, 8, 9]])
        >>> packed.targets
        tensor([[   2,    3,    4, -100, -100],
                [   6,    7, -100,    9, -100]])
        >>> packed.positions
        tensor([[0, 1, 2, 3, 0],
                [0, 1, 2, 0, 1]])
    """
    texts = _tensors("document", documents)
    aims = None if targets is None else _tensors("targets of document", targets)
    if aims is not None:
        check_equal("number of targets", [len(x) for x in aims], "number of tokens", [len(x) for x in texts])
    rows = fit([len(x) for x in texts], length)
    filled = torch.tensor([sum(len(texts[i]) for i in row) for row in rows], device=texts[0].device)
    real = torch.arange(length, device=filled.device) < filled[:, None]  # (B, T)
    return _lay_out(texts, [i for row in rows for i in row], real, targets=aims, pad_id=pad_id)


def concatenate(documents: Sequence[Tensor | Sequence[int]], length: int, *, pad_id: int = 0) -> Packed:
    """String documents together and cut the string into rows, as it is done where nothing may stay empty.

    Only the last row has padding. A document that goes on in the next row is cut: what comes after does not see what
    came before, and its positions begin again at 0. The last token before a cut still predicts the first one after it.

    Args:
        documents: ``(n,)`` token ids of each document, with the ids that mark its beginning and end, if any.
        length: number of tokens ``T`` of a row.
        pad_id: id that fills the last row up.

    Returns:
        The rows. The last token of a document predicts nothing. Who wants documents in one row to see each other, as
        GPT-3 did, leaves out ``positions`` and the mask.

    Raises:
        ValueError: if there is no document, one is empty or no vector of integers, or ``length`` is below 1.

    Cost: one copy of the tokens.

    References:
        Brown et al. (2020), arXiv:2005.14165, appendix B. What the cuts do: Ding et al. (2024), arXiv:2404.10830.

    Example:
        >>> packed = concatenate([[5, 6, 7], [1, 2, 3, 4]], 5)
        >>> packed.ids
        tensor([[5, 6, 7, 1, 2],
                [3, 4, 0, 0, 0]])
        >>> packed.targets
        tensor([[   6,    7, -100,    2,    3],
                [   4, -100, -100, -100, -100]])
        >>> packed.positions
        tensor([[0, 1, 2, 0, 1],
                [0, 1, 0, 0, 0]])
    """
    check_at_least("length", length, 1)
    texts = _tensors("document", documents)
    total = sum(len(x) for x in texts)
    slots = torch.arange(-(-total // length) * length, device=texts[0].device)  # of as many rows as it takes
    return _lay_out(texts, range(len(texts)), slots.view(-1, length) < total, targets=None, pad_id=pad_id)


def cut(documents: Sequence[Tensor | Sequence[int]], length: int) -> list[Tensor]:
    """Cut documents that are longer than a row, so that :func:`pack` takes them; the others stay whole.

    Args:
        documents: ``(n,)`` token ids of each document.
        length: number of tokens of a row.

    Returns:
        ``(n,)`` the pieces, in the order of the documents. All pieces of a document but its last are ``length`` long.

    Raises:
        ValueError: if there is no document, one is empty or no vector of integers, or ``length`` is below 1.

    References:
        Ding et al. (2024), arXiv:2404.10830.

    Example:
        >>> documents = [torch.arange(n) for n in (14, 7, 5, 2, 3)]
        >>> [len(piece) for piece in cut(documents, 8)]
        [8, 6, 7, 5, 2, 3]
        >>> pack(cut(documents, 8), 8).efficiency  # 31 tokens in 4 rows of 8
        0.96875
    """
    check_at_least("length", length, 1)
    return [piece for x in _tensors("document", documents) for piece in torch.split(x, length)]


def unpack(x: Tensor, segments: Tensor) -> list[Tensor]:
    """Collect what belongs to each document: its ids, its losses, its hidden states.

    Args:
        x: ``(B, T, …)`` something for each position.
        segments: ``(B, T)`` number of the document at each position, negative for padding; see :class:`Packed`.

    Returns:
        ``(n, …)`` for each document what stood at its positions, in the order of the text.

    Raises:
        ValueError: if ``x`` does not begin with the shape of ``segments``.

    Example:
        >>> packed = pack([[5, 6, 7], [1, 2, 3, 4], [8, 9]], 5)
        >>> [text.tolist() for text in unpack(packed.ids, packed.segments)]
        [[5, 6, 7], [1, 2, 3, 4], [8, 9]]
    """
    check_equal("first two sizes of x", tuple(x.shape[:2]), "shape of segments", tuple(segments.shape))
    real = segments >= 0
    numbers, order = segments[real].sort(stable=True)
    return list(torch.split(x[real][order], numbers.bincount().tolist()))


def block_diagonal_mask(segments: Tensor) -> Tensor:
    """Mask that lets a token see the tokens of its own document only.

    It says nothing about what comes later: a decoder hides that by itself.

    Args:
        segments: ``(B, T)`` number of the document at each position, negative for padding; see :class:`Packed`.

    Returns:
        ``(B, T, T)`` boolean mask, True where the token of a row may see that of a column. Padding sees nothing, and
        nothing sees padding.

    Raises:
        ValueError: if ``segments`` has not two dimensions.

    Cost: ``B * T**2`` bytes.

    References:
        Krell et al. (2021), arXiv:2107.02027.

    Example:
        >>> block_diagonal_mask(torch.tensor([[0, 0, 1, -1]]))[0].int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 0, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    check_ndim("segments", segments.shape, ("B", "T"), hint="use segments[None] for a batch of one")
    return (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, :, None]


def _longest_first(lengths: Sequence[int], capacity: int) -> list[int]:
    """Return the numbers of the documents, the longest first, equal ones as they come; all must fit into a row."""
    for i, n in enumerate(lengths):
        if not 1 <= n <= capacity:
            hint = "leave it out" if n < 1 else "cut it, or make the rows longer"
            raise ValueError(f"document {i} has {n} tokens, expected 1 to {capacity}: {hint}")
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def _tensors(what: str, documents: Sequence[Tensor | Sequence[int]]) -> list[Tensor]:
    """Return each document as a vector of integers."""
    check_at_least("number of documents", len(documents), 1)
    found = [torch.as_tensor(x) for x in documents]
    for i, x in enumerate(found):
        check_ndim(f"{what} {i}", x.shape, ("n",))
        check_at_least(f"number of tokens of {what} {i}", len(x), 1, hint="leave it out")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"{what} {i} has dtype {x.dtype}, expected integers")
    return [x.long() for x in found]  # narrower or unsigned integers have no -100


def _lay_out(
    texts: list[Tensor], order: Sequence[int], real: Tensor, *, targets: list[Tensor] | None, pad_id: int
) -> Packed:
    """Put documents in this order wherever ``real``, ``(B, T)``, says that a token stands."""
    lengths = torch.tensor([len(texts[i]) for i in order], device=real.device)
    ends, string = lengths.cumsum(0), torch.cat([texts[i] for i in order])
    following = string.roll(-1).index_fill(0, ends - 1, IGNORE)
    positions = torch.arange(len(string), device=real.device) - (ends - lengths).repeat_interleave(lengths)
    column = torch.arange(real.shape[1], device=real.device).expand_as(real)[real]
    return Packed(
        ids=_fill(real, string, pad_id),
        targets=_fill(real, following if targets is None else torch.cat([targets[i] for i in order]), IGNORE),
        positions=_fill(real, torch.minimum(positions, column), 0),  # a piece that a row begins with begins anew
        segments=_fill(real, torch.tensor(order, device=real.device).repeat_interleave(lengths), PADDING),
    )


def _fill(real: Tensor, values: Tensor, padding: int) -> Tensor:
    """Return the values one after the other where there is a token, and padding elsewhere."""
    return values.new_full(real.shape, padding).masked_scatter(real, values)
