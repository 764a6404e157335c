"""What models share besides their base: fresh weights, and checks of masks, positions and token types."""

from torch import Tensor, nn

from llm_study.core.checks import check_at_least, check_boolean, check_equal


def check_mask(mask: Tensor, ids: Tensor, *, name: str = "mask", cached: bool = False) -> None:
    """Check that a mask is boolean, and ``(B, T)`` as the ids are, or ``(B, T, T)``; with a cache only the former."""
    if mask.ndim != 3:
        check_boolean(name, mask.dtype, hint="True where a token is real: convert with .bool()")
        check_equal(f"shape of {name}", tuple(mask.shape), "shape of ids", tuple(ids.shape))
        return
    if cached:
        text = f"{name} has shape {tuple(mask.shape)}, expected {tuple(ids.shape)}, the shape of ids"
        raise ValueError(f"{text}: a cache remembers which tokens are real, not who sees whom; go without it")
    check_boolean(name, mask.dtype, hint="True where a token may see another: convert with .bool()")
    wanted = (*ids.shape, ids.shape[1])
    check_equal(f"shape of {name}", tuple(mask.shape), "shape (B, T, T) for these ids", wanted)


def seen(mask: Tensor) -> Tensor:
    """Turn a mask of real tokens ``(B, T)``, or of pairs ``(B, T, T)``, into one for all heads, ``(B, 1, ·, T)``."""
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]


def check_kept(logits_to_keep: int | None, ids: Tensor) -> None:
    """Check that logits are asked for at one position at least, and at no more than there are."""
    if logits_to_keep is not None and not 1 <= logits_to_keep <= ids.shape[1]:
        raise ValueError(f"logits_to_keep is {logits_to_keep}, expected 1 to {ids.shape[1]}, the number of ids")


def check_indices(name: str, indices: Tensor, ids: Tensor, count_name: str, count: int) -> None:
    """Check that positions or token types are ``(B, T)`` or ``(T,)`` integers below ``count``."""
    if indices.is_floating_point() or indices.is_complex():
        raise ValueError(f"{name} have dtype {indices.dtype}, expected integers: convert with .long()")
    if indices.shape not in (ids.shape, ids.shape[1:]):
        raise ValueError(f"{name} have shape {tuple(indices.shape)}, expected {tuple(ids.shape)}, as the ids have")
    if indices.numel():
        check_at_least(f"the smallest of {name}", int(indices.min()), 0)
        check_at_least(count_name, count, int(indices.max()) + 1, hint=f"the largest of {name} is {int(indices.max())}")


def draw(module: nn.Module, std: float) -> None:
    """Make the matrix of a linear layer or an embedding normal, and its bias 0; leave other modules as they are."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
