r"""Orthogonal matrices from free parameters, with which OFT and BOFT turn frozen weights, and LoReFT of hidden states.

A skew-symmetric matrix has free entries above its diagonal; Cayley's transform makes it a rotation. Block-diagonal
rotations mix neighbors, a product of them in the order of a fast Fourier transform (a *butterfly*) mixes everything.
"""

import torch
from torch import Tensor

from llm_study.core.checks import check_at_least, check_equal, check_ndim

__all__ = ["skew_symmetric", "cayley", "block_rotation", "butterfly_rotation", "loreft"]


def skew_symmetric(entries: Tensor, size: int) -> Tensor:
    r"""A skew-symmetric matrix from the entries above its diagonal, row by row: :math:`S^\top = -S`.

    Args:
        entries: ``(…, size * (size - 1) / 2)`` entries above the diagonal.
        size: rows of the matrix.

    Returns:
        ``(…, size, size)`` matrices.

    Raises:
        ValueError: if the number of entries does not fit the size.

    Cost: ``size * size`` copies.

    References:
        Qiu et al. (2023), arXiv:2306.07280.

    Example:
        >>> skew_symmetric(torch.tensor([1.0, 2.0, 3.0]), 3)
        tensor([[ 0.,  1.,  2.],
                [-1.,  0.,  3.],
                [-2., -3.,  0.]])
    """
    check_equal("number of entries", entries.shape[-1], "size * (size - 1) / 2", size * (size - 1) // 2)
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    upper = entries.new_zeros(*entries.shape[:-1], size, size)
    upper[..., rows, columns] = entries
    return upper - upper.mT


def cayley(skew: Tensor) -> Tensor:
    r"""Cayley's transform: the rotation :math:`Q = (I + S)(I - S)^{-1}` of a skew-symmetric matrix :math:`S`.

    Args:
        skew: ``(…, N, N)`` skew-symmetric matrices.

    Returns:
        ``(…, N, N)`` orthogonal matrices of determinant 1; none of them has the eigenvalue −1.

    Raises:
        ValueError: if the matrices are not square.

    Cost: about ``3 * N ** 3`` FLOPs for each matrix.

    References:
        Qiu et al. (2023), arXiv:2306.07280.

    Example:
        >>> cayley(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))  # tan(45°) = 1: by twice that angle
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    check_equal("rows of the matrix", skew.shape[-2], "columns", skew.shape[-1])
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    rotation: Tensor = torch.linalg.solve(eye - skew, eye + skew, left=False)
    return rotation


def block_rotation(blocks: Tensor) -> Tensor:
    """A block-diagonal matrix, the rotation of OFT.

    Args:
        blocks: ``(K, N, N)`` rotations of neighbors.

    Returns:
        ``(K * N, K * N)`` matrix.

    Raises:
        ValueError: if the blocks do not have three dimensions.

    Cost: ``(K * N) ** 2`` copies; it need not be written out to be applied.

    References:
        Qiu et al. (2023), arXiv:2306.07280.

    Example:
        >>> block_rotation(torch.tensor([[[1.0]], [[-1.0]]]))
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    check_ndim("blocks", blocks.shape, ("K", "N", "N"))
    K, N = blocks.shape[:2]
    grid = blocks.new_zeros(K, N, K, N)
    index = torch.arange(K, device=blocks.device)
    grid[index, :, index] = blocks
    return grid.reshape(K * N, K * N)


def butterfly_rotation(blocks: Tensor) -> Tensor:
    r"""A dense rotation as a product of sparse ones, the rotation of BOFT.

    Write an index in base ``N``, with as many digits as there are levels. Level ``l`` mixes the indices that differ in
    digit ``l`` alone; after all levels every output depends on every input.

    Args:
        blocks: ``(L, K, N, N)`` rotations of each level, where ``K = N ** (L - 1)``.

    Returns:
        ``(N ** L, N ** L)`` matrix, with :math:`L N^{L-1}` blocks instead of one.

    Raises:
        ValueError: if the number of blocks of a level is not ``N ** (L - 1)``.

    Cost: ``2 * L * N ** (2 * L + 1)`` FLOPs.

    References:
        Liu et al. (2024), arXiv:2311.06243.

    Example:
        >>> turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        >>> q = butterfly_rotation(turn.expand(2, 2, 2, 2))
        >>> torch.allclose(q, torch.kron(turn, turn)), torch.allclose(q @ q.mT, torch.eye(4), atol=1e-6)
        (True, True)
    """
    check_ndim("blocks", blocks.shape, ("L", "K", "N", "N"))
    levels, count, size = blocks.shape[:3]
    check_at_least("levels", levels, 1)
    check_equal("blocks of a level", count, "N ** (L - 1)", size ** (levels - 1))
    total = torch.eye(size**levels, dtype=blocks.dtype, device=blocks.device)
    for level in range(levels):
        before, after = size**level, size ** (levels - 1 - level)
        grid = total.reshape(before, size, after, -1)  # the middle digit is mixed
        turns = blocks[level].reshape(before, after, size, size)
        total = torch.einsum("banm,bmax->bnax", turns, grid).reshape(size**levels, -1)
    return total


def loreft(hidden: Tensor, rotation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""LoReFT: move hidden states within a subspace, and leave what is orthogonal to it alone.

    .. math:: h' = h + R^\top (W h + b - R h)

    Args:
        hidden: ``(…, D)`` hidden states.
        rotation: ``(R, D)`` orthonormal rows that span the subspace.
        weight: ``(R, D)`` what the coordinates in the subspace shall be.
        bias: ``(R,)`` shift of these coordinates.

    Returns:
        ``(…, D)`` hidden states whose coordinates in the subspace are ``weight @ h + bias``.

    Raises:
        ValueError: if the shapes do not fit together.

    Cost: ``6 * R * D`` FLOPs for each state.

    References:
        Wu et al. (2024), arXiv:2404.03592.

    Example:
        >>> rotation = torch.tensor([[1.0, 0.0]])
        >>> loreft(torch.tensor([5.0, 7.0]), rotation, torch.tensor([[0.0, 1.0]]), torch.tensor([2.0]))
        tensor([9., 7.])
    """
    check_equal("shape of rotation", tuple(rotation.shape), "shape of weight", tuple(weight.shape))
    check_equal("shape of bias", tuple(bias.shape), "(R,)", (weight.shape[0],))
    return hidden + (hidden @ weight.mT + bias - hidden @ rotation.mT) @ rotation
