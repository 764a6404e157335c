"""``mutants.py``: which checks cannot fail, what is changed in the others, and what no change can do to the machine."""

import doctest
import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutation.blocks import groups
from mutation.changes import changes
from mutation.trials import Runner

ROOT = Path(__file__).parents[2]
STATE = """\
.. testsetup::

   import random
   import torch

.. doctest::

   >>> x, seen = [1.0, 2.0, 3.0], []
   >>> before = random.getstate(), torch.get_rng_state()
   >>> drawn, noise = random.random(), torch.rand(2)
   >>> random.setstate(before[0])
   >>> _ = torch.set_rng_state(before[1])
"""
PAGES = {
    "good": """\
.. doctest::

   >>> def square(n):
   ...     return n * n

.. doctest::
   :verifies: eq-good-output

   >>> square(3) + square(4)
   25
   >>> [square(n) for n in (1, 2)]
   [1, 4]

.. testcode::
   :verifies: eq-good-printed

   total = square(2) + 1
   print("total", total)

.. testoutput::
   :options: +ELLIPSIS

   ... 5
""",
    "idle": """\
.. doctest::

   >>> x, y = [1.0, 2.0], 3
   >>> def same(a, b):
   ...     return all(p == q for p, q in zip(a, b))

1. 列表的一项

   .. doctest::
      :verifies: eq-idle-same

      >>> z = [v * 2 for v in x]
      >>> same(z, z)
      True
      >>> z == z
      True
      >>> True
      True
      >>> 1 + 1 == 2
      True

.. doctest::
   :verifies: eq-idle-nothing

   >>> y
   3
""",
    "state": f"""\
{STATE}
.. doctest::
   :verifies: eq-state-kept

   >>> seen.append(x[0] + 1)
   >>> seen
   [2.0]
   >>> random.random() == drawn, torch.equal(torch.rand(2), noise)
   (True, True)

.. doctest::
   :verifies: eq-state-later

   >>> seen + x[1:]
   [2.0, 2.0, 3.0]
""",
    "errors": """\
.. doctest::
   :verifies: eq-errors-only

   >>> single = ["only"]
   >>> single[0]
   'only'
""",
    "loop": """\
.. doctest::
   :verifies: eq-loop-ends

   >>> n = 0
   >>> while n < 4:
   ...     n += 2
   >>> n
   4
""",
    "broken": """\
.. doctest::

   >>> x = 1
   >>> x + 1
   3

.. doctest::
   :verifies: eq-broken-after

   >>> x + x
   2
""",
    "broken_check": """\
.. doctest::
   :verifies: eq-broken-check

   >>> 1 // 0
   0
""",
    "unread": """\
.. only:: html

   .. doctest::
      :verifies: eq-unread-hidden

      >>> len([])
      0

.. code-block:: rst

   .. doctest::
      :verifies: eq-unread-shown
""",
}


def mutants(folder, *pages, limit=1):
    """Run the tool on pages; return its status, what it printed, and its report by name of the page."""
    command = [sys.executable, ROOT / "docs/_tools/mutants.py", "--limit", str(limit), "--report", folder / "m.json"]
    done = subprocess.run([*command, *pages], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    report = json.loads((folder / "m.json").read_text("utf-8"))
    return done.returncode, done.stdout, {Path(name).stem: page["checks"] for name, page in report.items()}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Return what the tool says of all pages."""
    folder = tmp_path_factory.mktemp("mutants")
    for name, text in PAGES.items():
        (folder / f"{name}.rst").write_text(text, "utf-8")
    return mutants(folder, *(f"{name}.rst" for name in PAGES))


def test_exactly_the_checks_that_cannot_fail_or_run_are_reported_with_page_and_line(tried):
    status, printed, _ = tried
    lines = [line.split(" expected ") for line in printed.splitlines() if ": mut-" in line]
    assert dict(lines) == {
        "broken.rst:1: mut-broken": "a block that passes as it stands, found a failure at line 4; "
        "run the doctests of the page and mend it",
        "broken_check.rst:1: mut-broken": "a block that passes as it stands, found a failure at line 4; "
        "run the doctests of the page and mend it",
        "idle.rst:9: mut-idle": "a change that makes the check fail, found 4 changes under which it passes; "
        "compare what the equation says with a value that was found in another way",
        "idle.rst:22: mut-idle": "a change that makes the check fail, found 0 changes under which it passes; "
        "compare what the equation says with a value that was found in another way",
        "unread.rst:1: mut-unread": "1 checks, found 0 that run; "
        "put ':verifies:' on a '.. doctest::' or '.. testcode::' outside of other directives' code",
    }
    assert status == 1


def test_good_pages_pass(tmp_path):
    for name in ("good", "errors"):
        (tmp_path / f"{name}.rst").write_text(PAGES[name], "utf-8")
    status, printed, _ = mutants(tmp_path, "good.rst", "errors.rst")
    assert status == 0
    assert "mut-" not in printed
    assert "  line     6   13 of  13 100%  eq-good-output\n" in printed


def test_every_change_of_a_good_check_is_noticed_by_its_output(tried):
    [shown, printed] = tried[2]["good"]
    assert shown["fates"] == {"answer": 13}
    assert (printed["line"], printed["equations"]) == (14, ["eq-good-printed"])
    assert (printed["changes"], printed["fates"]) == (7, {"answer": 7})
    assert printed["unmoved"] == printed["survivors"] == []


def test_survivors_and_outputs_that_nothing_alters_are_listed(tried):
    [same, nothing] = tried[2]["idle"]
    assert [(s["line"], s["kind"], s["old"], s["new"]) for s in same["survivors"]] == [
        (12, "operator", "v * 2", "v / 2"),
        (12, "constant", "2", "3"),
        (12, "constant", "2", "4"),
        (12, "constant", "2", "0"),
    ]
    assert same["unmoved"] == [13, 15]
    assert (nothing["changes"], nothing["unmoved"]) == (0, [25])


def test_each_change_begins_with_the_state_that_earlier_blocks_left(tried):
    [kept, later] = tried[2]["state"]
    assert kept["fates"] == {"answer": 9}
    assert later["fates"] == {"answer": 2, "error": 2}


def test_an_error_counts_as_a_failure(tried):
    [check] = tried[2]["errors"]
    assert check["fates"] == {"error": 1}
    assert "only errors, never another answer" in tried[1]


def test_an_endless_loop_is_ended_and_counts_as_a_failure(tried):
    [check] = tried[2]["loop"]
    assert check["fates"]["time"] == 2
    assert [(s["line"], s["new"]) for s in check["survivors"]] == [(6, "4")]


def test_nothing_that_a_change_has_started_is_left_running(tmp_path):
    lock = tmp_path / "lock"
    (tmp_path / "page.rst").write_text(
        f"""\
.. doctest::

   >>> import fcntl, os, subprocess, sys
   >>> home = os.getpid()
   >>> def start():
   ...     if os.getpid() != home:
   ...         handle = open({str(lock)!r}, "w")
   ...         fcntl.flock(handle, fcntl.LOCK_SH)
   ...         code = "import time; time.sleep(60)"
   ...         _ = subprocess.Popen([sys.executable, "-c", code], pass_fds=[handle.fileno()])

.. doctest::
   :verifies: eq-page-left

   >>> start()
   >>> len(sys.argv[:1]) + 1
   2
""",
        "utf-8",
    )
    assert mutants(tmp_path, "page.rst", limit=20)[0] == 0
    with lock.open() as handle:
        for _ in range(100):  # the system may take a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            pytest.fail("a process still holds the lock")


# code → all that it may become
CHANGED = {
    "a + b": {"a * b": "operator", "a - b": "sign"},
    "a - b": {"a + b": "sign"},
    "a * b": {"a / b": "operator"},
    "a / b": {"a * b": "operator"},
    "a ** b": {"a * b": "operator"},
    "a @ b": {"-(a @ b)": "sign", "a * b": "operator"},
    "-a": {"a": "sign"},
    "~a & b": {"~a | b": "operator", "a & b": "sign"},
    "a += b": {"a -= b": "sign"},
    "a and b": {"a or b": "operator"},
    "a < b": {"a > b": "comparison"},
    "a >= b": {"a <= b": "comparison"},
    "a == b": {"a != b": "comparison"},
    "a is not b": {"a is b": "comparison"},
    "not a in b": {"a in b": "comparison", "not a not in b": "comparison"},
    "f(True)": {"f(False)": "constant"},
    "f(5)": {"f(6)": "constant", "f(10)": "constant", "f(0)": "constant"},
    "f(0)": {"f(1)": "constant"},
    "f(0.5)": {"f(1.5)": "constant", "f(1.0)": "constant", "f(0.0)": "constant"},
    "f('5', b'5', None)": {},
    "f'{a - b:.4f} 5'": {"f'{a + b:.4f} 5'": "sign"},
    "torch.allclose(a, b, atol=1e-6)": {},
    "round(a, 4)": {},
    "a.round(decimals=4)": {},
    "torch.manual_seed(5)": {},
    "1 + 1 == 2": {},
    "assert 1 + 1 == 2": {},
    "len([1, 2]) == 2": {},
    "True": {},
    "import a": {},
    "1 +": {},
}


@pytest.mark.parametrize("source", CHANGED)
def test_code_is_changed_in_one_place_at_a_time(source):
    assert {change.source.strip(): change.kind for change in changes(source)} == CHANGED[source]


def test_a_change_says_where_it_is():
    found = [(c.line, c.old, c.new) for c in changes("def f(x):\n    y = -x\n    return y @ x\n")]
    assert found == [(1, "-x", "x"), (2, "y @ x", "-(y @ x)"), (2, "y @ x", "y * x")]


def test_to_turn_an_equality_round_proves_nothing():
    assert [change.proves for change in changes("a == b")] == [False]
    assert [change.proves for change in changes("a < b")] == [True]


def test_groups_are_run_as_sphinx_does():
    page = """\
.. doctest:: one, two

   >>> 1

.. testsetup:: *

   x = 2

.. testcode:: two

   raise ValueError("no")

.. testoutput:: two

   Traceback (most recent call last):
   ValueError: no
"""
    found = {name: [(unit.line, unit.steps[0].whole) for unit in units] for name, units in groups(page).items()}
    assert found == {"one": [(5, True), (1, False)], "two": [(5, True), (1, False), (9, True)]}
    assert groups(page)["two"][2].steps[0].error == "ValueError: no\n"


def test_output_is_compared_as_in_the_doctest_sessions():
    conf = (ROOT / "docs/conf.py").read_text("utf-8")
    assert "\ndoctest_default_flags = doctest.DONT_ACCEPT_TRUE_FOR_1 " in conf
    assert Runner().optionflags == doctest.DONT_ACCEPT_TRUE_FOR_1
