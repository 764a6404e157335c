"""Configurations of the model families: what a Hugging Face ``config.json`` says, checked, in frozen dataclasses.

The fields bear Hugging Face's names and have the defaults of its classes. :func:`config_from_dict` picks the class by
``model_type``. Both generations of ``config.json`` are read: the older one, with ``rope_theta``, ``rope_scaling`` and
``torch_dtype`` side by side, and that of transformers 5, with ``rope_parameters`` and ``dtype``; the latter is written.
What a file says beyond the fields, such as parameters of generation, is left out. A setting that would change what a
model computes, and that the models of this package do not have, is an error that names it.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, Union, cast, get_args, get_origin, get_type_hints

from llm_study.core import roofline
from llm_study.core.checks import check_at_least, check_divides

__all__ = [
    "config_from_dict",
    "model_types",
    "KVLayer",
    "ModelConfig",
    "GPT2Config",
    "BertConfig",
    "T5Config",
    "DecoderConfig",
    "Rope",
    "LlamaConfig",
    "MistralConfig",
    "Olmo2Config",
    "WindowedConfig",
    "Qwen2Config",
    "Qwen3Config",
    "Gemma2Config",
    "Gemma3TextConfig",
]

FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_FIELDS = {"default": (), "linear": ("factor",), "llama3": LLAMA3_FIELDS}


# --- checks of values


def _check_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}, expected a positive number")


def _check_sizes(config: object, *names: str) -> None:
    for name in names:
        check_at_least(name, getattr(config, name), 1)


def _check_object(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}, expected an object")


def _is_unset(name: str, value: object) -> bool:
    """Whether a file's null stands for the default of a field that has one to be worked out."""
    return value is None and name in ("layer_types", "architectures", "rope_parameters")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _pattern(every: int, layer: int) -> str:
    return SLIDING if (layer + 1) % every else FULL


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """Return a value of a JSON file as its field wants it, or raise ValueError: lists become tuples."""
    choices = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    if value is None and wanted is int and name in ("num_key_value_heads", "head_dim", "n_inner", "num_decoder_layers"):
        return 0
    for choice in choices:
        if get_origin(choice) is tuple and isinstance(value, list | tuple):
            return tuple(_typed(f"an entry of {name}", x, get_args(choice)[0]) for x in value)
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if choice in (int, str, bool, types.NoneType, Rope) and type(value) is choice:
            return value
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", types.NoneType: "null"}
    raise ValueError(f"{name} is {value!r}, expected {' or '.join(words.get(c, 'a list') for c in choices)}")


def _numbered(id2label: object) -> tuple[str, ...]:
    """Return the labels of a file in the order of their numbers, which must count from 0."""
    _check_object("id2label", id2label)
    found = {str(i): label for i, label in cast("Mapping[object, object]", id2label).items()}
    wanted = [str(i) for i in range(len(found))]
    if sorted(found) != sorted(wanted):
        raise ValueError(f"id2label has the numbers {', '.join(found)}, expected 0 to {len(found) - 1}")
    return tuple(_typed(f"label {i}", found[i], str) for i in wanted)


# --- rotary positions


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions are rotated: the base of the frequencies, and how they are stretched for longer texts.

    Args:
        rope_theta: base of the frequencies.
        rope_type: ``"default"``, ``"linear"`` or ``"llama3"``.
        factor: how many times longer the texts become; for ``linear`` and ``llama3``.
        low_freq_factor: for ``llama3``; waves longer than the original context over this number are stretched fully.
        high_freq_factor: for ``llama3``; waves shorter than the original context over this number are left alone.
        original_max_position_embeddings: for ``llama3``; the context before it was extended.

    Raises:
        ValueError: if the type is none of the three, a number that the type needs is missing, one that it does not need
            is given, or one is not positive.

    References:
        Su et al. (2021), arXiv:2104.09864. Linear scaling: Chen et al. (2023), arXiv:2306.15595.

    Example:
        >>> Rope.from_dict({"rope_type": "linear", "factor": 4.0}, rope_theta=500000.0)
        Rope(rope_theta=500000.0, rope_type='linear', factor=4.0)
        >>> Rope(rope_type="yarn")
        Traceback (most recent call last):
        ValueError: rope_type is 'yarn', expected one of default, linear, llama3
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_FIELDS:
            raise ValueError(f"rope_type is {self.rope_type!r}, expected one of {', '.join(ROPE_FIELDS)}")
        for name in LLAMA3_FIELDS:
            if (getattr(self, name) is not None) != (name in ROPE_FIELDS[self.rope_type]):
                problem = "needs" if name in ROPE_FIELDS[self.rope_type] else "takes no"
                raise ValueError(f"rope_type {self.rope_type!r} {problem} {name}")
        _check_positive(**{name: value for name, value in vars(self).items() if name != "rope_type"})
        if self.rope_type == "llama3" and not (self.low_freq_factor or 0) < (self.high_freq_factor or 0):
            low, high = self.low_freq_factor, self.high_freq_factor
            raise ValueError(f"low_freq_factor is {low}, high_freq_factor is {high}, expected the first to be smaller")

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"Rope({', '.join(given)})"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, rope_theta: float, context: int | None = None) -> Self:
        """Read ``rope_parameters``, or the older ``rope_scaling``, whose type is called ``type`` in the oldest files.

        Args:
            raw: the entry of the configuration.
            rope_theta: base of the frequencies where the entry itself has none.
            context: ``original_max_position_embeddings`` where the type is ``llama3`` and the entry has none.

        Returns:
            The checked parameters; numbers that the type does not use are left out.

        Raises:
            ValueError: as the class; or if only part of each head is to be rotated.
        """
        rope_type = raw.get("rope_type", raw.get("type", "default"))
        if rope_type not in ROPE_FIELDS:
            raise ValueError(f"rope_type is {rope_type!r}, expected one of {', '.join(ROPE_FIELDS)}")
        if raw.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"partial_rotary_factor is {raw['partial_rotary_factor']}, expected 1.0")
        found = {"rope_theta": rope_theta, "original_max_position_embeddings": context, **raw}
        wanted = ("rope_theta", *ROPE_FIELDS[rope_type])
        hints = get_type_hints(cls)
        return cls(rope_type=rope_type, **{n: _typed(n, found[n], hints[n]) for n in wanted if n in found})

    def to_dict(self) -> dict[str, Any]:
        """Return the entry that transformers 5 calls ``rope_parameters``.

        Returns:
            The type, the base, and what the type needs.
        """
        return {name: value for name, value in vars(self).items() if value is not None}


# --- what all families share


@dataclass(frozen=True)
class KVLayer:
    """What one layer of a decoder stores for each token that it has seen.

    Args:
        n_kv_heads: number of key/value heads ``K``.
        d_head: width ``Dh`` of a head.
        window: number of keys that a query sees, itself included; None for all.

    Example:
        >>> KVLayer(n_kv_heads=2, d_head=64, window=None).d_head
        64
    """

    n_kv_heads: int
    d_head: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every configuration has; the classes below add to it.

    Args:
        vocab_size: number of tokens ``V``.
        tie_word_embeddings: whether the head uses the matrix of the token embeddings.
        initializer_range: standard deviation of fresh weights.
        bos_token_id: id of the token that begins a text, if any.
        eos_token_id: id of the token that ends a text, or several of them.
        pad_token_id: id of the token that fills up, if any.
        architectures: names of the classes whose weights lie beside the file.
        dtype: name of the dtype of these weights, such as ``"bfloat16"``.

    Attributes:
        model_type: the family, by the name that ``config.json`` has for it; the same for all objects of a class.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> ModelConfig(vocab_size=97).dtype is None
        True
    """

    model_type: ClassVar[str] = ""
    _only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_decoder": (False,), "add_cross_attention": (False,)}

    vocab_size: int
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    architectures: tuple[str, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_at_least("vocab_size", self.vocab_size, 1)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = "config.json") -> Self:
        """Read what a ``config.json`` says, of either generation.

        Args:
            raw: the object that the file holds.
            source: name of the file, for messages.

        Returns:
            The configuration; keys that are no fields are left out.

        Raises:
            ValueError: if a field is missing, has the wrong type or a value that makes no sense, or if a setting asks
                for something that the models of this package do not have.
        """
        try:
            cls._check_only(raw)
            values = cls._gather({**raw, "dtype": raw.get("dtype", raw.get("torch_dtype"))})
            hints = get_type_hints(cls)
            names = {f.name: f for f in fields(cls)}
            for name, f in names.items():
                if name not in values and f.default is f.default_factory:  # both MISSING: it has no default
                    raise ValueError(f"{name} is missing")
            return cls(**{name: _typed(name, values[name], hints[name]) for name in names if name in values})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def kv_layers(self) -> tuple[KVLayer, ...]:
        """Return what each layer stores for a token that it has seen; only decoders do.

        Returns:
            One entry for each layer.

        Raises:
            ValueError: if the model is no decoder.
        """
        raise ValueError(f"model_type is {self.model_type!r}, expected a decoder: this model keeps no keys and values")

    @classmethod
    def _check_only(cls, raw: Mapping[str, Any]) -> None:
        """Refuse settings that change what a model computes and that no model here has."""
        if raw.get("quantization_config"):
            raise ValueError("quantization_config is set: quantized weights are not read")
        for kind in cls.__mro__:
            for name, allowed in vars(kind).get("_only", {}).items():
                if name in raw and raw[name] not in allowed:
                    raise ValueError(f"{name} is {raw[name]!r}, expected {' or '.join(map(repr, allowed))}")

    @classmethod
    def _gather(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the fields that a file gives, ropes built, other generations' names resolved."""
        return {f.name: raw[f.name] for f in fields(cls) if f.name in raw and not _is_unset(f.name, raw[f.name])}

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as transformers 5 writes it.

        Returns:
            What belongs into ``config.json``.
        """
        found: dict[str, Any] = {"model_type": self.model_type}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Rope):
                value = value.to_dict()
            found[f.name] = list(value) if isinstance(value, tuple) else value
        return {name: value for name, value in found.items() if name not in ("architectures", "dtype") or value}

    @property
    def max_length(self) -> int:
        """The longest text that the model was made for, in tokens, whatever the family calls it."""
        name = "n_positions" if hasattr(self, "n_positions") else "max_position_embeddings"
        return int(getattr(self, name))

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`, which counts its parameters, FLOPs and bytes.

        Returns:
            The architecture.

        Raises:
            NotImplementedError: in this class, which knows of no layers.
        """
        raise NotImplementedError(f"{type(self).__name__} knows of no layers")


# --- GPT-2 and BERT

TWO_LABELS = ("LABEL_0", "LABEL_1")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
HEADLESS = (("BertModel",), ("BertForSequenceClassification",))


@dataclass(frozen=True, kw_only=True)
class GPT2Config(ModelConfig):
    """GPT-2: a decoder with learned positions, LayerNorm and biases everywhere.

    Beside these there are the fields of :class:`ModelConfig`.

    Args:
        n_positions: number of learned positions.
        n_embd: width ``D`` of the model.
        n_layer: number of layers ``L``.
        n_head: number of heads ``H``.
        n_inner: width ``F`` of the feed-forward part. Default: ``4 * n_embd``.
        activation_function: name of the activation.
        layer_norm_epsilon: what the norms add to the variance.
        resid_pdrop: dropout before each residual sum, in training.
        embd_pdrop: dropout of the embeddings, in training.
        attn_pdrop: dropout of the weights of attention, in training.

    Raises:
        ValueError: if a size is below 1, or ``n_head`` does not divide ``n_embd``.

    References:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners.

    Example:
        >>> config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
        >>> config.n_inner, config.tie_word_embeddings
        (128, True)
    """

    model_type: ClassVar[str] = "gpt2"
    _only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    }

    n_positions: int = 1024
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int = 0
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_inner", self.n_inner or 4 * self.n_embd)
        _check_sizes(self, "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
        check_divides("n_head", self.n_head, "n_embd", self.n_embd)

    def kv_layers(self) -> tuple[KVLayer, ...]:
        """Return what each layer stores for a token that it has seen.

        Returns:
            One entry for each layer.
        """
        return (KVLayer(self.n_head, self.n_embd // self.n_head, None),) * self.n_layer

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        D, H = self.n_embd, self.n_head
        return roofline.Transformer(
            vocab_size=self.vocab_size,
            hidden_size=D,
            layers=self.n_layer * (_biased_layer(D, H, self.n_inner),),
            tie_word_embeddings=self.tie_word_embeddings,
            learned_positions=self.n_positions,
            norm_bias=True,
        )


@dataclass(frozen=True, kw_only=True)
class BertConfig(ModelConfig):
    """BERT: an encoder with learned positions, token types, LayerNorm after each residual sum, and biases everywhere.

    Beside these there are the fields of :class:`ModelConfig`.

    Args:
        hidden_size: width ``D`` of the model.
        num_hidden_layers: number of layers ``L``.
        num_attention_heads: number of heads ``H``.
        intermediate_size: width ``F`` of the feed-forward part.
        hidden_act: name of the activation.
        max_position_embeddings: number of learned positions.
        type_vocab_size: number of token types, which tell the first text from the second.
        layer_norm_eps: what the norms add to the variance.
        hidden_dropout_prob: dropout of embeddings and before each residual sum, in training.
        attention_probs_dropout_prob: dropout of the weights of attention, in training.
        labels: names of the classes of a classifier, in the order of its logits; a file calls them ``id2label``. One
            name alone is that of a number to be predicted. Two without a meaning are the default.
        problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``. Default:
            the first, or the last where there is one label only.
        classifier_dropout: dropout before a classifier, in training. Default: ``hidden_dropout_prob``.

    Raises:
        ValueError: if a size is below 1, ``num_attention_heads`` does not divide ``hidden_size``, there are no labels
            or one twice, or ``problem_type`` is none of the three.

    References:
        Devlin et al. (2018), arXiv:1810.04805.

    Example:
        >>> config = BertConfig(
        ...     vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        ... )
        >>> config.max_position_embeddings, config.pad_token_id
        (512, 0)
    """

    model_type: ClassVar[str] = "bert"
    _only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"position_embedding_type": ("absolute",)}

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = TWO_LABELS
    problem_type: str | None = None
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        _check_sizes(self, "max_position_embeddings", "type_vocab_size")
        check_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels is {self.labels}, expected at least one name, and each once")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type is {self.problem_type!r}, expected one of {', '.join(PROBLEM_TYPES)}")

    @classmethod
    def _gather(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Read the labels, which a file numbers in ``id2label``, or of which it only says how many there are."""
        found = super()._gather(raw)
        if raw.get("id2label") is not None:
            found["labels"] = _numbered(raw["id2label"])
        elif raw.get("num_labels") is not None:
            found["labels"] = tuple(f"LABEL_{i}" for i in range(_typed("num_labels", raw["num_labels"], int)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as transformers 5 writes it, labels by number and numbers by label.

        Returns:
            What belongs into ``config.json``.
        """
        found = super().to_dict()
        labels = found.pop("labels")
        if self.labels == TWO_LABELS:
            return found
        number = {label: i for i, label in enumerate(labels)}
        return {**found, "id2label": {str(i): label for label, i in number.items()}, "label2id": number}

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture, without pooler, classifier and next-sentence prediction; where ``architectures`` says
            ``BertModel`` or ``BertForSequenceClassification``, without any head.
        """
        D, H = self.hidden_size, self.num_attention_heads
        return roofline.Transformer(
            vocab_size=self.vocab_size,
            hidden_size=D,
            layers=self.num_hidden_layers * (_biased_layer(D, H, self.intermediate_size),),
            tie_word_embeddings=self.tie_word_embeddings,
            learned_positions=self.max_position_embeddings + self.type_vocab_size,
            norm_bias=True,
            head="none" if self.architectures in HEADLESS else "masked",
        )


@dataclass(frozen=True, kw_only=True)
class T5Config(ModelConfig):
    """T5: an encoder and a decoder with relative positions, RMSNorm, and no biases.

    Beside these there are the fields of :class:`ModelConfig`, of which ``initializer_range`` is not used.

    There are two generations. The first has ReLU and a head that is tied to the embedding; what the decoder gives is
    divided by the square root of the width before it meets the head. Version 1.1, from which Flan-T5 comes, has a gated
    GELU and a head of its own, and divides nothing. Transformers 5 writes ``tie_word_embeddings`` as true for both, and
    the difference as ``scale_decoder_outputs``; older files have ``tie_word_embeddings`` only. Both are read.

    Args:
        d_model: width ``D`` of the model.
        d_kv: width ``Dh`` of a head.
        d_ff: width ``F`` of the feed-forward part.
        num_layers: number of layers ``L`` of the encoder.
        num_decoder_layers: number of layers of the decoder; 0, or ``null`` in a file, for as many as the encoder has.
        num_heads: number of heads ``H``; ``H * Dh`` need not be ``D``.
        relative_attention_num_buckets: number of buckets that distances fall into, a multiple of 4; each direction has
            half of them in the encoder.
        relative_attention_max_distance: distance from which on all share the last bucket.
        n_positions: length of the texts that the model was trained on. Positions are relative and set no limit.
        dropout_rate: dropout of embeddings, of weights of attention, in the feed-forward part, before each residual sum
            and after the last norm, in training.
        layer_norm_epsilon: what the norms add to the mean square.
        initializer_factor: factor on the standard deviations of fresh weights.
        feed_forward_proj: name of the activation, after ``gated-`` where there is a gate.
        scale_decoder_outputs: whether what the decoder gives is divided by the square root of ``D`` before the head.
            Default: if the head is tied.
        decoder_start_token_id: id of the token that the decoder begins with.

    Raises:
        ValueError: if a size is below 1, the number of buckets is no multiple of 4, the largest distance is among the
            distances that have a bucket each, or ``feed_forward_proj`` has a dash after anything but ``gated``.

    References:
        Raffel et al. (2020), arXiv:1910.10683. The gate: Shazeer (2020), arXiv:2002.05202. Flan-T5: Chung et al.
        (2022), arXiv:2210.11416.

    Example:
        >>> first = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        >>> first.num_decoder_layers, first.dense_act_fn, first.scale_decoder_outputs
        (2, 'relu', True)
        >>> second = T5Config.from_dict(
        ...     {**first.to_dict(), "feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}
        ... )
        >>> second.dense_act_fn, second.is_gated_act, second.scale_decoder_outputs
        ('gelu_new', True, False)
    """

    model_type: ClassVar[str] = "t5"
    _only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_encoder_decoder": (True,)}

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int = 0
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    n_positions: int = 512
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    scale_decoder_outputs: bool | None = None
    decoder_start_token_id: int = 0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_decoder_layers", self.num_decoder_layers or self.num_layers)
        object.__setattr__(self, "scale_decoder_outputs", _or(self.scale_decoder_outputs, self.tie_word_embeddings))
        _check_sizes(self, "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "n_positions")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        check_at_least("relative_attention_num_buckets", buckets, 4)
        check_divides("near and far in two directions", 4, "relative_attention_num_buckets", buckets)
        check_at_least("relative_attention_max_distance", distance, buckets // 2 + 1)
        gate, dash, _ = self.feed_forward_proj.rpartition("-")
        if dash and gate != "gated":
            text = f"feed_forward_proj is {self.feed_forward_proj!r}, expected an activation such as relu"
            raise ValueError(f"{text}, or gated- and an activation")

    @property
    def is_gated_act(self) -> bool:
        """Whether the feed-forward part has a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        """Name of the activation; ``gated-gelu`` has always meant the approximation of GELU by tanh."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = "config.json") -> Self:
        """Read what a ``config.json`` says, of either generation.

        Args:
            raw: the object that the file holds.
            source: name of the file, for messages.

        Returns:
            The configuration; keys that are no fields are left out.

        Raises:
            ValueError: as :meth:`ModelConfig.from_dict`; or if ``dense_act_fn`` or ``is_gated_act``, which repeat what
                ``feed_forward_proj`` says, say something else.
        """
        config = super().from_dict(raw, source=source)
        for name in ("dense_act_fn", "is_gated_act"):
            if raw.get(name, getattr(config, name)) != getattr(config, name):
                found = f"{name} is {raw[name]!r}, feed_forward_proj is {config.feed_forward_proj!r}"
                raise ValueError(f"{source}: {found}, expected the first to be {getattr(config, name)!r}")
        return config

    def kv_layers(self) -> tuple[KVLayer, ...]:
        """Return what each layer of the decoder stores for a token of the target that it has seen.

        Returns:
            One entry for each layer of the decoder. The keys and values of the source come on top.
        """
        return (KVLayer(self.num_heads, self.d_kv, None),) * self.num_decoder_layers

    def transformer(self) -> roofline.Transformer:
        """Refuse: :mod:`llm_study.core.roofline` describes one stack of layers, and here there are two.

        Returns:
            Nothing; it always raises.

        Raises:
            ValueError: always.
        """
        raise ValueError("model_type is 't5', expected a decoder or an encoder: what both in one cost is not counted")


def _biased_layer(hidden_size: int, heads: int, width: int) -> roofline.Layer:
    """Describe a layer as GPT-2 and BERT have it: as many keys as queries, and biases everywhere."""
    Dh = hidden_size // heads
    attention = roofline.Attention(num_attention_heads=heads, head_dim=Dh, qkv_bias=True, output_bias=True)
    return roofline.Layer(attention=attention, feed_forward=roofline.FeedForward(intermediate_size=width, bias=True))


# --- decoders with rotary positions


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """What the decoders after Llama share: rotary positions, RMSNorm, gated feed-forward parts, grouped heads.

    Beside these there are the fields of :class:`ModelConfig`.

    Args:
        hidden_size: width ``D`` of the model.
        intermediate_size: width ``F`` of the feed-forward part.
        num_hidden_layers: number of layers ``L``.
        num_attention_heads: number of query heads ``H``.
        num_key_value_heads: number of key/value heads ``K``; 0, or ``null`` in a file, for as many as query heads.
        head_dim: width ``Dh`` of a head; 0, or ``null`` in a file, for ``D / H``.
        max_position_embeddings: the longest text that the model was made for.
        rms_norm_eps: what the norms add to the mean square.
        rope_parameters: how positions are rotated.
        attention_dropout: dropout of the weights of attention; kept for the file only, the decoders here have none.

    Raises:
        ValueError: if a size is below 1, ``K`` does not divide ``H``, ``head_dim`` is odd, or it is not given and ``H``
            does not divide ``D``.

    Example:
        >>> config = DecoderConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> config.num_key_value_heads, config.head_dim, config.window(0)
        (4, 8, None)
    """

    _only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_bidirectional_attention": (False, None)}

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Rope = Rope()
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        D, H = self.hidden_size, self.num_attention_heads
        if not self.head_dim:
            check_divides("num_attention_heads", H, "hidden_size", D, hint="or say head_dim")
            object.__setattr__(self, "head_dim", D // H)
        object.__setattr__(self, "num_key_value_heads", self.num_key_value_heads or H)
        _check_sizes(self, "head_dim", "num_key_value_heads", "max_position_embeddings")
        check_divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", H)
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number: rotary positions turn pairs")

    def window(self, layer: int) -> int | None:
        """Return how many keys a query sees in a layer, itself included.

        Args:
            layer: number of the layer, from 0.

        Returns:
            The width of the sliding window; None for all keys up to the query.
        """
        return None

    def rope(self, layer: int) -> Rope:
        """Return how positions are rotated in a layer.

        Args:
            layer: number of the layer, from 0.

        Returns:
            The parameters of the rotation.
        """
        return self.rope_parameters

    def kv_layers(self) -> tuple[KVLayer, ...]:
        """Return what each layer stores for a token that it has seen.

        Returns:
            One entry for each layer.
        """
        layers = range(self.num_hidden_layers)
        return tuple(KVLayer(self.num_key_value_heads, self.head_dim, self.window(i)) for i in layers)

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer()

    def _transformer(self, *, bias: bool = False, norms: int = 2, **attention: bool) -> roofline.Transformer:
        """Describe layers whose feed-forward part may have biases, with so many norms, and attention as it is said."""
        H, K, Dh = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        wide = roofline.FeedForward(intermediate_size=self.intermediate_size, gated=True, bias=bias)
        heads = (
            roofline.Attention(
                num_attention_heads=H, num_key_value_heads=K, head_dim=Dh, window=self.window(i), **attention
            )
            for i in range(self.num_hidden_layers)
        )
        return roofline.Transformer(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(roofline.Layer(attention=x, feed_forward=wide, norms=norms) for x in heads),
            tie_word_embeddings=self.tie_word_embeddings,
        )

    @classmethod
    def _gather(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._gather(raw)
        entry = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        _check_object("rope_parameters", entry)
        theta = _or(raw.get("rope_theta"), cls.rope_parameters.rope_theta)
        context = _or(raw.get("max_position_embeddings"), cls.max_position_embeddings)
        entry = {"partial_rotary_factor": raw.get("partial_rotary_factor", 1.0), **entry}
        return {**values, "rope_parameters": Rope.from_dict(entry, rope_theta=theta, context=context)}


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Llama, from the first to the third generation.

    Beside these there are the fields of :class:`ModelConfig` and :class:`DecoderConfig`.

    Args:
        hidden_act: name of the activation of the gate.
        attention_bias: whether the four projections of attention have a bias.
        mlp_bias: whether the three of the feed-forward part have one.

    Raises:
        ValueError: as :class:`DecoderConfig`.

    References:
        Touvron et al. (2023), arXiv:2302.13971 and arXiv:2307.09288.

    Example:
        >>> raw = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        >>> LlamaConfig.from_dict({**raw, "num_attention_heads": 4, "rope_theta": 500000.0}).rope_parameters
        Rope(rope_theta=500000.0, rope_type='default')
        >>> LlamaConfig.from_dict(raw)
        Traceback (most recent call last):
        ValueError: config.json: num_attention_heads is missing
    """

    model_type: ClassVar[str] = "llama"

    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(bias=self.mlp_bias, qkv_bias=self.attention_bias, output_bias=self.attention_bias)


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Mistral: as Llama, with a sliding window in every layer.

    Beside these there are the fields of :class:`ModelConfig` and :class:`DecoderConfig`.

    Args:
        hidden_act: name of the activation of the gate.
        sliding_window: how many keys a query sees, itself included; None for all.

    Raises:
        ValueError: as :class:`DecoderConfig`; or if the window is below 1.

    References:
        Jiang et al. (2023), arXiv:2310.06825.

    Example:
        >>> config = MistralConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8
        ... )
        >>> config.num_key_value_heads, config.window(1)
        (8, 4096)
    """

    model_type: ClassVar[str] = "mistral"

    num_key_value_heads: int = 8
    max_position_embeddings: int = 4096 * 32
    hidden_act: str = "silu"
    sliding_window: int | None = 4096
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is not None:
            _check_sizes(self, "sliding_window")

    def window(self, layer: int) -> int | None:
        """Return how many keys a query sees in a layer, itself included.

        Args:
            layer: number of the layer, from 0.

        Returns:
            The same window for every layer.
        """
        return self.sliding_window


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    """OLMo 2: norms after the sublayers, and over all queries and all keys of a position.

    Beside these there are the fields of :class:`ModelConfig` and :class:`DecoderConfig`.

    Args:
        hidden_act: name of the activation of the gate.
        attention_bias: whether the four projections of attention have a bias.

    Raises:
        ValueError: as :class:`DecoderConfig`.

    References:
        Team OLMo (2024), arXiv:2501.00656.

    Example:
        >>> Olmo2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ... ).rms_norm_eps
        1e-05
    """

    model_type: ClassVar[str] = "olmo2"

    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    attention_bias: bool = False
    eos_token_id: int | tuple[int, ...] | None = 50279
    pad_token_id: int | None = 1

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(wide_qk_norm=True, qkv_bias=self.attention_bias, output_bias=self.attention_bias)


@dataclass(frozen=True, kw_only=True)
class WindowedConfig(DecoderConfig):
    """A decoder in which each layer sees all keys or a window of them, as ``layer_types`` says.

    Beside these there are the fields of :class:`ModelConfig` and :class:`DecoderConfig`.

    Args:
        sliding_window: how many keys a query sees in a layer with a window, itself included; None if there is none.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer. Default: as the family has it; here
            no windows.

    Raises:
        ValueError: as :class:`DecoderConfig`; or if ``layer_types`` does not fit the layers.

    Example:
        >>> sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        >>> kinds = ("sliding_attention", "full_attention")
        >>> config = WindowedConfig(**sizes, num_hidden_layers=2, layer_types=kinds, sliding_window=8)
        >>> [config.window(layer) for layer in range(2)]
        [8, None]
    """

    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is not None:
            _check_sizes(self, "sliding_window")
        if not self.layer_types:
            kinds = tuple(self._layer_type(layer) for layer in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", kinds)
        self._check_layer_types()

    def _layer_type(self, layer: int) -> str:
        return FULL

    def _check_layer_types(self) -> None:
        n, kinds = self.num_hidden_layers, self.layer_types
        if len(kinds) != n:
            raise ValueError(f"layer_types has {len(kinds)} entries, num_hidden_layers is {n}, expected as many")
        for kind in kinds:
            if kind not in (FULL, SLIDING):
                raise ValueError(f"layer_types has {kind!r}, expected {FULL!r} or {SLIDING!r}")
        if SLIDING in kinds and self.sliding_window is None:
            raise ValueError(f"layer_types has {SLIDING!r}, but there is no sliding_window")

    def window(self, layer: int) -> int | None:
        """Return how many keys a query sees in a layer, itself included.

        Args:
            layer: number of the layer, from 0.

        Returns:
            The width of the sliding window; None in a layer that sees all keys up to the query.
        """
        return self.sliding_window if self.layer_types[layer] == SLIDING else None


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(WindowedConfig):
    """Qwen2 and Qwen2.5: as Llama, with biases of queries, keys and values, and windows in the upper layers if any.

    Beside these there are the fields of :class:`ModelConfig`, :class:`DecoderConfig` and :class:`WindowedConfig`.

    Args:
        hidden_act: name of the activation of the gate.
        use_sliding_window: whether ``sliding_window`` holds at all.
        sliding_window: how many keys a query sees in a layer with a window; None if ``use_sliding_window`` is false.
        max_window_layers: the first layer that has a window, where ``layer_types`` is not given.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer. Default: as above.

    Raises:
        ValueError: as :class:`DecoderConfig`; or if ``layer_types`` does not fit the layers.

    References:
        Yang et al. (2024), arXiv:2407.10671.

    Example:
        >>> config = Qwen2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        ...     num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=2,
        ... )
        >>> [config.window(layer) for layer in range(3)]
        [None, None, 8]
    """

    model_type: ClassVar[str] = "qwen2"

    num_key_value_heads: int = 32
    max_position_embeddings: int = 32768
    hidden_act: str = "silu"
    use_sliding_window: bool = False
    max_window_layers: int = 28

    def __post_init__(self) -> None:
        object.__setattr__(self, "sliding_window", self.sliding_window if self.use_sliding_window else None)
        super().__post_init__()

    def _layer_type(self, layer: int) -> str:
        return SLIDING if self.sliding_window is not None and layer >= self.max_window_layers else FULL

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(qkv_bias=True)


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Qwen3: as Qwen2, with norms of queries and keys instead of biases.

    Beside these there are the fields of :class:`ModelConfig`, :class:`DecoderConfig`, :class:`WindowedConfig` and
    :class:`Qwen2Config`.

    Args:
        attention_bias: whether the four projections of attention have a bias.

    Raises:
        ValueError: as :class:`Qwen2Config`.

    References:
        Yang et al. (2025), arXiv:2505.09388.

    Example:
        >>> Qwen3Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=32
        ... ).head_dim
        128
    """

    model_type: ClassVar[str] = "qwen3"

    head_dim: int = 128
    attention_bias: bool = False

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(qk_norm=True, qkv_bias=self.attention_bias, output_bias=self.attention_bias)


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(WindowedConfig):
    """Gemma 2: norms before and after the sublayers, soft caps, and a window in every other layer.

    Beside these there are the fields of :class:`ModelConfig`, :class:`DecoderConfig` and :class:`WindowedConfig`.

    Args:
        hidden_activation: name of the activation of the gate.
        attention_bias: whether the four projections of attention have a bias.
        query_pre_attn_scalar: the scores are divided by the square root of this number.
        sliding_window: how many keys a query sees in a layer with a window, itself included.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer. Default: by turns, a window first.
        final_logit_softcapping: cap of the logits; None for none.
        attn_logit_softcapping: cap of the scores of attention; None for none.

    Raises:
        ValueError: as :class:`DecoderConfig`; or if ``layer_types`` does not fit the layers, or a cap is not positive.

    References:
        Gemma Team (2024), arXiv:2408.00118.

    Example:
        >>> config = Gemma2Config(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        ... )
        >>> [config.window(layer) for layer in range(3)]
        [4096, None, 4096]
    """

    model_type: ClassVar[str] = "gemma2"

    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 8192
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: int = 256
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self, "query_pre_attn_scalar")
        _check_positive(
            final_logit_softcapping=self.final_logit_softcapping, attn_logit_softcapping=self.attn_logit_softcapping
        )

    def _layer_type(self, layer: int) -> str:
        return FULL if layer % 2 else SLIDING

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(norms=4, qkv_bias=self.attention_bias, output_bias=self.attention_bias)


@dataclass(frozen=True, kw_only=True)
class Gemma3TextConfig(Gemma2Config):
    """Gemma 3, its text part: as Gemma 2, with norms of queries and keys instead of caps, five windows to a full layer.

    Layers with a window rotate positions otherwise than those without. In a file the two are entries of
    ``rope_parameters``. Beside these there are the fields of :class:`ModelConfig`, :class:`DecoderConfig`,
    :class:`WindowedConfig` and :class:`Gemma2Config`.

    Args:
        rope_parameters: how positions are rotated in layers that see all keys.
        rope_sliding: how they are in layers with a window.

    Raises:
        ValueError: as :class:`Gemma2Config`.

    References:
        Gemma Team (2025), arXiv:2503.19786.

    Example:
        >>> config = Gemma3TextConfig(
        ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4
        ... )
        >>> config.rope(0).rope_theta, config.rope(5).rope_theta
        (10000.0, 1000000.0)
    """

    model_type: ClassVar[str] = "gemma3_text"

    max_position_embeddings: int = 131072
    rope_parameters: Rope = Rope(rope_theta=1e6)
    rope_sliding: Rope = Rope()
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None

    def rope(self, layer: int) -> Rope:
        """Return how positions are rotated in a layer.

        Args:
            layer: number of the layer, from 0.

        Returns:
            The parameters of the rotation, those of its kind of layer.
        """
        return self.rope_sliding if self.layer_types[layer] == SLIDING else self.rope_parameters

    def _layer_type(self, layer: int) -> str:
        return _pattern(6, layer)

    def transformer(self) -> roofline.Transformer:
        """Describe the model for :mod:`llm_study.core.roofline`.

        Returns:
            The architecture.
        """
        return self._transformer(norms=4, qk_norm=True, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    @classmethod
    def _gather(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        new = raw.get("rope_parameters") or {}
        _check_object("rope_parameters", new)
        full, sliding = ({**(new.get(kind) or {})} for kind in (FULL, SLIDING))
        full |= raw.get("rope_scaling") or {}
        values = super()._gather({**raw, "rope_parameters": None, "rope_scaling": None, "rope_theta": None})
        theta, local = _or(raw.get("rope_theta"), 1e6), _or(raw.get("rope_local_base_freq"), 1e4)
        context = _or(raw.get("max_position_embeddings"), cls.max_position_embeddings)
        values["rope_parameters"] = Rope.from_dict(full, rope_theta=theta, context=context)
        values["rope_sliding"] = Rope.from_dict(sliding, rope_theta=local, context=context)
        if not raw.get("layer_types") and "sliding_window_pattern" in raw:
            pattern, n = raw["sliding_window_pattern"], raw.get("num_hidden_layers", 0)
            values["layer_types"] = [_pattern(pattern, layer) for layer in range(n)]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as transformers 5 writes it.

        Returns:
            What belongs into ``config.json``; both rotations are entries of ``rope_parameters``.
        """
        found = super().to_dict()
        found["rope_parameters"] = {SLIDING: found.pop("rope_sliding"), FULL: found["rope_parameters"]}
        return found


# --- which class


_FAMILIES: dict[str, type[ModelConfig]] = {
    kind.model_type: kind
    for kind in (
        BertConfig,
        Gemma2Config,
        Gemma3TextConfig,
        GPT2Config,
        LlamaConfig,
        MistralConfig,
        Olmo2Config,
        Qwen2Config,
        Qwen3Config,
        T5Config,
    )
}


def model_types() -> tuple[str, ...]:
    """Return the families that there are configurations for.

    Returns:
        What ``model_type`` may say, sorted.

    Example:
        >>> model_types()[:3]
        ('bert', 'gemma2', 'gemma3_text')
    """
    return tuple(sorted(_FAMILIES))


def config_from_dict(raw: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
    """Read a configuration of any family.

    Args:
        raw: the object that a ``config.json`` holds.
        source: name of the file, for messages.

    Returns:
        An object of the class that belongs to ``model_type``.

    Raises:
        ValueError: if ``model_type`` is missing or unknown; or as :meth:`ModelConfig.from_dict`.

    Example:
        >>> config_from_dict({"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4}).n_inner
        128
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ValueError(f"{source}: model_type is {name!r}, expected one of {', '.join(model_types())}")
    return _FAMILIES[name].from_dict(raw, source=source)
