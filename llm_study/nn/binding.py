"""Modules bound for many steps: what each call of a module looks up and asks anew, looked up and asked once.

To call a module is to look for its parts by name, for hooks, for parameters that may have been replaced since. That
takes microseconds, and a model that writes one token calls a hundred modules in ten milliseconds. What decodes a text
can do all that once, at the start of the text.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Bindable", "bind"]


class Bindable(Protocol):
    """What can be bound in its own way."""

    def bind(self) -> Callable[..., Tensor]:
        """Return a function that computes what the module computes now.

        Returns:
            ``(…) → (…)``, with the arguments of ``forward``; the module itself, where it cannot be bound.
        """


def bind(module: nn.Module) -> Callable[..., Tensor]:
    """Return a function that computes what the module computes now, without gradients.

    Linear layers are bound to their weights. A class that has a method ``bind`` returns a function of its own making,
    which the class vouches for: a class derived from it that has another ``forward`` is not bound by it. Any other
    module, and one with hooks, is returned as it is. The function is good for as long as no part of the module is
    replaced, moved, or given hooks; what is written into its parameters is seen.

    Args:
        module: any module.

    Returns:
        ``(…) → (…)``, with the arguments of ``module.forward``.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> function, x = bind(layer), torch.ones(1, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(3.0)
        >>> torch.equal(function(x), layer(x)), bind(nn.Tanh())
        (True, Tanh())
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return module
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight.detach(), bias=_detached(module.bias))
    if _owner(module, "bind") is not _owner(module, "forward"):
        return module
    return cast(Bindable, module).bind()


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _owner(module: nn.Module, method: str) -> type | None:
    """Return the class that a method of a module comes from."""
    return next((base for base in type(module).__mro__ if method in vars(base)), None)
