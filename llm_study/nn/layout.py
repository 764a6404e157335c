"""How matrices lie in memory: the same numbers, in the order in which decoding reads them fastest.

To write one token a model multiplies each of its matrices with a single vector, and the time is that of reading the
matrix. On a CPU the order of its entries decides how fast that goes: column by column is faster where a layer has more
outputs than inputs, row by row where it has fewer. ``tests/bench/bench_decoding.py`` measures what it does for a model.
"""

from torch import nn

from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import GatedFeedForward

__all__ = ["lay_out_for_decoding"]


def lay_out_for_decoding(model: nn.Module) -> None:
    """Order the matrices of a model in memory so that one token after another is written fastest on a CPU.

    Linear layers with at least as many outputs as inputs are stored column by column, and those that read the same
    input lie side by side in one matrix, which one product reads: queries, keys and values; gates and what they gate.
    Names, shapes and values of the parameters stay what they are; the model can be trained, saved and loaded as before.
    Results differ by rounding, as sums are added up in another order.

    Args:
        model: any module; its parameters are laid out in place.

    Cost: every matrix is copied once, one at a time.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> before, x = layer.weight.detach().clone(), torch.ones(1, 2)
        >>> lay_out_for_decoding(layer)
        >>> layer.weight.shape, layer.weight.stride()  # the same matrix; a step down is the next number in memory
        (torch.Size([3, 2]), (1, 3))
        >>> torch.equal(layer.weight, before), torch.allclose(layer(x), x @ before.T)
        (True, True)
    """
    for module in model.modules():
        if isinstance(module, MultiHeadAttention | GatedFeedForward):
            module.put_side_by_side()
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features >= module.in_features and module.weight.stride(0) != 1:
            module.weight.data = module.weight.detach().t().contiguous().t()
