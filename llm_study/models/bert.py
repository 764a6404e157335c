"""BERT: an encoder whose positions all see each other, with layer normalization after each residual sum.

Parameters have the names of Hugging Face's ``BertForMaskedLM``. A file of the encoder alone (``BertModel``), as those
of sentence embeddings are, makes a model without a head.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.config import BertConfig
from llm_study.functional.activations import activation
from llm_study.functional.attention import attention, merge_heads, split_heads
from llm_study.models._common import check_indices, check_mask, draw, seen
from llm_study.models.base import PretrainedModel
from llm_study.nn.basic import LayerNorm

__all__ = ["BertOutput", "BertForMaskedLM"]

HEAD = "cls.predictions."


class BertOutput(NamedTuple):
    """What :class:`BertForMaskedLM` returns.

    Args:
        hidden: ``(B, T, D)`` the last hidden states, of which embeddings of texts are made.
        logits: ``(B, T, V)`` of the token at each position; None where the model has no head.

    Example:
        >>> hidden, logits = BertOutput(torch.zeros(1, 2, 3), None)
        >>> logits is None
        True
    """

    hidden: Tensor
    """The last hidden states."""
    logits: Tensor | None
    """A score of each token of the vocabulary at each position, or None."""


class BertForMaskedLM(PretrainedModel):
    """BERT, with the head that predicts masked tokens where there is one.

    Fresh matrices are normal with standard deviation ``config.initializer_range``, fresh biases are 0.

    Args:
        config: sizes, activation, ε of the norms and probabilities of dropout.

    Attributes:
        bert: embeddings and layers.
        cls: the head, whose matrix is that of the token embeddings where ``config.tie_word_embeddings`` says so; None
            after a file without a head was loaded.

    Cost: ``L * (8 * D**2 + 4 * D * F + 4 * T * D)`` FLOPs for each token, without biases and norms; the head adds
    ``2 * D**2 + 2 * V * D``.

    References:
        Devlin et al. (2018), arXiv:1810.04805, section 3.

    Example:
        >>> config = BertConfig(
        ...     vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        ... )
        >>> hidden, logits = BertForMaskedLM(config)(torch.tensor([[5, 6, 7]]))
        >>> hidden.shape, logits.shape
        (torch.Size([1, 3, 32]), torch.Size([1, 3, 97]))
    """

    tied: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    unused: ClassVar[tuple[str, ...]] = (
        r"bert\.pooler\.dense\.(weight|bias)",  # these two are of next-sentence prediction
        r"cls\.seq_relationship\.(weight|bias)",
        r"bert\.embeddings\.position_ids",  # old files: 0, 1, 2, …
    )

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = _Body(config)
        self.cls: nn.ModuleDict | None = nn.ModuleDict({"predictions": _Predictions(config)})
        self.apply(partial(draw, std=config.initializer_range))
        self.tie()

    @property
    def hub_name(self) -> str:
        """Name of the class by which transformers knows the model; written into ``config.json``."""
        return "BertModel" if self.cls is None else "BertForMaskedLM"

    def forward(
        self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, types: Tensor | None = None
    ) -> BertOutput:
        """Return the hidden states of a text, and the logits of the token at each position.

        Args:
            ids: ``(B, T)`` token ids.
            mask: ``(B, T)`` boolean, True where a token is real; padding may be on either side. What comes out at
                padding means nothing. Or ``(B, T, T)``, True where the token of a row may see that of a column.
                Default: all tokens are real.
            positions: ``(B, T)`` or ``(T,)`` integers. Default: 0, 1, 2, …, padding counted.
            types: ``(B, T)`` token types, 0 in the first text and 1 in the second. Default: 0 everywhere.

        Returns:
            Hidden states ``(B, T, D)`` and logits ``(B, T, V)``, or None in their place.

        Raises:
            ValueError: if an id is beyond the vocabulary, a position or a type beyond the learned ones, or a shape or a
                dtype does not fit.
        """
        self.check_ids(ids)
        hidden = self.bert(ids, mask, positions, types)
        return BertOutput(hidden, None if self.cls is None else self.cls["predictions"](hidden))

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change the names of a file into ours.

        Args:
            tensors: ``(…)`` tensors by their names in the file, with the prefix ``bert.`` or without it, norms with
                ``weight`` and ``bias`` or with the older ``gamma`` and ``beta``.

        Returns:
            ``(…)`` tensors by the names of our parameters.
        """
        return {_our_name(name): tensor for name, tensor in tensors.items()}

    @classmethod
    def to_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change our names into those of a file.

        Args:
            tensors: ``(…)`` tensors by the names of our parameters.

        Returns:
            ``(…)`` the same, without the prefix ``bert.`` where there is no head.
        """
        headless = not any(name.startswith(HEAD) for name in tensors)
        return {name.removeprefix("bert.") if headless else name: tensor for name, tensor in tensors.items()}

    def load_hub(self, tensors: Mapping[str, Tensor], *, source: object = "the given tensors") -> Self:
        """Copy the tensors of a folder into the parameters; where they have no tensor of the head, drop the head.

        Args:
            tensors: ``(…)`` what the files hold, by name.
            source: where they are from, for messages.

        Returns:
            The model itself.

        Raises:
            ValueError: if tensors are missing, superfluous or of another shape, or if only part of the head is there.
        """
        if not any(name.startswith(HEAD) for name in tensors):
            self.cls = None
        return super().load_hub(tensors, source=source)


class _Body(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, types: Tensor | None) -> Tensor:
        """Return ``(B, T, D)`` hidden states."""
        if mask is not None:
            check_mask(mask, ids)
            mask = seen(mask)  # (B, 1, 1 or T, T)
        hidden: Tensor = self.encoder(self.embeddings(ids, positions, types), mask)
        return hidden


class _Encoder(nn.Module):
    """The layers; files have a level of names for them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class _Embeddings(nn.Module):
    """The sum of the vectors of a token, of its position and of its type, normalized."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor | None, types: Tensor | None) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
        types = torch.zeros_like(ids) if types is None else types
        learned = self.position_embeddings.num_embeddings
        check_indices("positions", positions, ids, "max_position_embeddings", learned)
        check_indices("types", types, ids, "type_vocab_size", self.token_type_embeddings.num_embeddings)
        x = self.word_embeddings(ids) + self.token_type_embeddings(types) + self.position_embeddings(positions)
        y: Tensor = self.drop(self.LayerNorm(x))
        return y


class _Layer(nn.Module):
    """Attention and a feed-forward part, each followed by a residual sum and a norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(config), "output": _AddNorm(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.activation = activation(config.hidden_act)
        self.output = _AddNorm(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        y: Tensor = self.output(self.activation(self.intermediate["dense"](x)), x)
        return y


class _SelfAttention(nn.Module):
    """Multi-head attention of all positions to all real ones, without the output projection."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.n_heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (split_heads(project(x), self.n_heads) for project in (self.query, self.key, self.value))
        if self.training and self.dropout:
            return merge_heads(F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout))
        return merge_heads(attention(q, k, v, mask=mask))


class _AddNorm(nn.Module):
    """A projection back to the width of the model, then the residual sum and its norm."""

    def __init__(self, d_in: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(d_in, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        z: Tensor = self.LayerNorm(x + self.drop(self.dense(y)))
        return z


class _Predictions(nn.Module):
    """A nonlinear layer with a norm, then the logits of all tokens."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d_model = config.hidden_size
        norm = LayerNorm(d_model, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": nn.Linear(d_model, d_model), "LayerNorm": norm})
        self.activation = activation(config.hidden_act)
        self.decoder = nn.Linear(d_model, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # files call the bias of the decoder so

    def forward(self, x: Tensor) -> Tensor:
        x = self.transform["LayerNorm"](self.activation(self.transform["dense"](x)))
        logits: Tensor = self.decoder(x)
        return logits


def _our_name(name: str) -> str:
    """Return the name of one of our parameters, from any of those that files have for it."""
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return f"bert.{name}" if re.match(r"(embeddings|encoder|pooler)\.", name) else name
