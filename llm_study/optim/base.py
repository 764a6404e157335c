"""What all optimizers of the book share: one step over all groups, and arguments that are checked.

A group holds parameters and their options, as PyTorch has it; the state of a parameter is a dictionary of tensors and
plain numbers, so that a checkpoint needs no pickle: tensors go into safetensors, numbers into JSON.
"""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["GroupedOptimizer", "check_range"]


def check_range(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """Check that a number is at least ``low`` and below ``high``; NaN is neither.

    Args:
        name: what the number is, as the caller knows it.
        value: the number.
        low: the smallest value that is allowed.
        high: the smallest value that is no longer allowed.

    Raises:
        ValueError: unless ``low <= value < high``.

    Example:
        >>> check_range("lr", 0.1)
        >>> check_range("betas[1]", 1.0, high=1.0)
        Traceback (most recent call last):
        ValueError: betas[1] is 1.0, expected at least 0 and below 1
    """
    if not low <= value < high:
        raise ValueError(f"{name} is {value}, expected at least {low:g} and below {high:g}")


class GroupedOptimizer(Optimizer):
    """An optimizer that is told how to change one parameter, or all of a group at once.

    A subclass defines ``_update_one``, or ``_update`` for all parameters of a group, and in ``_check`` what its options
    may be. A parameter without a gradient is left alone: neither its value nor its state changes, nor its count of
    steps.

    Args:
        params: ``(…)`` tensors of any shapes to train, or dictionaries that hold some of them under ``"params"`` beside
            options of their own.
        defaults: options of groups that do not have their own.

    Raises:
        ValueError: if an option is out of its range, or a parameter is complex.

    Example:
        >>> class SignDescent(GroupedOptimizer):
        ...     def _update_one(self, p, grad, state, group):
        ...         p.sub_(group["lr"] * grad.sign())
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -3.0]))
        >>> optimizer = SignDescent([w], {"lr": 0.5})
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> w.detach()
        tensor([ 2.5000, -2.5000])
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, after checking both.

        Args:
            param_group: parameters under ``"params"``, and options by name.

        Raises:
            ValueError: if an option is out of its range, or a parameter is complex.
        """
        options = {**self.defaults, **param_group}
        check_range("lr", options["lr"])
        if "weight_decay" in options:
            check_range("weight_decay", options["weight_decay"])
        if "eps" in options and isinstance(options["eps"], float | int):
            check_range("eps", options["eps"])
        for i, beta in enumerate(options.get("betas", ())):
            check_range(f"betas[{i}]", beta, high=1.0)
        self._check(options)
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                self._check_parameter(p)
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change every parameter that has a gradient.

        Args:
            closure: computes the loss anew, with gradients, and returns it.

        Returns:
            What ``closure`` returned, None without one.

        Raises:
            ValueError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if any(p.grad.is_sparse for p in params):
                raise ValueError("a gradient is sparse, expected a dense one: make the embedding with sparse=False")
            if params:
                self._update(group, params, [p.grad for p in params])
        return loss

    def _check(self, options: dict[str, Any]) -> None:
        """Check the options that only this optimizer has."""

    def _check_parameter(self, p: Tensor) -> None:
        """Check that this optimizer can train a parameter."""
        if p.is_complex():
            raise ValueError(f"a parameter has dtype {p.dtype}, expected real numbers: use torch.view_as_real")

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p, grad in zip(params, grads, strict=True):
            self._update_one(p, grad, self.state[p], group)

    def _update_one(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} defines neither _update nor _update_one")

    @staticmethod
    def _with_l2(p: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
        """Add the gradient of half the squared length, times the weight decay, to a gradient."""
        return grad.add(p, alpha=weight_decay) if weight_decay else grad

    @staticmethod
    def _count(state: dict[str, Any]) -> int:
        """Count a step in the state of a parameter, and return which one it is, from 1."""
        state["step"] = int(state.get("step", 0)) + 1  # a state of torch's own optimizers holds a tensor
        return int(state["step"])

    @staticmethod
    def _buffers(state: dict[str, Any], like: Tensor, *names: str) -> list[Tensor]:
        """Return tensors of the state of a parameter, zeros at first."""
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(like)
        return [state[name] for name in names]
