"""Modules bound for many steps: what each call of a module looks up and asks anew, looked up and asked once.

To call a module is to look for its parts by name, for hooks, for parameters that may have been replaced since. That
takes microseconds, and a model that writes one token calls a hundred modules in ten milliseconds. What decodes a text
can do all that once, at the start of the text.
"""

from collections.abc import Callable

from torch import Tensor, nn

from llm_study.nn._side_by_side import SideBySide

__all__ = ["bind"]


def bind(module: nn.Module) -> Callable[..., Tensor]:
    """Return a function that computes what the module computes now, without gradients.

    The function is the ``forward`` of a twin, in which plain attributes stand for parameters and bound functions for
    parts. Linear layers and embeddings are bound, and modules whose class says ``bindable = True`` beside its
    ``forward``: that it changes nothing in the module, and asks nothing of a part but to be called. Any other module,
    and one with hooks, is returned as it is. The function is good for as long as no part of the module is replaced,
    moved, or given its first hook; what is written into its parameters is seen.

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
    if module._forward_hooks or module._forward_pre_hooks or not _is_bindable(type(module)):
        return module
    twin = object.__new__(type(module))  # not a copy: what it holds is shared
    held = vars(twin)
    held |= {name: x.settled(module) if isinstance(x, SideBySide) else x for name, x in vars(module).items()}
    held |= {name: x if x is None else x.detach() for name, x in (module._parameters | module._buffers).items()}
    held |= {name: _bound(part) for name, part in module._modules.items()}
    function: Callable[..., Tensor] = twin.forward
    return function


def _is_bindable(kind: type[nn.Module]) -> bool:
    """Whether the class that a forward comes from says so, or is known."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return owner in (nn.Linear, nn.Embedding) or vars(owner).get("bindable", False)


def _bound(part: nn.Module | None) -> object:
    """Return what stands for a part; a list of layers has no forward, and each of them is bound."""
    if isinstance(part, nn.ModuleList):
        return [bind(layer) for layer in part]
    return part if part is None else bind(part)
