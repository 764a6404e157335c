"""Position encodings: how attention learns where a token stands.

Attention alone is blind to order. What tells it the order is either added to the input (:func:`sinusoidal`), or turned
into the queries and keys (:func:`apply_rope`), or added to the scores (:func:`alibi_bias`, :func:`t5_bias`). Positions
are integer tensors; a relative position is the key's minus the query's, a distance the query's minus the key's.
"""

import math

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_broadcastable, check_divides, check_equal, check_ndim

__all__ = [
    "sinusoidal",
    "rope_frequencies",
    "linear_frequencies",
    "llama3_frequencies",
    "rope_cos_sin",
    "rope_reference",
    "apply_rope",
    "alibi_slopes",
    "alibi_bias",
    "t5_buckets",
    "t5_bias",
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
        Su et al. (2021), arXiv:2104.09864, section 3.2.2.

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
        Su et al. (2021), arXiv:2104.09864, equation (34).

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
        Su et al. (2021), arXiv:2104.09864, equations (12) to (15).

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
        Su et al. (2021), arXiv:2104.09864, equation (34).

    Example:
        >>> cos, sin = rope_cos_sin(torch.tensor([0, 1]), torch.tensor([torch.pi / 2]))  # position 1: a quarter turn
        >>> apply_rope(torch.tensor([[2.0, 1.0], [2.0, 1.0]])[None, None], cos, sin)[0, 0].round()
        tensor([[ 2.,  1.],
                [-1.,  2.]])
    """
    check_equal("width of x", x.shape[-1], "twice the width of cos", 2 * cos.shape[-1], hint="one angle for a pair")
    half = (*x.shape[:-1], x.shape[-1] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        check_broadcastable(name, table.shape, half, hint="for positions (B, T) pass cos[:, None] and sin[:, None]")
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    out = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return out.to(x.dtype)


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
        ``(H, T, S)`` bias, in float32, to be added to scaled scores. It hides nothing: a causal mask is still needed.

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
