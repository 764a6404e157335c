"""What a Transformer costs, from its configuration alone: parameters, FLOPs, bytes and hours, without any weights.

A model is a :class:`Transformer`: a vocabulary, a width and a tuple of layers, each an attention and a feed-forward
part. The fields that a ``config.json`` has bear the names that Hugging Face gives them. Every result is a sum whose
terms can be checked by hand. A multiplication followed by an addition counts as two FLOPs, and only matrix products are
counted, as ``torch.utils.flop_counter`` does: norms, activations, softmax and biases are left out.

:func:`published` knows the configurations of some well-known models.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

__all__ = [
    "Attention",
    "Experts",
    "FeedForward",
    "Flops",
    "LatentAttention",
    "Layer",
    "Parameters",
    "TrainingBytes",
    "Transformer",
    "activation_bytes",
    "arithmetic_intensity",
    "decoding_flops",
    "forward_flops",
    "gpu_hours",
    "kv_bytes_per_token",
    "kv_cache_bytes",
    "matmul_parameters",
    "model_flops_utilization",
    "parameters",
    "published",
    "published_names",
    "roofline_seconds",
    "training_bytes",
    "training_flops",
]


# --- the parts of a model


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head attention; with fewer key/value heads than query heads it is grouped-query or multi-query attention.

    Args:
        num_attention_heads: number of query heads ``H``.
        head_dim: width ``Dh`` of a head.
        num_key_value_heads: number of key/value heads ``K``, a divisor of ``H``. Default: ``H``.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        output_bias: whether the projection of the output has a bias.
        qk_norm: whether queries and keys pass a norm of width ``Dh``, shared by the heads, as in Qwen3.
        wide_qk_norm: whether they pass norms over all heads at once, of widths ``H * Dh`` and ``K * Dh``, as in OLMo 2.
        window: how many keys a query sees, itself included. Default: all that the mask allows.

    Raises:
        ValueError: if a size is below 1, or ``K`` does not divide ``H``.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2. Shared keys and values: Ainslie et al. (2023),
        arXiv:2305.13245.

    Example:
        >>> grouped = Attention(num_attention_heads=32, head_dim=128, num_key_value_heads=8)
        >>> grouped.parameters(4096)  # 4096 * 128 * (32 + 8 + 8 + 32)
        41943040
        >>> grouped.cached_numbers  # a key and a value for each of 8 heads
        2048
    """

    num_attention_heads: int
    head_dim: int
    num_key_value_heads: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    wide_qk_norm: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        _check_at_least(
            num_attention_heads=self.num_attention_heads, head_dim=self.head_dim, num_key_value_heads=self.kv_heads
        )
        if self.window is not None:
            _check_at_least(window=self.window)
        H, K = self.num_attention_heads, self.kv_heads
        if H % K:
            text = f"num_key_value_heads = {K} does not divide num_attention_heads = {H}"
            raise ValueError(f"{text}: each key/value head serves a group of query heads")

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads ``K``, also where it was left to its default."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def flops_per_pair(self) -> int:
        """FLOPs for one query position and one key position, ``2 * H * Dh`` for the score and as many for the value."""
        return 4 * self.num_attention_heads * self.head_dim

    @property
    def decoding_flops_per_pair(self) -> int:
        """FLOPs for a new token and one position of the cache, the same as in a full pass."""
        return self.flops_per_pair

    @property
    def cached_numbers(self) -> int:
        """Numbers that the cache keeps for each token, ``2 * K * Dh``."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norms of queries and keys, ``2 * Dh``, ``(H + K) * Dh`` or none."""
        wide = (self.num_attention_heads + self.kv_heads) * self.wide_qk_norm
        return (2 * self.qk_norm + wide) * self.head_dim

    def matmul_parameters(self, hidden_size: int) -> int:
        """Count the entries of the four matrices.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            ``2 * D * Dh * (H + K)``.
        """
        return 2 * hidden_size * self.head_dim * (self.num_attention_heads + self.kv_heads)

    def parameters(self, hidden_size: int) -> int:
        """Count the parameters of the four projections, norms left out.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            Entries of the matrices, and of the biases where there are any.
        """
        qkv = self.head_dim * (self.num_attention_heads + 2 * self.kv_heads)
        return self.matmul_parameters(hidden_size) + self.qkv_bias * qkv + self.output_bias * hidden_size


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: keys and values are made from one short vector per token, which alone is cached.

    Queries and keys have a part without position, ``qk_nope_head_dim`` wide in each head, and a rotated part,
    ``qk_rope_head_dim`` wide; the rotated part of the key is shared by all heads.

    Args:
        num_attention_heads: number of heads ``H``.
        kv_lora_rank: width of the latent vector of keys and values.
        qk_nope_head_dim: width of the part of a query and key without position.
        qk_rope_head_dim: width of their rotated part.
        v_head_dim: width of a value.
        q_lora_rank: width of the latent vector of the queries. Default: they are projected directly.

    Raises:
        ValueError: if a size is below 1.

    References:
        DeepSeek-AI (2024), DeepSeek-V2, arXiv:2405.04434, section 2.1.

    Example:
        >>> latent = published("deepseek-v3").layers[0].attention
        >>> latent.cached_numbers, 2 * 128 * 128  # against 128 heads of keys and values
        (576, 32768)
    """

    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    window: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_at_least(**{name: value for name, value in vars(self).items() if value is not None})

    @property
    def flops_per_pair(self) -> int:
        """FLOPs for one query position and one key position, with keys and values of full width."""
        return 2 * self.num_attention_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)

    @property
    def decoding_flops_per_pair(self) -> int:
        """FLOPs for a new token and one position of the cache, by the absorbed form.

        There the matrices that widen the latent vector are applied to the query and to the output, once for each new
        token, and scores and averages are taken of the latent vectors themselves. That is more work for each pair and
        spares widening the whole cache again.
        """
        return 2 * self.num_attention_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    @property
    def cached_numbers(self) -> int:
        """Numbers that the cache keeps for each token, those of the latent vector and of the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norms of the latent vectors."""
        return (self.q_lora_rank or 0) + self.kv_lora_rank

    def matmul_parameters(self, hidden_size: int) -> int:
        """Count the entries of the matrices.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            The sum over the projections to the queries, to the latent vector and rotated key, from the latent vector to
            keys and values, and of the output.
        """
        H, D = self.num_attention_heads, hidden_size
        queries = H * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        q = D * queries if self.q_lora_rank is None else self.q_lora_rank * (D + queries)
        down = D * self.cached_numbers
        up = self.kv_lora_rank * H * (self.qk_nope_head_dim + self.v_head_dim)
        return q + down + up + H * self.v_head_dim * D

    def parameters(self, hidden_size: int) -> int:
        """Count the parameters of the projections, which have no biases, norms left out.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            The same as :meth:`matmul_parameters`.
        """
        return self.matmul_parameters(hidden_size)


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Two linear layers with an activation between them, or three where one of them gates another, as in SwiGLU.

    Args:
        intermediate_size: width ``F`` between the layers.
        gated: whether a third matrix makes the gate.
        bias: whether every linear layer has a bias.

    Raises:
        ValueError: if ``intermediate_size`` is below 1.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.3. Gates: Shazeer (2020), arXiv:2002.05202.

    Example:
        >>> FeedForward(intermediate_size=3072, bias=True).parameters(768)  # 2 * 768 * 3072 + 3072 + 768
        4722432
        >>> FeedForward(intermediate_size=2048, gated=True).parameters(768)  # 3 * 768 * 2048
        4718592
    """

    intermediate_size: int
    gated: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        _check_at_least(intermediate_size=self.intermediate_size)

    def matmul_parameters(self, hidden_size: int) -> int:
        """Count the entries of the matrices.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            ``2 * D * F``, or ``3 * D * F`` with a gate.
        """
        return (2 + self.gated) * hidden_size * self.intermediate_size

    def parameters(self, hidden_size: int) -> int:
        """Count the parameters.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            Entries of the matrices, and of the biases where there are any.
        """
        biases = (1 + self.gated) * self.intermediate_size + hidden_size
        return self.matmul_parameters(hidden_size) + self.bias * biases

    def active_parameters(self, hidden_size: int) -> int:
        """Count the parameters that one token uses.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            All of them.
        """
        return self.parameters(hidden_size)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts: a router without bias sends each token to a few of many feed-forward parts.

    Args:
        expert: one of the experts that are chosen from.
        num_experts: number of them, ``E``.
        num_experts_per_tok: how many of them each token uses, ``A``.
        shared: a part that every token uses besides; several shared experts are one of the sum of their widths.

    Raises:
        ValueError: if a number is below 1, or more experts are used than there are.

    References:
        Shazeer et al. (2017), arXiv:1701.06538. Shared experts: Dai et al. (2024), arXiv:2401.06066.

    Example:
        >>> expert = FeedForward(intermediate_size=14336, gated=True)
        >>> mixture = Experts(expert=expert, num_experts=8, num_experts_per_tok=2)
        >>> mixture.parameters(4096), mixture.active_parameters(4096)  # with a router of 4096 * 8
        (1409318912, 352354304)
    """

    expert: FeedForward
    num_experts: int
    num_experts_per_tok: int
    shared: FeedForward | None = None

    def __post_init__(self) -> None:
        _check_at_least(num_experts=self.num_experts, num_experts_per_tok=self.num_experts_per_tok)
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected at most num_experts = {self.num_experts}"
            )

    def matmul_parameters(self, hidden_size: int) -> int:
        """Count the entries of the matrices that one token is multiplied with.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            Those of ``A`` experts, of the shared part and of the router, which is ``D * E``.
        """
        shared = self.shared.matmul_parameters(hidden_size) if self.shared else 0
        chosen = self.num_experts_per_tok * self.expert.matmul_parameters(hidden_size)
        return chosen + shared + hidden_size * self.num_experts

    def parameters(self, hidden_size: int) -> int:
        """Count the parameters.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            Those of ``E`` experts, of the shared part and of the router.
        """
        return self._parameters(hidden_size, self.num_experts)

    def active_parameters(self, hidden_size: int) -> int:
        """Count the parameters that one token uses.

        Args:
            hidden_size: width ``D`` of the model.

        Returns:
            Those of ``A`` experts, of the shared part and of the router.
        """
        return self._parameters(hidden_size, self.num_experts_per_tok)

    def _parameters(self, hidden_size: int, experts: int) -> int:
        shared = self.shared.parameters(hidden_size) if self.shared else 0
        return experts * self.expert.parameters(hidden_size) + shared + hidden_size * self.num_experts


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: an attention and a feed-forward part, each with a norm and a residual connection around it.

    Args:
        attention: the part that mixes positions.
        feed_forward: the part that works on each position.
        norms: number of norms of width ``D``: 2, or 4 where each part has one before and one after it, as in Gemma 2.

    Raises:
        ValueError: if ``norms`` is negative.

    Example:
        >>> layer = Layer(
        ...     attention=Attention(num_attention_heads=2, head_dim=4), feed_forward=FeedForward(intermediate_size=32)
        ... )
        >>> len(3 * (layer,))  # the layers of a model are a tuple
        3
    """

    attention: Attention | LatentAttention
    feed_forward: FeedForward | Experts
    norms: int = 2

    def __post_init__(self) -> None:
        _check_at_least(0, norms=self.norms)


Head = Literal["linear", "masked", "none"]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder such as GPT or Llama, or an encoder: embeddings, layers, one norm more, a head over the vocabulary.

    The norm comes last in a decoder; in BERT it follows the embeddings.

    Args:
        vocab_size: number of tokens ``V``.
        hidden_size: width ``D`` of the model.
        layers: the ``L`` layers; ``32 * (layer,)`` makes 32 equal ones, ``+`` joins different ones.
        tie_word_embeddings: whether the head uses the matrix of the token embeddings.
        learned_positions: number of learned position embeddings, those of token types added where there are any.
            Default: 0, as with rotary positions.
        norm_bias: whether norms have a bias, as LayerNorm; without one they are RMSNorm.
        head: ``"linear"`` is a matrix to the vocabulary; ``"masked"``, as BERT has it, is a square layer with a bias, a
            norm, and a matrix with a bias; ``"none"`` is an encoder alone.

    Raises:
        ValueError: if a size is below 1, there is no layer, ``learned_positions`` is negative, or ``head`` is something
            else.

    References:
        Vaswani et al. (2017), arXiv:1706.03762.

    Example:
        >>> layer = Layer(
        ...     attention=Attention(num_attention_heads=32, head_dim=128, num_key_value_heads=8),
        ...     feed_forward=FeedForward(intermediate_size=14336, gated=True),
        ... )
        >>> model = Transformer(vocab_size=128256, hidden_size=4096, layers=32 * (layer,))
        >>> model == published("llama-3-8b")
        True
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    tie_word_embeddings: bool = False
    learned_positions: int = 0
    norm_bias: bool = False
    head: Head = "linear"

    def __post_init__(self) -> None:
        _check_at_least(vocab_size=self.vocab_size, hidden_size=self.hidden_size, num_hidden_layers=len(self.layers))
        _check_at_least(0, learned_positions=self.learned_positions)
        if self.head not in get_args(Head):
            raise ValueError(f"head is {self.head!r}, expected one of {', '.join(get_args(Head))}")

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers ``L``."""
        return len(self.layers)

    @property
    def head_matmul_parameters(self) -> int:
        """Entries of the matrices of the head, also where one is tied: ``V * D``, and ``D * D`` before it in BERT's."""
        D = self.hidden_size
        return 0 if self.head == "none" else self.vocab_size * D + D * D * (self.head == "masked")


# --- parameters


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Where the parameters of a model are; what :func:`parameters` returns.

    Args:
        embedding: embeddings of tokens and learned positions.
        attention: projections of all attention parts.
        feed_forward: all feed-forward parts, with their experts and routers.
        norms: weights and biases of all norms.
        head: matrix to the vocabulary, where it is not tied to the embedding; in BERT's head also the layer before it,
            without its norm, and the bias.
        idle: those of the experts that one token does not use; they are part of ``feed_forward``.

    References:
        Kaplan et al. (2020), arXiv:2001.08361, table 1.

    Example:
        >>> counted = Parameters(embedding=10, attention=20, feed_forward=40, norms=2, head=10, idle=15)
        >>> counted.total, counted.active, counted.non_embedding
        (82, 67, 62)
    """

    embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int
    idle: int

    @property
    def total(self) -> int:
        """All parameters, a tied matrix once."""
        return self.embedding + self.attention + self.feed_forward + self.norms + self.head

    @property
    def active(self) -> int:
        """Parameters that take part when one token passes, the whole embedding counted."""
        return self.total - self.idle

    @property
    def non_embedding(self) -> int:
        """All but the embeddings and the head, which is the ``N`` of Kaplan et al. (2020)."""
        return self.total - self.embedding - self.head


def parameters(model: Transformer) -> Parameters:
    r"""Count the parameters of a model.

    For a GPT, with biases, feed-forward width :math:`4D` and a tied head, the total is

    .. math:: N = VD + PD + L\left(12D^2 + 13D\right) + 2D,

    where :math:`P` is the number of learned positions: in each layer :math:`4D^2 + 4D` for attention,
    :math:`8D^2 + 5D` for the feed-forward part and :math:`4D` for two norms; the last norm has :math:`2D`.

    Args:
        model: the architecture.

    Returns:
        The counts, part by part.

    References:
        Kaplan et al. (2020), arXiv:2001.08361, table 1, without biases and norms.

    Example:
        >>> count = parameters(published("gpt2"))
        >>> count.total
        124439808
        >>> D, V, P, L = 768, 50257, 1024, 12
        >>> V * D + P * D + L * (12 * D**2 + 13 * D) + 2 * D
        124439808
        >>> mixture = parameters(published("mixtral-8x7b"))
        >>> round(mixture.total / 1e9, 1), round(mixture.active / 1e9, 1)
        (46.7, 12.9)
    """
    D, layers = model.hidden_size, model.layers
    norm, masked = D * (1 + model.norm_bias), model.head == "masked"
    untied = model.vocab_size * D * (model.head != "none" and not model.tie_word_embeddings)
    feed_forward = sum(layer.feed_forward.parameters(D) for layer in layers)
    return Parameters(
        embedding=(model.vocab_size + model.learned_positions) * D,
        attention=sum(layer.attention.parameters(D) for layer in layers),
        feed_forward=feed_forward,
        norms=sum(layer.norms * norm + layer.attention.norm_parameters for layer in layers) + norm * (1 + masked),
        head=untied + (D * D + D + model.vocab_size) * masked,
        idle=feed_forward - sum(layer.feed_forward.active_parameters(D) for layer in layers),
    )


def matmul_parameters(model: Transformer) -> int:
    """Count the weights that each token is multiplied with: the ``N`` for which ``2 * N`` FLOPs per token are exact.

    These are the matrices of the layers, of experts only those that a token uses, and the head, also where it is tied.
    The embedding is a table to look up, norms and biases are no matrices.

    Args:
        model: the architecture.

    Returns:
        The number of entries; each costs 2 FLOPs for a token in a forward pass and 6 in training.

    References:
        Kaplan et al. (2020), arXiv:2001.08361, section 2.1, where the head is left out.

    Example:
        >>> matmul_parameters(published("gpt2"))  # 12 * 12 * 768**2 in the layers, and a head of 50257 * 768
        123532032
    """
    D = model.hidden_size
    layers = sum(x.attention.matmul_parameters(D) + x.feed_forward.matmul_parameters(D) for x in model.layers)
    return layers + model.head_matmul_parameters


# --- FLOPs


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Where the FLOPs of a model go; what the functions that count FLOPs return.

    Args:
        attention: projections of all attention parts.
        scores: products of queries with keys and of weights with values.
        feed_forward: all feed-forward parts and routers.
        head: product with the matrix of the vocabulary.

    Example:
        >>> Flops(attention=8, scores=2, feed_forward=16, head=4).total
        30
    """

    attention: int
    scores: int
    feed_forward: int
    head: int

    @property
    def total(self) -> int:
        """All FLOPs."""
        return self.attention + self.scores + self.feed_forward + self.head


def forward_flops(model: Transformer, length: int, *, batch: int = 1, causal: bool = False) -> Flops:
    r"""Count the FLOPs of a forward pass over whole sequences, with the head at every position.

    For a GPT with feed-forward width :math:`4D` the total is

    .. math:: C_{\text{forward}} = BT\left(24LD^2 + 4LTD + 2VD\right).

    Args:
        model: the architecture.
        length: number of positions ``T`` of a sequence.
        batch: number of sequences ``B``.
        causal: whether only the ``T * (T + 1) / 2`` pairs that a causal mask allows are counted, which is what a kernel
            that skips the others computes at best. Default: all ``T * T``, as reports of utilization count. In a layer
            with a window a query counts as many keys as the window is wide, at most.

    Returns:
        The FLOPs, part by part.

    Raises:
        ValueError: if ``length`` or ``batch`` is below 1.

    References:
        Narayanan et al. (2021), arXiv:2104.04473, appendix. Chowdhery et al. (2022), arXiv:2204.02311, appendix B.

    Example:
        >>> model = published("gpt2")
        >>> forward_flops(model, 1024).total
        291648307200
        >>> B, T, L, D, V = 1, 1024, 12, 768, 50257
        >>> B * T * (24 * L * D**2 + 4 * L * T * D + 2 * V * D)
        291648307200
    """
    _check_at_least(length=length, batch=batch)
    attentions = [layer.attention for layer in model.layers]
    scores = sum(x.flops_per_pair * _pairs(length, x.window, causal) for x in attentions)
    return _flops(model, batch * length, scores=batch * scores)


def _pairs(length: int, window: int | None, causal: bool) -> int:
    """Return for how many pairs of a query and a key there is a score."""
    W = length if window is None else min(window, length)
    return W * (W + 1) // 2 + (length - W) * W if causal else length * W


Recompute = Literal["none", "selective", "full"]


def training_flops(
    model: Transformer, length: int, *, batch: int = 1, causal: bool = False, recompute: Recompute = "none"
) -> Flops:
    """Count the FLOPs of a forward and a backward pass: three times those of the forward pass.

    Each product ``Y = X @ W`` of the forward pass has two of the same cost in the backward pass, one for the gradient
    of ``X`` and one for that of ``W``. For each token that is 6 FLOPs for each of :func:`matmul_parameters` and a part
    that grows with the length: the rule ``6 * N * tokens`` leaves the scores out.

    Args:
        model: the architecture.
        length: number of positions ``T`` of a sequence.
        batch: number of sequences ``B``.
        causal: whether only the pairs that a causal mask allows are counted.
        recompute: which activations are computed a second time in the backward pass instead of kept: none; those
            between the projections of attention (selective); those of all layers (full). See :func:`activation_bytes`.

    Returns:
        The FLOPs, part by part. Utilization of the model is reported with none, of the hardware with what is run.

    Raises:
        ValueError: if ``length`` or ``batch`` is below 1, or ``recompute`` is something else.

    References:
        Kaplan et al. (2020), arXiv:2001.08361, section 2.1. Recomputing: Korthikanti et al. (2022), arXiv:2205.05198.

    Example:
        >>> model, tokens = published("gpt3-175b"), 300e9
        >>> exact = training_flops(model, 2048).total / 2048 * tokens
        >>> approximate = 6 * parameters(model).total * tokens
        >>> f"{exact:.3g} {approximate:.3g}"  # Brown et al. (2020) say 3.14e+23
        '3.23e+23 3.14e+23'
    """
    _check_recompute(recompute)
    once = forward_flops(model, length, batch=batch, causal=causal)
    layers, scores = 3 + (recompute == "full"), 3 + (recompute != "none")
    return Flops(
        attention=layers * once.attention,
        scores=scores * once.scores,
        feed_forward=layers * once.feed_forward,
        head=3 * once.head,
    )


def decoding_flops(model: Transformer, context: int, *, batch: int = 1) -> Flops:
    """Count the FLOPs of one new token in each sequence, with the keys and values of the others in a cache.

    For each token that is 2 FLOPs for each of :func:`matmul_parameters` and a part that grows with the context. Where
    the model has no latent attention, the sum over the contexts ``1 … T`` is the causal forward pass of length ``T``.

    Args:
        model: the architecture.
        context: number of positions up to the new token, itself among them, of which a layer with a window sees the
            last ones; 0 leaves the scores out.
        batch: number of sequences ``B`` that are decoded together.

    Returns:
        The FLOPs, part by part.

    Raises:
        ValueError: if ``context`` is negative or ``batch`` is below 1.

    References:
        Kaplan et al. (2020), arXiv:2001.08361, section 2.1. Pope et al. (2022), arXiv:2211.05102, section 2.
        The absorbed form of latent attention: DeepSeek-AI (2024), arXiv:2405.04434, section 2.1.

    Example:
        >>> model = published("llama-3-8b")
        >>> decoding_flops(model, 0).total == 2 * matmul_parameters(model)
        True
        >>> round(decoding_flops(model, 8192).total / decoding_flops(model, 0).total, 3)
        1.286
    """
    _check_at_least(batch=batch)
    _check_at_least(0, context=context)
    attentions = [layer.attention for layer in model.layers]
    scores = sum(x.decoding_flops_per_pair * _seen(context, x.window) for x in attentions)
    return _flops(model, batch, scores=batch * scores)


def _seen(context: int, window: int | None) -> int:
    return context if window is None else min(context, window)


def _flops(model: Transformer, tokens: int, *, scores: int) -> Flops:
    """Return 2 FLOPs for each token and each weight that it is multiplied with, and the scores."""
    D, layers = model.hidden_size, model.layers
    return Flops(
        attention=2 * tokens * sum(layer.attention.matmul_parameters(D) for layer in layers),
        scores=scores,
        feed_forward=2 * tokens * sum(layer.feed_forward.matmul_parameters(D) for layer in layers),
        head=2 * tokens * model.head_matmul_parameters,
    )


# --- memory


def kv_bytes_per_token(model: Transformer, *, bytes_per_number: float = 2) -> float:
    """Count the bytes by which the cache of keys and values grows with each token.

    Args:
        model: the architecture.
        bytes_per_number: 2 in 16-bit formats; less when the cache is quantized, scales left out.

    Returns:
        Bytes of all layers, ``2 * L * K * Dh * bytes_per_number`` in equal layers without latent attention.

    Raises:
        ValueError: if ``bytes_per_number`` is not positive.

    References:
        Shazeer (2019), arXiv:1911.02150. Pope et al. (2022), arXiv:2211.05102, section 2.

    Example:
        >>> [kv_bytes_per_token(published(name)) for name in ("llama-2-7b", "llama-3-8b", "deepseek-v3")]
        [524288, 131072, 70272]
    """
    _check_positive(bytes_per_number=bytes_per_number)
    return sum(layer.attention.cached_numbers for layer in model.layers) * bytes_per_number


def kv_cache_bytes(model: Transformer, context: int, *, batch: int = 1, bytes_per_number: float = 2) -> float:
    """Count the bytes of the keys and values of whole sequences; a layer with a window keeps no more than the window.

    Args:
        model: the architecture.
        context: number of positions of a sequence.
        batch: number of sequences ``B``.
        bytes_per_number: 2 in 16-bit formats.

    Returns:
        Bytes of all layers. Without windows that is ``context * batch`` times :func:`kv_bytes_per_token`.

    Raises:
        ValueError: if ``context`` or ``batch`` is below 1, or ``bytes_per_number`` is not positive.

    References:
        Windows: Jiang et al. (2023), arXiv:2310.06825, section 2.

    Example:
        >>> attention = Attention(num_attention_heads=32, head_dim=128, num_key_value_heads=8, window=4096)
        >>> layer = Layer(attention=attention, feed_forward=FeedForward(intermediate_size=14336, gated=True))
        >>> model = Transformer(vocab_size=32000, hidden_size=4096, layers=32 * (layer,))
        >>> kv_cache_bytes(model, 4096) / 2**20, kv_cache_bytes(model, 32768) / 2**20
        (512.0, 512.0)
    """
    _check_at_least(context=context, batch=batch)
    _check_positive(bytes_per_number=bytes_per_number)
    attentions = [layer.attention for layer in model.layers]
    return batch * sum(x.cached_numbers * _seen(context, x.window) for x in attentions) * bytes_per_number


def activation_bytes(
    model: Transformer,
    length: int,
    *,
    batch: int = 1,
    bytes_per_number: float = 2,
    dropout: bool = True,
    recompute: Recompute = "none",
) -> float:
    r"""Count the bytes of the activations that the forward pass keeps for the backward pass, without any parallelism.

    For one layer of a GPT with 16-bit activations and dropout this is the formula of Korthikanti et al.,

    .. math:: BTD\left(34 + 5\,\frac{HT}{D}\right),

    with :math:`11D` bytes a token for attention, :math:`19D` for the feed-forward part, :math:`4D` for two norms and
    :math:`5HT` for the weights of attention, and :math:`34BTD` or :math:`2BTD` if activations are recomputed
    selectively or in full. Outside the layers :math:`BT\left(5D + 4V\right)` bytes are added: the dropout after the
    embedding, the inputs of the last norm and of the head, and the logits in 32 bits. The same rules extend it to
    grouped heads and gates.

    What is assumed: a matrix product keeps its inputs, once where several share one; a norm and an activation
    function keep their input, softmax its output, a gate both factors; dropout, after the embedding, on the weights of
    attention and at the end of both parts, keeps a mask of one byte a number and, on the weights, its output; means and
    variances are left out. An implementation that fuses or copies differently keeps less or more. A kernel such as
    FlashAttention keeps no weights: that is ``recompute="selective"``.

    Args:
        model: the architecture.
        length: number of positions ``T`` of a sequence.
        batch: number of sequences ``B``.
        bytes_per_number: of an activation, 2 in 16-bit formats.
        dropout: whether there is dropout.
        recompute: which activations are computed a second time in the backward pass instead of kept: none; those
            between the projections of attention (selective); those of all layers, which keep their input only (full).

    Returns:
        Bytes.

    Raises:
        ValueError: if ``length`` or ``batch`` is below 1, ``bytes_per_number`` is not positive, ``recompute`` is
            something else, or the model has latent attention, experts or another head than a linear one, which the
            formula does not know.

    References:
        Korthikanti et al. (2022), arXiv:2205.05198, section 4.

    Example:
        >>> model, B, T = published("gpt3-175b"), 1, 2048
        >>> L, D, H, V = 96, 12288, 96, 50257
        >>> activation_bytes(model, T) == L * B * T * (34 * D + 5 * H * T) + B * T * (5 * D + 4 * V)
        True
        >>> [round(activation_bytes(model, T, recompute=how) / 2**30) for how in ("none", "selective", "full")]
        [257, 77, 5]
    """
    _check_at_least(length=length, batch=batch)
    _check_positive(bytes_per_number=bytes_per_number)
    _check_recompute(recompute)
    if model.head != "linear":
        raise ValueError(f"head is {model.head!r}, expected 'linear': the formula knows no others")
    D = model.hidden_size
    outside = D * dropout + 2 * D * bytes_per_number + 4 * model.vocab_size
    if recompute == "full":
        layers = model.num_hidden_layers * D * bytes_per_number
    else:
        kept = length if recompute == "none" else 0
        layers = sum(_activations(layer, D, kept, bytes_per_number, dropout) for layer in model.layers)
    return batch * length * (layers + outside)


def _activations(layer: Layer, D: int, length: int, number: float, dropout: bool) -> float:
    """Return the bytes that one layer keeps for a token, with the weights of attention to ``length`` positions."""
    attention, feed_forward = layer.attention, layer.feed_forward
    if isinstance(attention, LatentAttention) or isinstance(feed_forward, Experts):
        found = type(attention if isinstance(attention, LatentAttention) else feed_forward).__name__
        raise ValueError(f"a layer has {found}, expected Attention and FeedForward: the formula knows no others")
    H, F = attention.num_attention_heads, feed_forward.intermediate_size
    queries, keys = H * attention.head_dim, attention.kv_heads * attention.head_dim
    projections = D + queries + 2 * keys + queries  # inputs of the projections, of the scores and of the output
    projections += (attention.qk_norm + attention.wide_qk_norm) * (queries + keys)
    inner = D + (4 if feed_forward.gated else 2) * F
    weights = H * length * (number + dropout * (1 + number))  # softmax, mask, what the mask leaves
    return number * (layer.norms * D + projections + inner) + weights + 2 * D * dropout


@dataclass(frozen=True, kw_only=True)
class TrainingBytes:
    """What one device keeps of a model in training; what :func:`training_bytes` returns.

    Args:
        weights: bytes of the weights that the passes use.
        gradients: bytes of the gradients.
        optimizer: bytes of the states of the optimizer.

    Example:
        >>> TrainingBytes(weights=2.0, gradients=2.0, optimizer=12.0).total
        16.0
    """

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer


def training_bytes(
    parameters: int,
    *,
    weights: float = 2,
    gradients: float = 2,
    optimizer: float = 12,
    devices: int = 1,
    stage: Literal[0, 1, 2, 3] = 0,
) -> TrainingBytes:
    """Count the bytes of weights, gradients and optimizer on each device; activations come on top.

    In mixed precision weights and gradients have 16 bits. Adam keeps, in 32 bits, a copy of the weights and two
    moments: 12 bytes for each parameter. With ZeRO the devices of data parallelism share the states of the optimizer
    (stage 1), also the gradients (stage 2), also the weights (stage 3).

    Args:
        parameters: number of parameters that are trained.
        weights: bytes of a weight.
        gradients: bytes of a gradient.
        optimizer: bytes of the optimizer's states for each parameter.
        devices: number of devices that share.
        stage: what they share, 0 for nothing.

    Returns:
        Bytes on one device.

    Raises:
        ValueError: if ``parameters`` or ``devices`` is below 1, the bytes of something are negative, or ``stage`` is
            not 0, 1, 2 or 3.

    References:
        Rajbhandari et al. (2019), arXiv:1910.02054, sections 3.1 and 5, and figure 1.

    Example:
        >>> [round(training_bytes(7_500_000_000, devices=64, stage=stage).total / 1e9, 1) for stage in range(4)]
        [120.0, 31.4, 16.6, 1.9]
    """
    _check_at_least(parameters=parameters, devices=devices)
    _check_at_least(0, weights=weights, gradients=gradients, optimizer=optimizer)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage is {stage!r}, expected 0, 1, 2 or 3")
    share = [parameters / (devices if stage >= first else 1) for first in (3, 2, 1)]
    return TrainingBytes(weights=weights * share[0], gradients=gradients * share[1], optimizer=optimizer * share[2])


# --- time


def gpu_hours(flops: float, *, peak_flops: float, mfu: float) -> float:
    """Convert work into hours of one device.

    Args:
        flops: FLOPs that the model needs, from :func:`training_flops` or ``6 * N * tokens``.
        peak_flops: FLOPs per second that the device reaches at most, in the number format that is used.
        mfu: model FLOPs utilization, the part of it that is reached, above 0 and at most 1.

    Returns:
        Hours of one device; divide by the number of devices for the time on the clock.

    Raises:
        ValueError: if ``flops`` or ``peak_flops`` is not positive, or ``mfu`` is not above 0 and at most 1.

    References:
        Chowdhery et al. (2022), arXiv:2204.02311, section 4.1 and appendix B.

    Example:
        >>> gpu_hours(3.6e18, peak_flops=1e15, mfu=0.5)
        2.0
    """
    _check_positive(flops=flops, peak_flops=peak_flops, mfu=mfu)
    if mfu > 1:
        raise ValueError(f"mfu is {mfu}, expected at most 1: say 0.4 for 40 %")
    return flops / (peak_flops * mfu) / 3600


def model_flops_utilization(flops: float, *, gpu_hours: float, peak_flops: float) -> float:
    """Compute which part of the peak a run reached: the inverse of :func:`gpu_hours`.

    Args:
        flops: FLOPs that the model needs, without any that are repeated to save memory.
        gpu_hours: hours of one device that the run took.
        peak_flops: FLOPs per second that the device reaches at most, in the number format that is used.

    Returns:
        The utilization, 1 for the peak.

    Raises:
        ValueError: if an argument is not positive.

    References:
        Chowdhery et al. (2022), arXiv:2204.02311, section 4.1 and appendix B.

    Example:
        >>> model_flops_utilization(3.6e18, gpu_hours=2.0, peak_flops=1e15)
        0.5
    """
    _check_positive(flops=flops, gpu_hours=gpu_hours, peak_flops=peak_flops)
    return flops / (3600 * gpu_hours * peak_flops)


def arithmetic_intensity(flops: float, moved_bytes: float) -> float:
    """Compute how many FLOPs there are for each byte that is moved between memory and processor.

    Args:
        flops: FLOPs of the work.
        moved_bytes: bytes that are read or written.

    Returns:
        FLOPs per byte.

    Raises:
        ValueError: if ``flops`` is negative or ``moved_bytes`` is not positive.

    References:
        Williams, Waterman and Patterson (2009), Roofline: an insightful visual performance model for multicore
        architectures, Communications of the ACM 52(4), where it is called operational intensity.

    Example:
        >>> n = 4096
        >>> round(arithmetic_intensity(2 * n**3, 3 * 2 * n**2))  # two square matrices of 16-bit numbers, multiplied
        1365
        >>> round(arithmetic_intensity(2 * n**2, 2 * n**2 + 2 * 2 * n), 2)  # one of them and a vector
        1.0
    """
    _check_at_least(0, flops=flops)
    _check_positive(moved_bytes=moved_bytes)
    return flops / moved_bytes


def roofline_seconds(flops: float, moved_bytes: float, *, peak_flops: float, bandwidth: float) -> float:
    """Compute the least time that work can take: computing and moving overlap, and the slower of the two decides.

    Where the arithmetic intensity is below ``peak_flops / bandwidth``, moving decides.

    Args:
        flops: FLOPs of the work.
        moved_bytes: bytes that are read or written.
        peak_flops: FLOPs per second that the device reaches at most.
        bandwidth: bytes per second that its memory delivers at most.

    Returns:
        Seconds.

    Raises:
        ValueError: if ``flops`` or ``moved_bytes`` is negative, or ``peak_flops`` or ``bandwidth`` is not positive.

    References:
        Williams, Waterman and Patterson (2009), Roofline: an insightful visual performance model for multicore
        architectures, Communications of the ACM 52(4).

    Example:
        >>> roofline_seconds(6e12, 1e9, peak_flops=1e12, bandwidth=1e9)  # 6 s to compute, 1 s to move
        6.0
        >>> roofline_seconds(6e12, 8e9, peak_flops=1e12, bandwidth=1e9)  # 8 s to move
        8.0
    """
    _check_at_least(0, flops=flops, moved_bytes=moved_bytes)
    _check_positive(peak_flops=peak_flops, bandwidth=bandwidth)
    return max(flops / peak_flops, moved_bytes / bandwidth)


# --- published models


def published(name: str) -> Transformer:
    """Return the configuration of a published model.

    For ``deepseek-v3`` :func:`parameters` counts 671,026,404,352. The published weights hold 14,848 more, one number
    for each of 256 experts in 58 layers, which is added when experts are chosen and which no gradient changes: together
    671,026,419,200. Either is the "671B" of the paper. The files have 685B, because 14B come on top for an extra layer
    that predicts one token more and that is stored with a second copy of the embedding and the head.

    ``gpt3-175b`` attends sparsely in every second layer, which changes no parameter; its FLOPs are counted as dense.

    Args:
        name: one of :func:`published_names`.

    Returns:
        The architecture.

    Raises:
        ValueError: if the name is not known.

    References:
        GPT-2: Radford et al. (2019), Language models are unsupervised multitask learners. GPT-3: Brown et al. (2020),
        arXiv:2005.14165, table 2.1. Llama 2: Touvron et al. (2023), arXiv:2307.09288. Llama 3: Grattafiori et al.
        (2024), arXiv:2407.21783, table 3. Mixtral: Jiang et al. (2024), arXiv:2401.04088, table 1. Qwen3: Yang et al.
        (2025), arXiv:2505.09388, table 1. DeepSeek-V3: DeepSeek-AI (2024), arXiv:2412.19437, section 4.2. What the
        papers leave open, such as the exact size of the vocabulary, is from the ``config.json`` that is published with
        the weights.

    Example:
        >>> for name in published_names():
        ...     print(f"{name:15} {parameters(published(name)).total:15,}")
        deepseek-v3     671,026,404,352
        gpt2                124,439,808
        gpt2-xl           1,557,611,200
        gpt3-175b       174,604,259,328
        llama-2-70b      68,976,648,192
        llama-2-7b        6,738,415,616
        llama-3-70b      70,553,706,496
        llama-3-8b        8,030,261,248
        llama-3.1-405b  405,853,388,800
        mixtral-8x7b     46,702,792,704
        qwen3-0.6b          596,049,920
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published model is called {name!r}, expected one of {', '.join(published_names())}")
    return _PUBLISHED[name]


def published_names() -> tuple[str, ...]:
    """List the models whose configuration :func:`published` knows.

    Returns:
        The names, in alphabetical order.

    Example:
        >>> "llama-3-8b" in published_names()
        True
    """
    return tuple(sorted(_PUBLISHED))


def _gpt(hidden_size: int, layers: int, heads: int, positions: int) -> Transformer:
    attention = Attention(num_attention_heads=heads, head_dim=hidden_size // heads, qkv_bias=True, output_bias=True)
    feed_forward = FeedForward(intermediate_size=4 * hidden_size, bias=True)
    return Transformer(
        vocab_size=50257,
        hidden_size=hidden_size,
        layers=layers * (Layer(attention=attention, feed_forward=feed_forward),),
        tie_word_embeddings=True,
        learned_positions=positions,
        norm_bias=True,
    )


def _llama(vocab_size: int, hidden_size: int, layers: int, heads: int, kv_heads: int, width: int) -> Transformer:
    attention = Attention(num_attention_heads=heads, head_dim=hidden_size // heads, num_key_value_heads=kv_heads)
    feed_forward = FeedForward(intermediate_size=width, gated=True)
    layer = Layer(attention=attention, feed_forward=feed_forward)
    return Transformer(vocab_size=vocab_size, hidden_size=hidden_size, layers=layers * (layer,))


def _mixtral() -> Transformer:
    expert = FeedForward(intermediate_size=14336, gated=True)
    layer = Layer(
        attention=Attention(num_attention_heads=32, head_dim=128, num_key_value_heads=8),
        feed_forward=Experts(expert=expert, num_experts=8, num_experts_per_tok=2),
    )
    return Transformer(vocab_size=32000, hidden_size=4096, layers=32 * (layer,))


def _qwen3() -> Transformer:
    layer = Layer(
        attention=Attention(num_attention_heads=16, head_dim=128, num_key_value_heads=8, qk_norm=True),
        feed_forward=FeedForward(intermediate_size=3072, gated=True),
    )
    return Transformer(vocab_size=151936, hidden_size=1024, layers=28 * (layer,), tie_word_embeddings=True)


def _deepseek_v3() -> Transformer:
    attention = LatentAttention(
        num_attention_heads=128,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        q_lora_rank=1536,
    )
    expert = FeedForward(intermediate_size=2048, gated=True)
    experts = Experts(expert=expert, num_experts=256, num_experts_per_tok=8, shared=expert)
    dense = Layer(attention=attention, feed_forward=FeedForward(intermediate_size=18432, gated=True))
    sparse = Layer(attention=attention, feed_forward=experts)
    return Transformer(vocab_size=129280, hidden_size=7168, layers=3 * (dense,) + 58 * (sparse,))


def _check_at_least(least: float = 1, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected more than 0")


def _check_recompute(recompute: str) -> None:
    if recompute not in ("none", "selective", "full"):
        raise ValueError(f"recompute is {recompute!r}, expected 'none', 'selective' or 'full'")


_PUBLISHED = {
    "gpt2": _gpt(hidden_size=768, layers=12, heads=12, positions=1024),
    "gpt2-xl": _gpt(hidden_size=1600, layers=48, heads=25, positions=1024),
    "gpt3-175b": _gpt(hidden_size=12288, layers=96, heads=96, positions=2048),
    "llama-2-7b": _llama(32000, 4096, layers=32, heads=32, kv_heads=32, width=11008),
    "llama-2-70b": _llama(32000, 8192, layers=80, heads=64, kv_heads=8, width=28672),
    "llama-3-8b": _llama(128256, 4096, layers=32, heads=32, kv_heads=8, width=14336),
    "llama-3-70b": _llama(128256, 8192, layers=80, heads=64, kv_heads=8, width=28672),
    "llama-3.1-405b": _llama(128256, 16384, layers=126, heads=128, kv_heads=8, width=53248),
    "mixtral-8x7b": _mixtral(),
    "qwen3-0.6b": _qwen3(),
    "deepseek-v3": _deepseek_v3(),
}
