"""BERT: an encoder whose positions all see each other, with layer normalization after each residual sum.

Parameters have the names of Hugging Face's ``BertForMaskedLM`` and ``BertForSequenceClassification``. A file of the
encoder alone (``BertModel``), as those of sentence embeddings are, makes a model without a head. A new classifier on a
pretrained encoder is what :meth:`BertForSequenceClassification.from_encoder` gives.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.checks import check_equal
from llm_study.core.config import BertConfig, config_from_dict
from llm_study.core.hub import CONFIG, load_tensors, read_config
from llm_study.functional.activations import activation
from llm_study.functional.attention import attention, merge_heads, split_heads
from llm_study.models._common import check_indices, check_mask, draw, seen
from llm_study.models.base import PretrainedModel
from llm_study.nn.basic import LayerNorm

__all__ = ["BertOutput", "BertForMaskedLM", "BertForSequenceClassification"]

HEAD = "cls.predictions."
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


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


class BertForSequenceClassification(PretrainedModel):
    r"""BERT with a classifier: one score for each label, of a whole text.

    The hidden state of the first token passes the pooler, a square layer with a hyperbolic tangent, then dropout and a
    matrix:

    .. math:: z = W_c \tanh(W_p h_1 + b_p) + b_c

    :func:`llm_study.models.auto.from_pretrained` reads a folder that holds pooler and classifier. To begin with the
    encoder of another folder, call :meth:`from_encoder`.

    Args:
        config: as for :class:`BertForMaskedLM`; ``labels`` says how many scores there are, ``problem_type`` what they
            mean.

    Attributes:
        bert: embeddings, layers and pooler.
        classifier: the matrix and the bias, ``(D → C)``.

    Cost: that of the encoder, and ``2 * D**2 + 2 * D * C`` FLOPs for each text.

    References:
        Devlin et al. (2018), arXiv:1810.04805, section 4.1, where the vector of the first token is called ``C``.

    Example:
        >>> config = BertConfig(
        ...     vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        ...     labels=("negative", "neutral", "positive"),
        ... )
        >>> model = BertForSequenceClassification(config).eval()
        >>> logits = model(torch.tensor([[5, 6, 7]]))
        >>> logits.shape, model.loss(logits, torch.tensor([2])).shape
        (torch.Size([1, 3]), torch.Size([]))
    """

    config: BertConfig
    unused: ClassVar[tuple[str, ...]] = (r"bert\.embeddings\.position_ids",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.bert = _Body(config, pooler=True)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        self.apply(partial(draw, std=config.initializer_range))

    @classmethod
    def from_encoder(
        cls,
        folder: str | os.PathLike[str],
        *,
        labels: tuple[str, ...],
        problem_type: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Put a fresh classifier on the encoder of a folder; whatever head the folder has is left behind.

        A pooler that the folder has is kept; where there is none it is fresh too. What is fresh is normal with
        standard deviation ``config.initializer_range``, biases are 0: seed torch's generator to have it the same again.

        Args:
            folder: path of a folder of any BERT.
            labels: names of the classes, in the order of the logits; one name alone for a number.
            problem_type: what the logits mean, as in :class:`~llm_study.core.config.BertConfig`.
            dtype: dtype of the parameters. Default: that of the embeddings in the folder.

        Returns:
            The model, on the CPU, ready for evaluation; ``train()`` makes it ready for training.

        Raises:
            FileNotFoundError: if the folder or a file of it is missing.
            ValueError: if the folder is of another family, tensors of the encoder are missing or of another shape, or
                only half of the pooler is there.
        """
        source = Path(folder) / CONFIG
        config = config_from_dict(read_config(folder), source=str(source))
        if not isinstance(config, BertConfig):
            raise ValueError(f"{source}: model_type is {config.model_type!r}, expected 'bert'")
        config = replace(config, labels=labels, problem_type=problem_type, architectures=(cls.__name__,))
        found = {name: x for name, x in cls.from_hub(load_tensors(folder)).items() if name.startswith("bert.")}
        model = cls(config)
        own = model.state_dict()
        fresh = ["classifier.weight", "classifier.bias", *(POOLER if not set(POOLER) & set(found) else ())]
        first = found.get("bert.embeddings.word_embeddings.weight", own["classifier.weight"])
        model.load_hub({**{name: own[name] for name in fresh}, **found}, source=folder)
        return model.to(first.dtype if dtype is None else dtype).eval()

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change the names of a file into ours.

        Args:
            tensors: ``(…)`` tensors by their names in the file; older files call the weights of norms otherwise.

        Returns:
            ``(…)`` tensors by the names of our parameters.
        """
        return {_our_name(name): tensor for name, tensor in tensors.items()}

    def features(
        self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Return what the classifier reads: the vector of the first token, through the pooler.

        Args:
            ids: ``(B, T)`` token ids; the first is to be real.
            mask: ``(B, T)`` boolean, True where a token is real. Default: all are.
            positions: ``(B, T)`` or ``(T,)`` integers. Default: 0, 1, 2, …
            types: ``(B, T)`` token types. Default: 0 everywhere.

        Returns:
            ``(B, D)`` numbers between -1 and 1.

        Raises:
            ValueError: as :meth:`BertForMaskedLM.forward`.
        """
        self.check_ids(ids)
        pooled: Tensor = self.bert.pooler(self.bert(ids, mask, positions, types)[:, 0])
        return pooled

    def forward(
        self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Return a score of each label for each text.

        Args:
            ids: ``(B, T)`` token ids; the first is to be real, so padding stands on the right.
            mask: ``(B, T)`` boolean, True where a token is real. Default: all are.
            positions: ``(B, T)`` or ``(T,)`` integers. Default: 0, 1, 2, …
            types: ``(B, T)`` token types, 0 in the first text and 1 in the second. Default: 0 everywhere.

        Returns:
            ``(B, C)`` logits, or predictions where the problem is a regression.

        Raises:
            ValueError: as :meth:`BertForMaskedLM.forward`.
        """
        logits: Tensor = self.classifier(self.drop(self.features(ids, mask=mask, positions=positions, types=types)))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch that ``config.problem_type`` asks for: cross-entropy, or the mean square error.

        Args:
            logits: ``(B, C)`` what :meth:`forward` gave.
            labels: ``(B,)`` numbers of the classes; for several labels at once ``(B, C)``, from 0 to 1; for a
                regression ``(B, C)``, or ``(B,)`` if ``C`` is 1.

        Returns:
            ``()`` the mean over all texts, and over all numbers where a text has several.

        Raises:
            ValueError: if the labels do not fit the problem in shape or dtype, or are no numbers of classes.
        """
        C = logits.shape[-1]
        problem = self.config.problem_type or ("regression" if C == 1 else "single_label_classification")
        if problem == "single_label_classification":
            _check_classes(labels, logits)
            return F.cross_entropy(logits, labels)
        shape = tuple(logits.shape[:-1] if C == 1 and labels.ndim < logits.ndim else logits.shape)
        check_equal("shape of labels", tuple(labels.shape), f"that of the logits for {problem}", shape)
        loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits.reshape(shape), labels.to(logits.dtype))


def _check_classes(labels: Tensor, logits: Tensor) -> None:
    """Check that labels are numbers of classes, one for each row of the logits."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels have dtype {labels.dtype}, expected torch.int64: numbers of classes")
    check_equal("shape of labels", tuple(labels.shape), "rows of the logits", tuple(logits.shape[:-1]))
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= logits.shape[-1]:
        raise ValueError(f"labels has {low if low < 0 else high}, expected 0 to {logits.shape[-1] - 1}")


class _Body(nn.Module):
    """Embeddings and layers, and the pooler where it is wanted."""

    def __init__(self, config: BertConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        if pooler:
            self.pooler = _Pooler(config)

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, types: Tensor | None) -> Tensor:
        """Return ``(B, T, D)`` hidden states."""
        if mask is not None:
            check_mask(mask, ids)
            mask = seen(mask)  # (B, 1, 1 or T, T)
        hidden: Tensor = self.encoder(self.embeddings(ids, positions, types), mask)
        return hidden


class _Pooler(nn.Module):
    """A square layer with a hyperbolic tangent, for the vector of the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense(x).tanh()
        return y


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
