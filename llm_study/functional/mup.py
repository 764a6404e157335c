"""Maximal update parametrization (μP): how initialization, learning rate and multiplier change with the width.

A weight is written as ``multiplier * w``, where ``w`` starts with standard deviation ``std`` and is trained with the
learning rate ``lr``. Each function returns the factors on these three, relative to a model of a base width at which
they were tuned, for one of three roles: ``"input"`` maps a fixed width to the model's (embeddings, biases, weights of
norms), ``"hidden"`` maps width to width, ``"output"`` maps the width to a fixed one (the logits).
"""

import math
from dataclasses import dataclass

from llm_study.core.checks import check_at_least

__all__ = ["Scales", "mup_scales", "standard_scales"]


@dataclass(frozen=True)
class Scales:
    """Factors on what was tuned at the base width.

    Args:
        std: factor on the standard deviation of the initialization.
        lr: factor on the learning rate.
        multiplier: factor on the output of the weight.

    Example:
        >>> Scales(std=0.5, lr=0.25, multiplier=1.0).lr
        0.25
    """

    std: float
    lr: float
    multiplier: float


def mup_scales(role: str, *, width: int, base_width: int, optimizer: str = "adam") -> Scales:
    r"""Factors of μP for a model whose width is :math:`m` times the base width.

    ==========  ===================  ==============  ===============  ==============
    role        std                  lr (Adam)       lr (SGD)         multiplier
    ==========  ===================  ==============  ===============  ==============
    input       :math:`1`            :math:`1`       :math:`m`        :math:`1`
    hidden      :math:`m^{-1/2}`     :math:`m^{-1}`  :math:`1`        :math:`1`
    output      :math:`1`            :math:`1`       :math:`m`        :math:`m^{-1}`
    ==========  ===================  ==============  ===============  ==============

    Attention also takes ``1 / Dk`` in the place of ``1 / sqrt(Dk)`` as the scale of its scores when heads get wider.

    Args:
        role: ``"input"``, ``"hidden"`` or ``"output"``.
        width: width of the model, at least 1.
        base_width: width at which the hyperparameters were tuned, at least 1.
        optimizer: ``"adam"``, for every optimizer whose step does not depend on the size of the gradient, or ``"sgd"``.

    Returns:
        The factors; all are 1 at the base width.

    Raises:
        ValueError: if a width is below 1, or the role or the optimizer is none of those above.

    References:
        Yang et al. (2022), arXiv:2203.03466; this is the form with a multiplier on the output, which allows to tie it
        to the embedding.

    Example:
        >>> mup_scales("hidden", width=1024, base_width=256)
        Scales(std=0.5, lr=0.25, multiplier=1.0)
        >>> mup_scales("output", width=1024, base_width=256)
        Scales(std=1.0, lr=1.0, multiplier=0.25)
    """
    m = _ratio(role, width, base_width)
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f'optimizer is "{optimizer}", expected "adam" or "sgd"')
    adam = optimizer == "adam"
    if role == "input":
        return Scales(std=1.0, lr=1.0 if adam else m, multiplier=1.0)
    if role == "hidden":
        return Scales(std=1 / math.sqrt(m), lr=1 / m if adam else 1.0, multiplier=1.0)
    return Scales(std=1.0, lr=1.0 if adam else m, multiplier=1 / m)


def standard_scales(role: str, *, width: int, base_width: int) -> Scales:
    r"""Factors of the standard parametrization (SP): the initialization follows the fan-in, nothing else the width.

    Args:
        role: ``"input"``, ``"hidden"`` or ``"output"``.
        width: width of the model, at least 1.
        base_width: width at which the hyperparameters were tuned, at least 1.

    Returns:
        The factors; ``std`` is :math:`m^{-1/2}` for hidden and output weights, everything else 1.

    Raises:
        ValueError: if a width is below 1, or the role is none of those above.

    References:
        Yang et al. (2022), arXiv:2203.03466, where it is what μP is compared with.

    Example:
        >>> standard_scales("hidden", width=1024, base_width=256)
        Scales(std=0.5, lr=1.0, multiplier=1.0)
    """
    m = _ratio(role, width, base_width)
    return Scales(std=1.0 if role == "input" else 1 / math.sqrt(m), lr=1.0, multiplier=1.0)


def _ratio(role: str, width: int, base_width: int) -> float:
    """Check the arguments and return the width in units of the base width."""
    check_at_least("width", width, 1)
    check_at_least("base_width", base_width, 1)
    if role not in ("input", "hidden", "output"):
        raise ValueError(f'role is "{role}", expected "input", "hidden" or "output"')
    return width / base_width
