"""Text as bytes: ids of bytes, a small model of the next byte, and patches that begin where it is unsure.

A tokenizer without a vocabulary to train cannot meet an unknown word; the price is length. Entropy patching wins back
length without a vocabulary: bytes that a small model finds easy are grouped into one patch.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from llm_study.core.checks import check_at_least
from llm_study.tokenizers._files import check_special
from llm_study.tokenizers.base import check_text, split_special

__all__ = ["ByteTokenizer", "ByteNgram", "threshold_patches", "jump_patches", "cut_patches"]

BYT5_SPECIAL = ("<pad>", "</s>", "<unk>")


class ByteTokenizer:
    """A tokenizer whose tokens are the bytes of UTF-8, after a few special ones, as that of ByT5.

    Args:
        special_tokens: the first ids.
        n_extra: how many more special tokens ``<extra_id_0>``, ``<extra_id_1>``, … follow the bytes.

    Raises:
        ValueError: if ``n_extra`` is negative.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("hé")
        [107, 198, 172]
        >>> tokenizer.decode([107, 198, 172]), tokenizer.vocab_size
        ('hé', 384)
    """

    def __init__(self, *, special_tokens: Sequence[str] = BYT5_SPECIAL, n_extra: int = 125) -> None:
        check_at_least("n_extra", n_extra, 0)
        self.offset = len(special_tokens)
        extra = [f"<extra_id_{i}>" for i in range(n_extra)]
        self.special_tokens = (*special_tokens, *extra)
        self._special = {token: id for id, token in enumerate(special_tokens)}
        self._special |= {token: self.offset + 256 + i for i, token in enumerate(extra)}
        self._bytes = {self.offset + b: bytes([b]) for b in range(256)}
        self._bytes |= {id: token.encode() for token, id in self._special.items()}

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._bytes)

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Turn text into the ids of its bytes.

        Args:
            text: the text.
            allowed_special: special tokens that become their one id where the text spells them.

        Returns:
            The ids.

        Raises:
            ValueError: if the text holds a lone surrogate, or an allowed special token is none of this tokenizer's.
        """
        check_text(text)
        check_special(allowed_special, self.special_tokens)
        ids: list[int] = []
        for piece, special in split_special(text, allowed_special):
            ids += [self._special[piece]] if special else [self.offset + byte for byte in piece.encode()]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Args:
            ids: the ids.

        Returns:
            The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes; nothing is lost.

        Args:
            ids: the ids.

        Returns:
            The bytes.

        Raises:
            ValueError: if an id is not of this vocabulary.
        """
        found = []
        for id in ids:
            if id not in self._bytes:
                raise ValueError(f"id {id} is not in the vocabulary of {self.vocab_size} ids")
            found.append(self._bytes[id])
        return b"".join(found)


class ByteNgram:
    r"""A model of the next byte, from counts of what followed the last bytes; shorter contexts smooth longer ones.

    .. math:: p_k(v \mid u) = \frac{c(uv) + d(u)\, p_{k-1}(v \mid u_{2:})}{c(u) + d(u)}

    where :math:`d(u)` is the number of different bytes that followed :math:`u` (Witten and Bell), and :math:`p_{-1}` is
    uniform on 256 bytes. A context that was never seen hands the question on.

    Args:
        data: the bytes to count.
        order: how many bytes of context.

    Raises:
        ValueError: if ``order`` is negative.

    Example:
        >>> model = ByteNgram(b"abababac", order=1)
        >>> p = model.probabilities(b"a")
        >>> round(sum(p), 4), max(range(256), key=p.__getitem__) == ord("b")
        (1.0, True)
    """

    def __init__(self, data: bytes, *, order: int = 3) -> None:
        check_at_least("order", order, 0)
        self.order = order
        self._followers: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
        for i, byte in enumerate(data):
            for k in range(min(i, order) + 1):
                self._followers[data[i - k : i]][byte] += 1

    def probabilities(self, context: bytes) -> list[float]:
        """Return the probability of each of the 256 bytes after a context.

        Args:
            context: what stands before; only its last ``order`` bytes matter.

        Returns:
            256 numbers that sum to one.
        """
        p = [1 / 256] * 256
        for k in range(min(len(context), self.order) + 1):
            followers = self._followers.get(context[len(context) - k :])
            if followers:
                different, total = len(followers), followers.total()
                p = [(followers[v] + different * p[v]) / (total + different) for v in range(256)]
        return p

    def entropies(self, data: bytes) -> list[float]:
        """Return how unsure the model is before each byte of a text.

        Args:
            data: the bytes.

        Returns:
            For each byte the entropy of its prediction from those before it, from 0 to 8 bits.
        """
        known: dict[bytes, float] = {}
        out = []
        for i in range(len(data)):
            context = data[max(0, i - self.order) : i]
            if context not in known:
                known[context] = -math.fsum(p * math.log2(p) for p in self.probabilities(context) if p)
            out.append(known[context])
        return out


def threshold_patches(entropies: Sequence[float], threshold: float) -> list[int]:
    r"""Begin a patch where the model is unsure: :math:`H(x_t) > \theta`.

    Args:
        entropies: the entropy before each byte, in bits.
        threshold: the largest that does not begin a patch.

    Returns:
        The index of the first byte of each patch; the first byte of all begins one.

    References:
        Pagnoni et al. (2025), arXiv:2412.09871, entropy patching with a global threshold.

    Example:
        >>> threshold_patches([0.5, 3.0, 1.0, 2.5], threshold=2.0)
        [0, 1, 3]
    """
    return [t for t, h in enumerate(entropies) if t == 0 or h > threshold]


def jump_patches(entropies: Sequence[float], threshold: float) -> list[int]:
    r"""Begin a patch where the model becomes less sure: :math:`H(x_t) - H(x_{t-1}) > \theta`.

    Args:
        entropies: the entropy before each byte, in bits.
        threshold: the largest rise that does not begin a patch.

    Returns:
        The index of the first byte of each patch; the first byte of all begins one.

    References:
        Pagnoni et al. (2025), arXiv:2412.09871, the approximate monotonic constraint.

    Example:
        >>> jump_patches([0.5, 3.0, 1.0, 2.5], threshold=2.0)
        [0, 1]
    """
    return [t for t, h in enumerate(entropies) if t == 0 or h - entropies[t - 1] > threshold]


def cut_patches(data: bytes, starts: Sequence[int]) -> list[bytes]:
    """Cut bytes into patches.

    Args:
        data: the bytes.
        starts: index of the first byte of each patch, the first of them 0, rising.

    Returns:
        The patches, none of them empty; joined they are the bytes.

    Raises:
        ValueError: if ``starts`` does not begin with 0, does not rise, or goes beyond the data.

    Example:
        >>> cut_patches(b"patches", [0, 3, 6])
        [b'pat', b'che', b's']
    """
    ends = [*starts[1:], len(data)][: len(starts)]
    if list(starts[:1]) != [0] * bool(data) or any(a >= b for a, b in zip(starts, ends, strict=True)):
        raise ValueError(f"starts is {list(starts)}, expected 0 and rising indices below the {len(data)} bytes")
    return [data[a:b] for a, b in zip(starts, ends, strict=True)]
