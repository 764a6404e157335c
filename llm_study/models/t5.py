"""T5: an encoder reads the source, a decoder writes the target, and positions are numbers that are added to scores.

Each stack has one table of such numbers, in its first layer, and all of its layers use it. Scores are not scaled, norms
are RMSNorm before each sublayer, and nothing has a bias. Parameters have the names of Hugging Face's
``T5ForConditionalGeneration``. Both generations are here: T5, with ReLU and a head tied to the embedding, and version
1.1 with Flan-T5, with a gated GELU and a head of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as memoized
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_boolean, check_divides, check_equal
from llm_study.core.config import T5Config
from llm_study.functional.activations import activation
from llm_study.functional.attention import attention, biased_attention, causal_mask, merge_heads, split_heads
from llm_study.functional.positions import t5_bias
from llm_study.models._common import check_kept, check_mask, seen
from llm_study.models.base import PretrainedModel
from llm_study.nn.basic import RMSNorm
from llm_study.nn.cache import Cache

__all__ = ["T5ForConditionalGeneration", "GivenSource", "shift_right"]

COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of the embedding, in some files
HEAD, EMBEDDING = "lm_head.weight", "shared.weight"
IGNORED = -100


class T5ForConditionalGeneration(PretrainedModel):
    r"""T5 with its head: after each token of a target, scores of the next one, given a source.

    The score of query :math:`i` and key :math:`j` in head :math:`h` is

    .. math:: z_{hij} = q_{hi} \cdot k_{hj} + b_{h,\,\beta(j - i)}

    in the encoder and in the decoder's attention to itself, where :math:`\beta` is the bucket of a distance (see
    :func:`~llm_study.functional.positions.t5_buckets`); where the decoder attends to the source there is no :math:`b`.

    Fresh matrices are normal with variance one over the number of their inputs, those of queries smaller by the width
    of a head, which stands for the missing scale; embeddings and a head of its own have variance 1.

    Args:
        config: sizes, activation, ε of the norms and probability of dropout.

    Attributes:
        shared: ``(V, D)`` embedding of source and target.
        encoder: the stack that reads.
        decoder: the stack that writes.
        lm_head: ``(D → V)``; its matrix is that of ``shared`` where ``config.tie_word_embeddings`` says so.

    Cost: with ``I = H * Dh``, and ``G`` 3 with a gate and 2 without, ``L * (8 * D * I + 2 * G * D * F + 4 * S * I)``
    FLOPs for each of ``S`` tokens of the source, ``4 * L * D * I`` for its keys and values in the decoder, and ``L *
    (12 * D * I + 2 * G * D * F + 4 * (T + S) * I) + 2 * V * D`` for each of ``T`` tokens of the target.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 2.1.

    Example:
        >>> config = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        >>> model = T5ForConditionalGeneration(config).eval()
        >>> source, target = torch.tensor([[5, 6, 7, 1]]), torch.tensor([[8, 9, 1]])
        >>> logits = model(source, shift_right(target))
        >>> logits.shape
        torch.Size([1, 3, 97])
        >>> loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())  # what training makes smaller

        Decoding is that of every decoder:

        >>> from llm_study.generation import generate
        >>> given = model.given(source)  # the source is read once
        >>> generate(given, given.start, max_new_tokens=4).shape
        torch.Size([1, 5])
    """

    config: T5Config
    tied: ClassVar[Mapping[str, str]] = {HEAD: EMBEDDING}
    unused: ClassVar[tuple[str, ...]] = (  # old files: a table that is not used
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(config, config.num_layers, decodes=False)
        self.decoder = _Stack(config, config.num_decoder_layers, decodes=True)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        _draw(self, config)
        self.tie()

    def forward(
        self,
        ids: Tensor,
        decoder_ids: Tensor,
        *,
        mask: Tensor | None = None,
        decoder_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
    ) -> Tensor:
        """Return a score of each token of the vocabulary as the next one of the target, after each of its positions.

        Args:
            ids: ``(B, S)`` token ids of the source.
            decoder_ids: ``(B, T)`` token ids of the target, shifted right, see :func:`shift_right`.
            mask: ``(B, S)`` boolean, True where a token of the source is real; padding may stand on either side. Or
                ``(B, S, S)``, True where the token of a row may see that of a column. Default: all are real.
            decoder_mask: ``(B, T)`` or ``(B, T, T)``, the same for the target, where what comes later is hidden anyway.
                Default: all are real.
            cross_mask: ``(B, T, S)`` boolean, True where a token of the target may see one of the source. Default: what
                a mask ``(B, S)`` says.

        Returns:
            ``(B, T, V)`` logits. Those at positions of padding mean nothing.

        Raises:
            ValueError: if an id is outside the vocabulary, batch sizes differ, a mask does not fit or is not boolean,
                or ``mask`` is ``(B, S, S)`` and there is no ``cross_mask``.
        """
        memory = self.encode(ids, mask=mask)
        if cross_mask is None and mask is not None and mask.ndim == 3:
            raise ValueError(f"mask has shape {tuple(mask.shape)}: say in cross_mask, (B, T, S), what the target sees")
        return self.decode(
            decoder_ids, memory, mask=decoder_mask, memory_mask=mask if cross_mask is None else cross_mask
        )

    def encode(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Read the source.

        Args:
            ids: ``(B, S)`` token ids of the source.
            mask: ``(B, S)`` or ``(B, S, S)`` boolean, as in :meth:`forward`. Default: all tokens are real.

        Returns:
            ``(B, S, D)`` memory, one vector for each token of the source, which :meth:`decode` looks at.

        Raises:
            ValueError: if an id is outside the vocabulary, or the mask does not fit or is not boolean.
        """
        self.check_ids(ids)
        if mask is not None:
            check_mask(mask, ids)
        memory: Tensor = self.encoder(self.shared(ids), mask=mask)
        return memory

    def decode(
        self, decoder_ids: Tensor, memory: Tensor, *, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits of the next token after each one of the target, given what was read.

        Args:
            decoder_ids: ``(B, T)`` token ids of the target, shifted right.
            memory: ``(B, S, D)`` what :meth:`encode` returned.
            mask: ``(B, T)`` or ``(B, T, T)`` boolean, as ``decoder_mask`` in :meth:`forward`. Default: all are real.
            memory_mask: ``(B, S)`` boolean, True where a token of the source is real, or ``(B, T, S)``, True where a
                token of the target may see it. Default: all of them everywhere.

        Returns:
            ``(B, T, V)`` logits.

        Raises:
            ValueError: if an id is outside the vocabulary, batch sizes differ, or a mask does not fit or is not
                boolean.
        """
        self.check_ids(decoder_ids, name="decoder_ids")
        check_equal("batch size of decoder_ids", len(decoder_ids), "batch size of the source", len(memory))
        if mask is not None:
            check_mask(mask, decoder_ids, name="decoder_mask")
        if memory_mask is not None:
            _check_memory_mask(memory_mask, (*decoder_ids.shape, memory.shape[1]))
        pairs = self.decoder.pairs(memory)
        return self.head(self.decoder(self.shared(decoder_ids), mask=mask, pairs=pairs, memory_mask=memory_mask))

    def head(self, x: Tensor) -> Tensor:
        """Turn what the decoder gives into logits.

        Args:
            x: ``(B, T, D)`` normalized vectors.

        Returns:
            ``(B, T, V)`` logits.
        """
        scaled = x * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else x
        logits: Tensor = self.lm_head(scaled)
        return logits

    def given(self, ids: Tensor, *, mask: Tensor | None = None) -> "GivenSource":
        """Read a source, and return the decoder that knows it, for :mod:`llm_study.generation.decode`.

        Args:
            ids: ``(B, S)`` token ids of the source.
            mask: ``(B, S)`` boolean, True where a token is real. Default: all are.

        Returns:
            A language model of the target.

        Raises:
            ValueError: if an id is outside the vocabulary, or the mask does not fit or is not boolean.
        """
        return GivenSource(self, ids, mask=mask)

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what a file says twice: the embedding, under the names of encoder and decoder.

        Args:
            tensors: ``(…)`` tensors by their names in the file.

        Returns:
            ``(…)`` the same; a copy of the embedding stays only where it is none, to be refused.
        """
        found = dict(tensors)
        for name in COPIES:
            if name in found and torch.equal(found[name], found.setdefault(EMBEDDING, found[name])):
                del found[name]
        return found

    def load_hub(self, tensors: Mapping[str, Tensor], *, source: object = "the given tensors") -> Self:
        """Copy the tensors of a folder into the parameters; a head of version 1.1 that is not tied becomes its own.

        Transformers 5 writes ``tie_word_embeddings`` as true whether it ties or not: with ``scale_decoder_outputs``
        false, the tensors decide.

        Args:
            tensors: ``(…)`` what the files hold, by name.
            source: where they are from, for messages.

        Returns:
            The model itself.

        Raises:
            ValueError: if tensors are missing, superfluous or of another shape, or if the head differs from the
                embedding in a model of the first generation.
        """
        head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
        tied = self.config.tie_word_embeddings and not self.config.scale_decoder_outputs
        if tied and head is not None and embedding is not None and not torch.equal(head, embedding):
            self.config = replace(self.config, tie_word_embeddings=False)
            self.lm_head.weight = nn.Parameter(self.shared.weight.detach().clone())
        return super().load_hub(tensors, source=source)


class GivenSource:
    """The decoder of a T5 that has read a source: a language model, as :mod:`llm_study.generation.decode` asks for one.

    The source is read once, and so are the keys and values that the decoder's layers take from it. No gradients are
    kept.

    Args:
        model: the model; call its ``eval()`` first.
        ids: ``(B, S)`` token ids of the source.
        mask: ``(B, S)`` boolean, True where a token of the source is real. Default: all are.

    Attributes:
        config: that of the model.
        start: ``(B, 1)`` what the targets begin with.

    Raises:
        ValueError: if an id is outside the vocabulary, or the mask is not boolean or not of the shape of ``ids``.

    Cost: that of the encoder, once; for each token of the target that of the decoder.

    Example:
        >>> from llm_study.generation import generate
        >>> config = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        >>> model = T5ForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
        >>> given = model.given(ids, mask=ids > 0)
        >>> greedy = generate(given, given.start, max_new_tokens=3)
        >>> greedy.shape
        torch.Size([2, 4])
        >>> torch.equal(given(greedy[:, :-1]).argmax(-1), greedy[:, 1:])  # without a cache
        True
    """

    def __init__(self, model: T5ForConditionalGeneration, ids: Tensor, *, mask: Tensor | None = None) -> None:
        if mask is not None:
            check_equal("shape of mask", tuple(mask.shape), "shape of ids", tuple(ids.shape))
        with torch.no_grad():
            self._pairs = model.decoder.pairs(model.encode(ids, mask=mask))
        self._model, self._mask = model, mask
        self._repeated = {1: (self._pairs, mask)}
        self.config = model.config
        self.start = ids.new_full((len(ids), 1), model.config.decoder_start_token_id)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights of the model.

        Returns:
            ``(…)`` tensors.
        """
        return self._model.parameters()

    def __call__(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Return the logits of the token of the target that follows each position.

        Args:
            ids: ``(B * n, T)`` token ids of targets; with a cache only those that are new. With ``n`` above 1 the
                first ``n`` rows go on from the first source, and so on, as in beam search.
            mask: ``(B * n, T)`` boolean, True where a token is real. Default: all are.
            positions: ``(B * n, T)`` not used: only distances count, and they are those of the columns.
            cache: keys and values of the tokens before, to which those of ``ids`` are added; one that keeps all of them
                in order, such as :class:`~llm_study.nn.cache.KVCache`. Default: none.
            logits_to_keep: for how many positions, the last ones, logits are worked out. Default: all.

        Returns:
            ``(B * n, T, V)`` logits, or fewer if ``logits_to_keep`` says so.

        Raises:
            ValueError: if an id is outside the vocabulary, the number of rows is no multiple of that of the sources,
                the mask does not fit or is not boolean, the tokens do not fit into the cache, or ``logits_to_keep`` is
                not 1 to ``T``.
        """
        self._model.check_ids(ids)
        check_kept(logits_to_keep, ids)
        check_divides("number of sources", len(self.start), "number of rows", len(ids))
        if mask is not None:
            check_mask(mask, ids, cached=cache is not None)
        if cache is not None:
            cache.begin(ids, mask)
        pairs, memory_mask = self._rows(len(ids) // len(self.start))
        x = self._model.decoder(self._model.shared(ids), mask=mask, pairs=pairs, memory_mask=memory_mask, cache=cache)
        if cache is not None:
            cache.end()
        return self._model.head(x if logits_to_keep is None else x[:, -logits_to_keep:])

    def _rows(self, n: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Return what the decoder sees of the sources, ``n`` times each; kept for the next token."""
        if n not in self._repeated:
            pairs = [(k.repeat_interleave(n, dim=0), v.repeat_interleave(n, dim=0)) for k, v in self._pairs]
            self._repeated = {n: (pairs, None if self._mask is None else self._mask.repeat_interleave(n, dim=0))}
        return self._repeated[n]


def shift_right(targets: Tensor, *, start_id: int = 0, pad_id: int = 0) -> Tensor:
    """Return what the decoder reads so that it predicts the targets: each token one place later, a start before them.

    Args:
        targets: ``(…, T)`` token ids, -100 where nothing is to be predicted.
        start_id: id that the decoder begins with, ``config.decoder_start_token_id``.
        pad_id: id that stands for -100, ``config.pad_token_id``.

    Returns:
        ``(…, T)`` token ids.

    References:
        Raffel et al. (2020), arXiv:1910.10683; the id of padding as the start is that of the released models.

    Example:
        >>> shift_right(torch.tensor([[8, 9, 1, -100, -100]]))
        tensor([[0, 8, 9, 1, 0]])
    """
    start = torch.full_like(targets[..., :1], start_id)
    shifted = torch.cat([start, targets[..., :-1]], dim=-1)
    return shifted.masked_fill(shifted == IGNORED, pad_id)


class _Stack(nn.Module):
    """Layers that are built alike, and a norm: the encoder or the decoder."""

    def __init__(self, config: T5Config, layers: int, *, decodes: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(config, decodes=decodes, biased=i == 0) for i in range(layers))
        self.final_layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout_rate)
        self.decodes, self.max_distance = decodes, config.relative_attention_max_distance

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None,
        pairs: Sequence[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return ``(B, T, D)``, normalized; with a cache, which has been told of it, ``mask`` is not looked at."""
        if mask is not None:
            mask = seen(mask) & causal_mask(x.shape[1], device=x.device) if self.decodes else seen(mask)
        dropout = self.drop.p if self.training else 0.0
        bias = memoized(self._bias)  # worked out once for all layers
        meet = partial(_meet, bias=bias, causal=self.decodes, dropout=dropout)
        look = partial(_look, mask=None if memory_mask is None else seen(memory_mask), dropout=dropout)
        x = self.drop(x)
        for i, block in enumerate(self.block):
            attend = partial(meet, mask=mask) if cache is None else partial(cache.attend, i, how=meet)
            x = block(x, attend, look, None if pairs is None else pairs[i])
        y: Tensor = self.drop(self.final_layer_norm(x))
        return y

    def pairs(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each layer the keys and values ``(B, H, S, Dh)`` of the source."""
        names = (f"block.{i}.layer.1.EncDecAttention" for i in range(len(self.block)))
        attentions: list[Any] = [self.get_submodule(name) for name in names]
        return [attention.pair(memory) for attention in attentions]

    def _bias(self, t: int, s: int) -> Tensor:
        """Return what is added to the scores of the last ``t`` of ``s`` positions, ``(H, T, S)``."""
        table = self.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        return t5_bias(table, t, s, bidirectional=not self.decodes, max_distance=self.max_distance)


class _Block(nn.Module):
    """A layer: attention to itself, in the decoder attention to the source, and a feed-forward part."""

    def __init__(self, config: T5Config, *, decodes: bool, biased: bool) -> None:
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [("SelfAttention", _Attention(config, biased=biased))]
        if decodes:
            parts.append(("EncDecAttention", _Attention(config, biased=False)))
        parts.append(("DenseReluDense", _FeedForward(config)))
        self.layer = nn.ModuleList(_Sublayer(config, name, part) for name, part in parts)

    def forward(
        self, x: Tensor, attend: Callable[..., Tensor], look: Callable[..., Tensor], pair: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        x = self.layer[0](x, attend)
        if pair is not None:
            x = self.layer[1](x, look, pair)
        y: Tensor = self.layer[-1](x)
        return y


class _Sublayer(nn.Module):
    """A norm, a part under the name that files have for it, and the residual sum."""

    def __init__(self, config: T5Config, name: str, part: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, part)
        self.layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, *how: object) -> Tensor:
        y: Tensor = x + self.drop(getattr(self, self.name)(self.layer_norm(x), *how))
        return y


class _Attention(nn.Module):
    """Projections around attention; in the first layer of a stack also the table of numbers for distances."""

    def __init__(self, config: T5Config, *, biased: bool) -> None:
        super().__init__()
        D, inner, self.n_heads = config.d_model, config.num_heads * config.d_kv, config.num_heads
        self.q, self.k, self.v = (nn.Linear(D, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, D, bias=False)
        if biased:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(B, H, S, Dh)``."""
        return split_heads(self.k(x), self.n_heads), split_heads(self.v(x), self.n_heads)

    def forward(self, x: Tensor, attend: Callable[..., Tensor], pair: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, (k, v) = split_heads(self.q(x), self.n_heads), self.pair(x) if pair is None else pair
        y: Tensor = self.o(merge_heads(attend(q, k, v)))
        return y


class _FeedForward(nn.Module):
    """Two linear layers with an activation between them; with a gate, three."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.is_gated_act
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)  # makes the gates
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.activation = activation(config.dense_act_fn)
        self.drop = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.wi_0(x)) * self.wi_1(x) if self.gated else self.activation(self.wi(x))
        y: Tensor = self.wo(self.drop(hidden))
        return y


def _meet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    bias: Callable[[int, int], Tensor],
    causal: bool,
    scale: float | None = None,
    dropout: float,
) -> Tensor:
    """Attend within a stack: a number for each distance is added to the scores; ``scale`` is a cache's, and ignored."""
    T, S = q.shape[2], k.shape[2]
    if mask is None and causal and T > 1:
        mask = causal_mask(T, S, device=q.device)
    if not dropout:
        return biased_attention(q, k, v, bias(T, S), mask=mask, scale=1.0)
    added = bias(T, S) if mask is None else torch.where(mask, bias(T, S), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, added, dropout_p=dropout, scale=1.0)


def _look(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend to the source, with neither scale nor distances."""
    if not dropout:
        return attention(q, k, v, mask=mask, scale=1.0)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=1.0)


def _draw(model: nn.Module, config: T5Config) -> None:
    """Draw fresh matrices: the variance of a sum is that of its terms, and a query is small, as no scale divides it."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 1.0 if name in (HEAD, EMBEDDING) else weight.shape[1] ** -0.5
            if name.endswith("relative_attention_bias.weight"):
                std = config.d_model**-0.5
            if name.endswith(".q.weight"):
                std *= config.d_kv**-0.5
            nn.init.normal_(weight, std=config.initializer_factor * std)


def _check_memory_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Check that a mask of the source is boolean, and ``(B, S)`` or ``(B, T, S)``."""
    check_boolean("mask of the source", mask.dtype, hint="True where a token may be seen: convert with .bool()")
    B, T, S = shape
    wanted = (B, S) if mask.ndim == 2 else (B, T, S)
    check_equal("shape of the mask of the source", tuple(mask.shape), "shape that fits", wanted)
