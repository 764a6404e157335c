"""Position encodings: how attention learns where a token stands.

Attention alone is blind to order. What tells it the order is either added to the input (:func:`sinusoidal`), or turned
into the queries and keys (:func:`apply_rope`), or added to the scores (:func:`alibi_bias`, :func:`t5_bias`). Positions
are integer tensors; a relative position is the key's minus the query's, a distance the query's minus the key's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_study.core.checks import (
    check_at_least,
    check_boolean,
    check_broadcastable,
    check_divides,
    check_equal,
    check_ndim,
)
from llm_study.functional.attention import masked_softmax

__all__ = [
    "sinusoidal",
    "rope_frequencies",
    "linear_frequencies",
    "llama3_frequencies",
    "rope_cos_sin",
    "rope_reference",
    "apply_rope",
    "rope_permutation",
    "xpos_scales",
    "mrope_cos_sin",
    "alibi_slopes",
    "alibi_bias",
    "t5_buckets",
    "t5_bias",
    "shaw_bias",
    "shaw_values",
    "shaw_attention_reference",
    "transformer_xl_bias",
    "transformer_xl_bias_reference",
    "relative_shift",
    "fire_distances",
    "cope_positions",
    "cope_bias",
    "cope_bias_reference",
]


def sinusoidal(positions: Tensor, d_model: int, *, base: float = 10000.0) -> Tensor:
    r"""Fixed vectors that are added to the embeddings: sines and cosines of falling frequency.

    .. math:: p_{m,2i} = \sin(m\,\theta_i), \qquad p_{m,2i+1} = \cos(m\,\theta_i), \qquad \theta_i = b^{-2i/D}

    Args:
        positions: ``(T,)`` positions :math:`m`.
        d_model: width ``D``, even.
        base: the base :math:`b`; the slowest wave is nearly :math:`2\pi b` positions long.

    Returns:
        ``(T, D)`` vectors of norm :math:`\sqrt{D/2}`, in float32.

    Raises:
        ValueError: if ``positions`` is no vector, or ``d_model`` is odd or below 2.

    Cost: ``T * D`` sines and cosines, computed in float64 so that long sequences lose nothing.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5.

    Example:
        >>> sinusoidal(torch.tensor([0, 1]), 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    check_ndim("positions", positions.shape, ("T",))
    _check_even("d_model", d_model)
    exponents = torch.arange(0, d_model, 2, dtype=torch.float64, device=positions.device) / d_model
    angles = positions[:, None].double() * base**-exponents  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


# --- rotary positions


def rope_frequencies(d_head: int, *, base: float = 10000.0, device: torch.device | str | None = None) -> Tensor:
    r"""Angle by which each pair of features turns from one position to the next.

    .. math:: \theta_i = b^{-2i/d}, \qquad i = 0, \dots, d/2 - 1

    Args:
        d_head: width ``Dh`` of a head (of its rotated part, if only a part is), even.
        base: the base :math:`b`, ``rope_theta`` in configurations of Hugging Face.
        device: where the frequencies are made. Default: torch's default device.

    Returns:
        ``(Dh / 2,)`` radians per position, falling from 1, in float32.

    Raises:
        ValueError: if ``d_head`` is odd or below 2.

    References:
        Su et al. (2021), arXiv:2104.09864, section 3.

    Example:
        >>> rope_frequencies(4)
        tensor([1.0000, 0.0100])
    """
    _check_even("d_head", d_head)
    # 1 / b^x and b^-x round differently; checkpoints were trained with this one
    return 1.0 / base ** (torch.arange(0, d_head, 2, dtype=torch.float32, device=device) / d_head)


def linear_frequencies(frequencies: Tensor, *, factor: float) -> Tensor:
    r"""Frequencies of position interpolation: every position counts as its ``factor``-th part.

    Args:
        frequencies: ``(Dh / 2,)`` from :func:`rope_frequencies`.
        factor: how many times longer the sequences become.

    Returns:
        ``(Dh / 2,)`` the frequencies, divided by ``factor``.

    Raises:
        ValueError: if ``factor`` is not positive.

    References:
        Chen et al. (2023), arXiv:2306.15595, section 2.3.

    Example:
        >>> linear_frequencies(torch.tensor([1.0, 0.5]), factor=4.0)
        tensor([0.2500, 0.1250])
    """
    _check_positive("factor", factor)
    return frequencies / factor


def llama3_frequencies(
    frequencies: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    r"""Frequencies of Llama 3.1: slow pairs are stretched, fast ones kept, those between are mixed.

    A pair turns :math:`r_i = L\,\theta_i / 2\pi` times within the :math:`L` positions of the first training. With the
    factors :math:`f`, :math:`a` (low) and :math:`b` (high),

    .. math:: \theta_i' = (1 - s_i)\,\theta_i / f + s_i\,\theta_i, \qquad
        s_i = \min\left(1, \max\left(0, \frac{r_i - a}{b - a}\right)\right).

    Args:
        frequencies: ``(Dh / 2,)`` from :func:`rope_frequencies`.
        factor: :math:`f`, by which the slow frequencies are divided.
        low_freq_factor: :math:`a`; a pair that turns fewer times is stretched fully.
        high_freq_factor: :math:`b`; a pair that turns more often is left alone.
        original_max_position_embeddings: :math:`L`, the length of the sequences before the stretching.

    Returns:
        ``(Dh / 2,)`` the new frequencies.

    Raises:
        ValueError: if ``factor`` is not positive, or ``high_freq_factor`` not above ``low_freq_factor``.

    References:
        Grattafiori et al. (2024), arXiv:2407.21783; the formula is that of the code released with Llama 3.1.

    Example:
        >>> theta = 2 * torch.pi * torch.tensor([8.0, 2.0, 0.5]) / 100  # turns 8, 2 and 1/2 times in 100 positions
        >>> new = llama3_frequencies(
        ...     theta, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100
        ... )
        >>> new / theta
        tensor([1.0000, 0.5000, 0.2500])
    """
    _check_positive("factor", factor)
    if high_freq_factor <= low_freq_factor:
        text = f"high_freq_factor is {high_freq_factor}, low_freq_factor is {low_freq_factor}"
        raise ValueError(f"{text}: the first must be larger, for pairs that turn more often are the faster ones")
    wavelengths = 2 * math.pi / frequencies
    turns = original_max_position_embeddings / wavelengths
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def rope_cos_sin(
    positions: Tensor, frequencies: Tensor, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    r"""Cosines and sines of the angles :math:`m\,\theta_i`, once for all layers and heads.

    Args:
        positions: ``(…, T)`` positions :math:`m`.
        frequencies: ``(Dh / 2,)`` from :func:`rope_frequencies`, scaled or not.
        dtype: of the result; angles are computed in float32 at least, for bfloat16 does not tell 256 from 257.

    Returns:
        ``(…, T, Dh / 2)`` cosines, and sines of the same shape. For positions ``(B, T)`` insert the dimension of the
        heads with ``cos[:, None]`` before :func:`apply_rope`.

    Raises:
        ValueError: if ``frequencies`` is no vector.

    References:
        Su et al. (2021), arXiv:2104.09864, section 3.

    Example:
        >>> cos, sin = rope_cos_sin(torch.tensor([0, 1]), torch.tensor([torch.pi / 2, 0.0]))
        >>> sin
        tensor([[0., 0.],
                [1., 0.]])
    """
    check_ndim("frequencies", frequencies.shape, ("Dh / 2",))
    wide = torch.promote_types(torch.promote_types(dtype, frequencies.dtype), torch.float32)
    angles = positions[..., None].to(wide) * frequencies.to(wide)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_reference(x: Tensor, positions: Tensor, frequencies: Tensor, *, interleaved: bool = False) -> Tensor:
    r"""Rotary position embedding as its equation; :func:`apply_rope` is the fast twin.

    Two features that form a pair are one complex number :math:`z_i`, and at position :math:`m`

    .. math:: z_i \mapsto e^{\mathrm{i}\,m\,\theta_i}\,z_i.

    Args:
        x: ``(B, H, T, Dh)`` queries or keys, in float32 or float64.
        positions: ``(T,)`` or ``(B, 1, T)`` positions :math:`m`.
        frequencies: ``(Dh / 2,)`` angles :math:`\theta_i` per position.
        interleaved: pair features ``(2i, 2i + 1)``. Default: ``(i, i + Dh / 2)``, as Hugging Face does.

    Returns:
        ``(B, H, T, Dh)`` rotated, with the same pairs.

    Raises:
        ValueError: if the width of ``x`` is not twice the number of frequencies.

    References:
        Su et al. (2021), arXiv:2104.09864, section 3.

    Example:
        >>> x = torch.tensor([[1.0, 0.0]]).reshape(1, 1, 1, 2)
        >>> rope_reference(x, torch.tensor([1]), torch.tensor([torch.pi / 2])).round().flatten()  # a quarter turn
        tensor([-0., 1.])
    """
    check_equal("width of x", x.shape[-1], "twice the number of frequencies", 2 * len(frequencies))
    pairs = (x if interleaved else torch.stack(x.chunk(2, dim=-1), dim=-1)).reshape(*x.shape[:-1], -1, 2)
    angles = positions[..., None] * frequencies.to(x.dtype)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_real(turned)
    return (pairs if interleaved else pairs.mT).flatten(-2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    r"""Rotary position embedding: turn each pair of features by an angle that grows with the position.

    .. math:: \begin{pmatrix} a \\ b \end{pmatrix} \mapsto
        \begin{pmatrix} a\cos m\theta - b\sin m\theta \\ a\sin m\theta + b\cos m\theta \end{pmatrix}

    Norms stay, and the inner product of a query and a key depends on the difference of their positions only.

    Args:
        x: ``(B, H, T, Dh)`` queries or keys.
        cos: ``(T, Dh / 2)`` or ``(B, 1, T, Dh / 2)`` from :func:`rope_cos_sin`.
        sin: ``(T, Dh / 2)`` or ``(B, 1, T, Dh / 2)`` from :func:`rope_cos_sin`.
        interleaved: pair features ``(2i, 2i + 1)``. Default: ``(i, i + Dh / 2)``, as Hugging Face does.

    Returns:
        ``(B, H, T, Dh)`` in the dtype of ``x``; computed in the wider of the dtypes of ``x`` and ``cos``.

    Raises:
        ValueError: if the width of ``x`` is not twice that of ``cos``, or ``cos`` or ``sin`` do not broadcast to ``x``.

    Cost: ``3 * B * H * T * Dh`` FLOPs, against ``2 * B * H * T * Dh * D`` of the projection before it.

    References:
        Su et al. (2021), arXiv:2104.09864, section 3.

    Example:
        >>> cos, sin = rope_cos_sin(torch.tensor([0, 1]), torch.tensor([torch.pi / 2]))  # position 1: a quarter turn
        >>> apply_rope(torch.tensor([[2.0, 1.0], [2.0, 1.0]])[None, None], cos, sin)[0, 0].round()
        tensor([[ 2.,  1.],
                [-1.,  2.]])
    """
    check_equal("width of x", x.shape[-1], "twice the width of cos", 2 * cos.shape[-1], hint="one angle for a pair")
    if not cos.shape == sin.shape == (x.shape[-2], x.shape[-1] // 2):  # asked first, as it is what comes most often
        half = (*x.shape[:-1], x.shape[-1] // 2)
        for name, table in (("cos", cos), ("sin", sin)):
            check_broadcastable(name, table.shape, half, hint="for positions (B, T) pass cos[:, None] and sin[:, None]")
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    out = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def rope_permutation(d_head: int, *, device: torch.device | str | None = None) -> Tensor:
    r"""Order of features that carries interleaved pairs into pairs of halves.

    With :math:`\pi` this order, ``apply_rope(x[..., π], …)`` equals ``apply_rope(x, …, interleaved=True)[..., π]``: the
    even features come first, then the odd ones. The rows of the weights of queries and keys, put in this order within
    each head, move a checkpoint from one pairing to the other; ``π.argsort()`` leads back.

    Args:
        d_head: width ``Dh`` of a head, even.
        device: where the indices are made. Default: torch's default device.

    Returns:
        ``(Dh,)`` indices, in int64.

    Raises:
        ValueError: if ``d_head`` is odd or below 2.

    References:
        Su et al. (2021), arXiv:2104.09864, pairs neighbors; the order is that of the script that converts
        the released weights of Llama for Hugging Face.

    Example:
        >>> rope_permutation(6)
        tensor([0, 2, 4, 1, 3, 5])
    """
    _check_even("d_head", d_head)
    return torch.arange(d_head, device=device).reshape(-1, 2).T.flatten()


def xpos_scales(positions: Tensor, d_head: int, *, scale_base: float = 512.0) -> Tensor:
    r"""Factors of xPos, by which a rotated pair also grows or shrinks with its position.

    .. math:: \zeta_i^{\,m / b}, \qquad \zeta_i = \frac{2i / d + \gamma}{1 + \gamma}, \qquad \gamma = 0.4

    Multiply ``cos`` and ``sin`` by them for the queries, divide for the keys: a score then holds
    :math:`\zeta_i^{(m - n)/b}`, which falls with the distance.

    Args:
        positions: ``(…, T)`` positions :math:`m`; subtract the middle one, lest the factors of long sequences overflow.
        d_head: width ``Dh`` of a head, even.
        scale_base: :math:`b`, the distance over which pair :math:`i` falls to :math:`\zeta_i`.

    Returns:
        ``(…, T, Dh / 2)`` factors, in float32.

    Raises:
        ValueError: if ``d_head`` is odd or below 2, or ``scale_base`` is not positive.

    References:
        Sun et al. (2023), arXiv:2212.10554; the values of :math:`\gamma` and :math:`b` are those of the released code.

    Example:
        >>> xpos_scales(torch.tensor([0, 512]), 4)
        tensor([[1.0000, 1.0000],
                [0.2857, 0.6429]])
    """
    _check_even("d_head", d_head)
    _check_positive("scale_base", scale_base)
    zeta = (torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head + 0.4) / 1.4
    return zeta ** (positions[..., None] / scale_base)


def mrope_cos_sin(
    positions: Tensor, frequencies: Tensor, sections: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    r"""Cosines and sines of M-RoPE: a token has several coordinates, and each turns its own section of the pairs.

    For a token of text all coordinates are equal, and the result is that of :func:`rope_cos_sin`.

    Args:
        positions: ``(A, …, T)`` one position for each of ``A`` axes; in Qwen2-VL time, height and width.
        frequencies: ``(Dh / 2,)`` from :func:`rope_frequencies`.
        sections: how many of the pairs, in order, belong to each axis; ``[16, 24, 24]`` in Qwen2-VL.
        dtype: of the result; angles are computed in float32 at least.

    Returns:
        ``(…, T, Dh / 2)`` cosines, and sines of the same shape, for :func:`apply_rope`.

    Raises:
        ValueError: if there are not as many sections as axes, or they do not add up to the number of frequencies.

    References:
        Wang et al. (2024), arXiv:2409.12191.

    Example:
        >>> cos, sin = mrope_cos_sin(torch.tensor([[0], [1]]), torch.full((3,), torch.pi / 2), [1, 2])
        >>> sin  # the first pair stands at position 0, the other two at position 1
        tensor([[0., 1., 1.]])
    """
    check_equal("number of sections", len(sections), "number of axes, the first dimension of positions", len(positions))
    check_equal("sum of sections", sum(sections), "number of frequencies", len(frequencies))
    parts = torch.split(frequencies, list(sections))
    tables = [rope_cos_sin(axis, part, dtype=dtype) for axis, part in zip(positions, parts, strict=True)]
    return torch.cat([cos for cos, _ in tables], dim=-1), torch.cat([sin for _, sin in tables], dim=-1)


# --- biases on the scores


def alibi_slopes(n_heads: int, *, device: torch.device | str | None = None) -> Tensor:
    r"""Slopes of ALiBi: a geometric sequence from :math:`2^{-8/H}` to :math:`2^{-8}`.

    Where :math:`H` is no power of two, the first :math:`P` slopes are those of the largest power of two :math:`P < H`,
    and the rest are every other slope of :math:`2P` heads, beginning with the steepest.

    Args:
        n_heads: number of heads ``H``.
        device: where the slopes are made. Default: torch's default device.

    Returns:
        ``(H,)`` slopes, in float32.

    Raises:
        ValueError: if ``n_heads`` is below 1.

    References:
        Press et al. (2022), arXiv:2108.12409, section 3; for other head counts, the code released with it.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
        >>> alibi_slopes(3)  # those of 2 heads, then the first of 4
        tensor([0.0625, 0.0039, 0.2500])
    """
    check_at_least("n_heads", n_heads, 1)
    power = 1 << (n_heads.bit_length() - 1)  # the largest power of two that is not above n_heads
    exponents = [8 * h / power for h in range(1, power + 1)]
    exponents += [4 * h / power for h in range(1, 2 * (n_heads - power), 2)]
    return torch.tensor([2.0**-x for x in exponents], device=device)


def alibi_bias(n_heads: int, t: int, s: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    r"""Bias of ALiBi: each head subtracts from a score its slope times the distance.

    .. math:: b_{hij} = -m_h\,|i - j|

    Args:
        n_heads: number of heads ``H``.
        t: number of queries; they are the last ``t`` of ``s`` positions.
        s: number of keys, at least ``t``. Default: ``t``.
        device: where the bias is made. Default: torch's default device.

    Returns:
        ``(H, T, S)`` bias, in float32, to be added to scaled scores. It hides nothing; a causal mask is still needed.

    Raises:
        ValueError: if ``n_heads`` is below 1, ``t`` negative, or ``s < t``.

    References:
        Press et al. (2022), arXiv:2108.12409, section 3.

    Example:
        >>> alibi_bias(2, 2, 3)[0]  # slope 1/16
        tensor([[-0.0625,  0.0000, -0.0625],
                [-0.1250, -0.0625,  0.0000]])
    """
    relative = _relative_positions(t, s, device)
    return alibi_slopes(n_heads, device=device)[:, None, None] * -relative.abs()


def t5_buckets(
    relative_positions: Tensor, *, bidirectional: bool = True, n_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    r"""Bucket of each relative position in T5: exact when near, logarithmic when far, one for all beyond.

    With :math:`n` buckets for one direction and :math:`e = n/2`, a distance :math:`d` falls into bucket

    .. math:: \beta(d) = \begin{cases} d & d < e \\
        \min\left(n - 1,\; e + \left\lfloor (n - e)\,\frac{\ln(d/e)}{\ln(d_{\max}/e)} \right\rfloor\right) & d \ge e.
        \end{cases}

    With ``bidirectional`` each direction has half of the buckets, those of later keys are the upper half; without, a
    later key counts as distance 0.

    Args:
        relative_positions: ``(…)`` integers, position of the key minus position of the query.
        bidirectional: True in encoders, False in decoders.
        n_buckets: number of buckets; a multiple of 4, or of 2 where one direction has them all.
        max_distance: distance from which on all share the last bucket.

    Returns:
        ``(…)`` buckets from 0 to ``n_buckets - 1``, in int64.

    Raises:
        ValueError: if the buckets do not split evenly, or ``max_distance`` is not above the exact distances.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 2.1; the formula is that of the released code.

    Example:
        >>> t5_buckets(torch.tensor([-200, -20, -3, 0, 3, 20, 200]))
        tensor([15, 10,  3,  0, 19, 26, 31])
        >>> t5_buckets(torch.tensor([-200, -20, -3, 0, 3]), bidirectional=False)
        tensor([31, 17,  3,  0,  0])
    """
    check_at_least("n_buckets", n_buckets, 1)
    check_divides("parts that buckets split into", 4 if bidirectional else 2, "n_buckets", n_buckets)
    n = n_buckets // 2 if bidirectional else n_buckets
    exact = n // 2
    check_at_least("max_distance", max_distance, exact + 1, hint=f"distances below {exact} have a bucket each")
    distances = relative_positions.abs() if bidirectional else (-relative_positions).clamp(min=0)
    far = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (n - exact)
    buckets = torch.where(distances < exact, distances, (exact + far.long()).clamp(max=n - 1))
    return buckets + n * (relative_positions > 0) if bidirectional else buckets


def t5_bias(
    table: Tensor, t: int, s: int | None = None, *, bidirectional: bool = True, max_distance: int = 128
) -> Tensor:
    r"""Bias of T5: a learned number for each bucket of :func:`t5_buckets` and each head.

    Args:
        table: ``(n_buckets, H)`` learned numbers, shared by all layers.
        t: number of queries; they are the last ``t`` of ``s`` positions.
        s: number of keys, at least ``t``. Default: ``t``.
        bidirectional: True in encoders, False in decoders.
        max_distance: distance from which on all share the last bucket.

    Returns:
        ``(H, T, S)`` bias in the dtype of ``table``, to be added to the scores (which T5 does not scale).

    Raises:
        ValueError: if ``table`` has not two dimensions, its buckets do not split evenly, ``max_distance`` is too small,
            ``t`` is negative, or ``s < t``.

    References:
        Raffel et al. (2020), arXiv:1910.10683, section 2.1.

    Example:
        >>> t5_bias(torch.arange(4.0)[:, None], 3, bidirectional=False, max_distance=4)[0]
        tensor([[0., 0., 0.],
                [1., 0., 0.],
                [2., 1., 0.]])
    """
    check_ndim("table", table.shape, ("n_buckets", "H"))
    relative = _relative_positions(t, s, table.device)
    buckets = t5_buckets(relative, bidirectional=bidirectional, n_buckets=len(table), max_distance=max_distance)
    return table[buckets].movedim(-1, 0)


def shaw_bias(q: Tensor, table: Tensor, s: int | None = None, *, scale: float | None = None) -> Tensor:
    r"""Relative positions of Shaw et al., on the side of the keys: a learned vector for each clipped distance.

    .. math:: b_{ij} = s\,q_i \cdot a_{\operatorname{clip}(j - i,\,-c,\,c)}

    so that the score becomes :math:`s\,q_i \cdot (k_j + a_{j-i})`. The products with the ``2 c + 1`` vectors are made
    once and picked from, no tensor of ``T * S * Dh`` numbers is built.

    Args:
        q: ``(B, H, T, Dh)`` queries, of the last ``T`` of ``s`` positions.
        table: ``(2 * c + 1, Dh)`` learned vectors; the middle one belongs to the query's own position.
        s: number of keys, at least ``T``. Default: ``T``.
        scale: factor on the scores. Default: ``Dh ** -0.5``.

    Returns:
        ``(B, H, T, S)`` bias for :func:`~llm_study.functional.attention.biased_attention`.

    Raises:
        ValueError: if the widths of ``q`` and ``table`` differ, ``table`` has an even number of rows, or ``s < T``.

    Cost: ``2 * B * H * T * (2 * c + 1) * Dh`` FLOPs.

    References:
        Shaw et al. (2018), arXiv:1803.02155, section 3.

    Example:
        >>> q = torch.tensor([[[[1.0], [2.0], [3.0]]]])
        >>> shaw_bias(q, torch.tensor([[-1.0], [0.0], [1.0]]))[0, 0]  # earlier: -1, self: 0, later: 1
        tensor([[ 0.,  1.,  1.],
                [-2.,  0.,  2.],
                [-3., -3.,  0.]])
    """
    check_equal("width of table", table.shape[-1], "width of q", q.shape[-1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    products = scale * (q @ table.mT)  # (B, H, T, 2c + 1)
    rows = _clipped(q.shape[2], s, table)
    return products.gather(-1, rows.expand(*q.shape[:2], *rows.shape))


def shaw_values(weights: Tensor, table: Tensor) -> Tensor:
    r"""Relative positions of Shaw et al., on the side of the values: what they add to the output of attention.

    .. math:: o_i \mathrel{+}= \sum_j p_{ij}\,a_{\operatorname{clip}(j - i,\,-c,\,c)}

    Args:
        weights: ``(B, H, T, S)`` attention weights :math:`p`; the queries are the last ``T`` of ``S`` positions.
        table: ``(2 * c + 1, Dv)`` learned vectors; the middle one belongs to the query's own position.

    Returns:
        ``(B, H, T, Dv)``, to be added to the output.

    Raises:
        ValueError: if ``table`` has an even number of rows, or ``S < T``.

    Cost: ``2 * B * H * T * (2 * c + 1) * Dv`` FLOPs: weights of equal distance are added up first.

    References:
        Shaw et al. (2018), arXiv:1803.02155, section 3.

    Example:
        >>> weights = torch.tensor([[[[1.0, 0.0], [0.75, 0.25]]]])
        >>> shaw_values(weights, torch.tensor([[1.0], [0.0], [5.0]]))[0, 0]  # earlier: 1, self: 0
        tensor([[0.0000],
                [0.7500]])
    """
    rows = _clipped(weights.shape[2], weights.shape[3], table)
    by_distance = weights.new_zeros(*weights.shape[:3], len(table))
    return by_distance.scatter_add(-1, rows.expand(weights.shape), weights) @ table


def shaw_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, key_table: Tensor, value_table: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    r"""Attention with relative positions, as its equation; fast are :func:`shaw_bias` and :func:`shaw_values`.

    .. math:: o_i = \sum_j p_{ij}\,(v_j + a^V_{j-i}), \qquad
        p_{ij} = \operatorname{softmax}_j\!\left(\frac{q_i \cdot (k_j + a^K_{j-i})}{\sqrt{d_k}}\right)

    Args:
        q: ``(B, H, T, Dk)`` queries, of the last ``T`` of ``S`` positions.
        k: ``(B, H, S, Dk)`` keys.
        v: ``(B, H, S, Dv)`` values.
        key_table: ``(2 * c + 1, Dk)`` vectors added to the keys.
        value_table: ``(2 * c + 1, Dv)`` vectors added to the values.
        mask: ``(T, S)`` or broadcastable to ``(B, H, T, S)``; True where attention is allowed. Default: everywhere.

    Returns:
        ``(B, H, T, Dv)``.

    Raises:
        ValueError: if a table has an even number of rows, ``S < T``, or the mask does not fit.

    Cost: tensors of ``B * H * T * S * Dk`` numbers.

    References:
        Shaw et al. (2018), arXiv:1803.02155, section 3.

    Example:
        >>> q = torch.zeros(1, 1, 2, 1)
        >>> shaw_attention_reference(q, q, q, torch.zeros(3, 1), torch.tensor([[1.0], [0.0], [5.0]])).flatten()
        tensor([2.5000, 0.5000])
    """
    (T, Dk), S = q.shape[2:], k.shape[2]
    keys = k[:, :, None] + key_table[_clipped(T, S, key_table)]  # (B, H, T, S, Dk)
    values = v[:, :, None] + value_table[_clipped(T, S, value_table)]  # (B, H, T, S, Dv)
    weights = masked_softmax((q[:, :, :, None] * keys).sum(-1) / math.sqrt(Dk), mask)
    return (weights[..., None] * values).sum(-2)


def transformer_xl_bias_reference(
    q: Tensor, k: Tensor, r: Tensor, u: Tensor, v: Tensor, *, scale: float | None = None
) -> Tensor:
    r"""Three of the four terms of Transformer-XL, as their equation; :func:`transformer_xl_bias` is the fast twin.

    .. math:: b_{ij} = s\,\bigl(q_i \cdot r_{i-j} + u \cdot k_j + v \cdot r_{i-j}\bigr)

    Args:
        q: ``(B, H, T, Dh)`` queries, of the last ``T`` of ``S`` positions.
        k: ``(B, H, S, Dh)`` keys.
        r: ``(H, T + S - 1, Dh)`` keys of the distances ``S - 1``, …, 0, …, ``1 - T`` (query minus key).
        u: ``(H, Dh)`` what every query asks of the content.
        v: ``(H, Dh)`` what every query asks of the distance.
        scale: factor on the scores. Default: ``Dh ** -0.5``.

    Returns:
        ``(B, H, T, S)`` bias for :func:`~llm_study.functional.attention.biased_attention`.

    References:
        Dai et al. (2019), arXiv:1901.02860, section 3.3, terms (b), (c) and (d).

    Example:
        >>> q = k = torch.zeros(1, 1, 2, 1)
        >>> r = torch.tensor([[[1.0], [0.0], [-1.0]]])  # a key of its own for distances 1, 0, -1
        >>> transformer_xl_bias_reference(q, k, r, torch.zeros(1, 1), torch.ones(1, 1))[0, 0]
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    T, S, scale = q.shape[2], k.shape[2], q.shape[-1] ** -0.5 if scale is None else scale
    rows = S - 1 + _relative_positions(T, S, q.device)  # distance d stands in row S - 1 - d
    each = r[:, rows]  # (H, T, S, Dh)
    b = torch.einsum("bhtd,htsd->bhts", q, each)
    c = torch.einsum("hd,bhsd->bhs", u, k)[:, :, None]
    d = torch.einsum("hd,htsd->hts", v, each)
    return scale * (b + c + d)


def relative_shift(x: Tensor) -> Tensor:
    r"""Turn products with the key of each distance into a bias of each pair of positions, without any index.

    Row :math:`i` moves to the left by :math:`T - 1 - i`: the result at :math:`(i, j)` is ``x`` at
    :math:`(i,\,T - 1 - i + j)`. A column of zeros is put before the rows, and the numbers are read in rows of length
    :math:`T`.

    Args:
        x: ``(…, T, T + S - 1)``; column ``n`` belongs to distance ``S - 1 - n`` (query minus key).

    Returns:
        ``(…, T, S)``; the queries are the last ``T`` of ``S`` positions.

    Raises:
        ValueError: if ``x`` has fewer columns than rows.

    References:
        Dai et al. (2019), arXiv:1901.02860, appendix B.

    Example:
        >>> relative_shift(torch.tensor([[2, 1, 0, -1, -2]] * 3))  # distances, of 3 queries and 3 keys
        tensor([[ 0, -1, -2],
                [ 1,  0, -1],
                [ 2,  1,  0]])
    """
    T, R = x.shape[-2:]
    check_at_least("number of columns", R, T, hint=f"there are T + S - 1 distances, and T is {T}")
    padded = torch.nn.functional.pad(x, (1, 0)).reshape(*x.shape[:-2], R + 1, T)
    return padded[..., 1:, :].reshape(x.shape)[..., : R - T + 1]


def transformer_xl_bias(q: Tensor, k: Tensor, r: Tensor, u: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    r"""Relative positions of Transformer-XL: all of the score but the product of query and key.

    .. math:: b_{ij} = s\,\bigl((q_i + v) \cdot r_{i-j} + u \cdot k_j\bigr)

    Args:
        q: ``(B, H, T, Dh)`` queries, of the last ``T`` of ``S`` positions.
        k: ``(B, H, S, Dh)`` keys.
        r: ``(H, T + S - 1, Dh)`` keys of the distances ``S - 1``, …, 0, …, ``1 - T`` (query minus key): a projection of
            :func:`sinusoidal` vectors. Rows of negative distances are not used under a causal mask.
        u: ``(H, Dh)`` what every query asks of the content.
        v: ``(H, Dh)`` what every query asks of the distance.
        scale: factor on the scores. Default: ``Dh ** -0.5``.

    Returns:
        ``(B, H, T, S)`` bias for :func:`~llm_study.functional.attention.biased_attention`.

    Raises:
        ValueError: if ``r`` has not ``T + S - 1`` rows, or ``S < T``.

    Cost: ``2 * B * H * T * (T + S - 1) * Dh`` FLOPs.

    References:
        Dai et al. (2019), arXiv:1901.02860, section 3.3 and appendix B.

    Example:
        >>> q = k = torch.zeros(1, 1, 2, 1)
        >>> r = torch.tensor([[[1.0], [0.0], [-1.0]]])  # a key of its own for distances 1, 0, -1
        >>> transformer_xl_bias(q, k, r, torch.zeros(1, 1), torch.ones(1, 1))[0, 0]
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    T, S = q.shape[2], k.shape[2]
    check_at_least("number of keys", S, T, hint=f"the {T} queries are the last of the positions")
    check_equal("rows of r", r.shape[-2], "number of distances T + S - 1", T + S - 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    distance = relative_shift((q + v[:, None]) @ r.mT)  # (B, H, T, S)
    content = (k @ u[..., None]).mT  # (B, H, 1, S)
    return scale * (distance + content)


def fire_distances(
    t: int,
    s: int | None = None,
    *,
    c: Tensor | float,
    threshold: Tensor | float,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Distances of FIRE: on a logarithmic scale, as a part of the query's own position.

    .. math:: x_{ij} = \frac{\psi(i - j)}{\psi(\max(L, i))}, \qquad \psi(d) = \ln(c\,d + 1)

    However long the sequence, the values lie between 0 and 1, where the function that maps them was trained.

    Args:
        t: number of queries; they are the last ``t`` of ``s`` positions.
        s: number of keys, at least ``t``. Default: ``t``.
        c: ``()`` how soon the logarithm sets in, a positive number; learned in the paper.
        threshold: ``()`` the position :math:`L` up to which distances are divided by the same number; learned too.
        device: where the distances are made. Default: torch's default device.

    Returns:
        ``(T, S)`` numbers from 0 to 1, in float32. A later key counts as distance 0.

    Raises:
        ValueError: if ``c`` or ``threshold`` is not positive, ``t`` negative, or ``s < t``.

    References:
        Li et al. (2024), arXiv:2310.04418.

    Example:
        >>> fire_distances(1, 4, c=1.0, threshold=1.0)  # ln 4, ln 3, ln 2 and 0, divided by ln 4
        tensor([[1.0000, 0.7925, 0.5000, 0.0000]])
    """
    for name, value in (("c", c), ("threshold", threshold)):
        _check_positive(name, torch.as_tensor(value).item())
    relative = _relative_positions(t, s, device)
    own = torch.arange(relative.shape[1] - t, relative.shape[1], device=device, dtype=torch.float32)[:, None]
    largest = torch.maximum(own, torch.as_tensor(threshold, dtype=torch.float32, device=device))
    return torch.log(c * (-relative).clamp(min=0) + 1) / torch.log(c * largest + 1)


def cope_positions(scores: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Positions of CoPE: how many of the tokens from a key to the query the query counts.

    .. math:: p_{ij} = \sum_{l = j}^{S} g_{il}, \qquad g_{il} = \sigma(z_{il})

    With all gates open it is the distance plus one; a gate that opens only at the ends of sentences counts sentences.

    Args:
        scores: ``(…, T, S)`` scores :math:`z`, scaled products of queries and keys.
        mask: ``(…, T, S)``, broadcastable to ``scores``; what is not allowed is not counted. Default: everything is.

    Returns:
        ``(…, T, S)`` positions, no integers.

    Raises:
        ValueError: if the mask is not boolean, or does not broadcast to the shape of ``scores``.

    References:
        Golovneva et al. (2024), arXiv:2405.18719.

    Example:
        >>> scores = torch.tensor([[9.0, 9.0, -99.0, 9.0]])  # the third token is not counted
        >>> cope_positions(scores).round()
        tensor([[3., 2., 1., 1.]])
    """
    gates = scores.sigmoid()
    if mask is not None:
        check_boolean("mask", mask.dtype, hint="pass mask == 0 if 0 marks what is allowed")
        check_broadcastable("mask", mask.shape, scores.shape)
        gates = gates * mask
    return gates.flip(-1).cumsum(-1).flip(-1)


def cope_bias_reference(q: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    r"""Bias of CoPE as its equation; :func:`cope_bias` is the fast twin.

    .. math:: b_{ij} = q_i \cdot e(p_{ij}), \qquad
        e(p) = (1 - w)\,e_{\lfloor p \rfloor} + w\,e_{\lfloor p \rfloor + 1}, \qquad w = p - \lfloor p \rfloor

    Args:
        q: ``(B, H, T, Dh)`` queries.
        positions: ``(B, H, T, S)`` from :func:`cope_positions`; those beyond the table count as its last row.
        table: ``(P, Dh)`` learned vectors of the positions 0, 1, …, ``P - 1``.

    Returns:
        ``(B, H, T, S)`` bias for :func:`~llm_study.functional.attention.biased_attention`.

    Cost: a tensor of ``B * H * T * S * Dh`` numbers.

    References:
        Golovneva et al. (2024), arXiv:2405.18719.

    Example:
        >>> table = torch.tensor([[0.0], [10.0], [20.0]])
        >>> cope_bias_reference(torch.ones(1, 1, 1, 1), torch.tensor([[[[0.5, 1.0, 7.0]]]]), table)
        tensor([[[[ 5., 10., 20.]]]])
    """
    below, above, part = _neighbors(positions, len(table))
    vectors = torch.lerp(table[below], table[above], part[..., None])  # (B, H, T, S, Dh)
    return (q[:, :, :, None] * vectors).sum(-1)


def cope_bias(q: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    r"""Bias of CoPE: the query's product with a vector of the position, interpolated between two neighbors.

    .. math:: b_{ij} = (1 - w)\,q_i \cdot e_{\lfloor p_{ij} \rfloor} + w\,q_i \cdot e_{\lfloor p_{ij} \rfloor + 1}

    Args:
        q: ``(B, H, T, Dh)`` queries.
        positions: ``(B, H, T, S)`` from :func:`cope_positions`; those beyond the table count as its last row.
        table: ``(P, Dh)`` learned vectors of the positions 0, 1, …, ``P - 1``.

    Returns:
        ``(B, H, T, S)`` bias for :func:`~llm_study.functional.attention.biased_attention`.

    Raises:
        ValueError: if the widths of ``q`` and ``table`` differ, or ``table`` has no row.

    Cost: ``2 * B * H * T * P * Dh`` FLOPs: products are interpolated, not vectors.

    References:
        Golovneva et al. (2024), arXiv:2405.18719.

    Example:
        >>> table = torch.tensor([[0.0], [10.0], [20.0]])
        >>> cope_bias(torch.ones(1, 1, 1, 1), torch.tensor([[[[0.5, 1.0, 7.0]]]]), table)
        tensor([[[[ 5., 10., 20.]]]])
    """
    check_equal("width of table", table.shape[-1], "width of q", q.shape[-1])
    check_at_least("rows of table", len(table), 1)
    below, above, part = _neighbors(positions, len(table))
    products = q @ table.mT  # (B, H, T, P)
    return torch.lerp(products.gather(-1, below), products.gather(-1, above), part)


def _neighbors(positions: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows below and above each position, and how far it lies between them."""
    positions = positions.clamp(max=n - 1)
    below = positions.floor()
    return below.long(), positions.ceil().long(), positions - below


def _clipped(t: int, s: int | None, table: Tensor) -> Tensor:
    """Row of a table of 2c + 1 vectors for each pair of positions, ``(T, S)``."""
    check_at_least("rows of the table", len(table), 1)
    if len(table) % 2 == 0:
        raise ValueError(f"the table has {len(table)} rows, expected an odd number 2c + 1: distances from -c to c")
    c = len(table) // 2
    return _relative_positions(t, s, table.device).clamp(-c, c) + c


def _relative_positions(t: int, s: int | None, device: torch.device | str | None) -> Tensor:
    """Key's position minus query's, ``(T, S)``; the queries are the last t of s positions."""
    s = t if s is None else s
    check_at_least("number of queries t", t, 0)
    check_at_least("number of keys s", s, t, hint=f"the t = {t} queries are the last of the s positions")
    return torch.arange(s, device=device) - torch.arange(s - t, s, device=device)[:, None]


def _check_even(name: str, value: int) -> None:
    check_at_least(name, value, 2)
    check_divides("size of a pair", 2, name, value)


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}, expected more than 0")
