"""A skipped test fails the run in CI, and only there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = {
    "a test": "import pytest\n\n\ndef test_x():\n    pytest.skip('why')\n",
    "a module": "import pytest\n\npytest.importorskip('no_such_module')\n\n\ndef test_x():\n    pass\n",
    "nothing": "import pytest\n\n\n@pytest.mark.xfail(strict=True)\ndef test_x():\n    assert False\n",
}


@pytest.mark.parametrize("skipped", TESTS)
def test_skips_fail_in_ci(tmp_path: Path, skipped: str) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(
        TESTS[skipped] + "\n\ndef test_y():\n    pass\n" * (skipped == "a test"), "utf-8"
    )
    (tmp_path / "test_z.py").write_text("def test_z():\n    pass\n", "utf-8")
    status = {}
    for ci in ("", "true"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            ".",
            ".",
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False
        )
        status[ci] = done.returncode
        assert ("which CI does not allow: test_x.py" in done.stdout) == bool(ci and skipped != "nothing"), done.stdout
    assert status == {"": 0, "true": 0 if skipped == "nothing" else 1}
