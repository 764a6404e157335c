"""The one place where sphinx-build is spelled out: ``python docs/_tools/sphinx_build.py html zh -E``.

Nitpicky, warnings are errors, every one of them is shown. A build that fails or is killed forgets what it had read:
pages that are read already would not warn again, and the next run would be green without anything having been mended.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/_ext"))

from languages import load


def code(path: str, root: Path = ROOT) -> str:
    """Return the code of the language whose folder on the site is ``path``."""
    codes = {row.path: row.code for row in load(root / "docs/languages.toml").values()}
    if path not in codes:
        raise SystemExit(f"docs/languages.toml: expected a language of the table ({', '.join(codes)}), found {path!r}")
    return codes[path]


def command(builder: str, path: str, *options: str, root: Path = ROOT) -> list[str]:
    """Return the command that builds one language."""
    return [
        sys.executable, "-m", "sphinx", "-b", builder, "-n", "-W", "--keep-going", "-q", "-j", "auto",
        "-d", f"build/doctrees/{builder}-{path}", "-D", f"language={code(path, root)}",
        *options, "docs", f"build/{builder}/{path}",
    ]  # fmt: skip


def build(builder: str, path: str, *options: str, root: Path = ROOT) -> int:
    """Build one language and return the exit status."""
    doctrees = root / f"build/doctrees/{builder}-{path}"
    done = doctrees / "done"
    if not done.exists():
        shutil.rmtree(doctrees, ignore_errors=True)
    done.unlink(missing_ok=True)
    status = subprocess.run(command(builder, path, *options, root=root), cwd=root, check=False).returncode
    if status == 0:
        done.touch()
    return status


if __name__ == "__main__":
    sys.exit(build(*sys.argv[1:]))
