"""Every check passes what fits and says both numbers of what does not."""

import subprocess
import sys

import pytest

from llm_study.core import checks


def test_what_fits_passes() -> None:
    checks.check_at_least("n", 1, 1)
    checks.check_boolean("mask", "torch.bool")
    checks.check_boolean("mask", "bool")
    checks.check_divides("n_heads", 4, "d_model", 12)
    checks.check_divides("n_heads", 4, "d_model", 0)
    checks.check_equal("width", 8, "d_model", 8)
    checks.check_ndim("x", (2, 3), ("B", "T"))


@pytest.mark.parametrize("shape", [(), (5,), (1,), (3, 5), (1, 5), (4, 1, 1), (2, 4, 3, 5), (1, 1, 1, 1)])
def test_shapes_that_broadcast_pass(shape: tuple[int, ...]) -> None:
    checks.check_broadcastable("mask", shape, (2, 4, 3, 5))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5), (2, 1, 3, 5, 1), (1, 2, 4, 3, 5), (0,)])
def test_shapes_that_do_not_broadcast_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        checks.check_broadcastable("mask", shape, (2, 4, 3, 5))
    assert str(error.value) == f"mask has shape {shape}, which does not broadcast to (2, 4, 3, 5)"


def test_one_may_not_grow_the_target() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(1, 3\)"):
        checks.check_broadcastable("mask", (2, 3), (1, 3))


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (checks.check_at_least, ("n", 2, 3), "n is 2, expected at least 3"),
        (checks.check_boolean, ("m", "torch.int64"), "m has dtype torch.int64, expected torch.bool"),
        (checks.check_divides, ("a", 5, "b", 12), "a = 5 does not divide b = 12 (remainder 2)"),
        (checks.check_divides, ("a", 0, "b", 12), "a is 0, expected at least 1"),
        (checks.check_divides, ("a", -2, "b", 12), "a is -2, expected at least 1"),
        (checks.check_equal, ("a", 5, "b", 6), "a is 5, b is 6, expected the same"),
        (checks.check_ndim, ("x", (2, 3), ("B", "T", "D")), "x has shape (2, 3), expected 3 dimensions (B, T, D)"),
    ],
)
def test_messages_hold_both_numbers_and_the_hint(check, arguments, message) -> None:
    with pytest.raises(ValueError) as plain:
        check(*arguments)
    with pytest.raises(ValueError) as hinted:
        check(*arguments, hint="do this")
    assert (str(plain.value), str(hinted.value)) == (message, f"{message}: do this")


def test_checks_do_not_import_torch() -> None:
    code = "import sys, llm_study, llm_study.core.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
