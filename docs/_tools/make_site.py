"""Bring ``build/site`` up to date: build every language, put the site together, check it, then replace the old one.

``python docs/_tools/make_site.py`` does nothing where no input has changed. Whatever fails, the last good site stays.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/_ext"))

import site_language
import site_links
import site_pages
import sphinx_build
from addresses import repository, site_url
from languages import Language, load

INPUTS = ("docs", "llm_study", "locale", "constraints.txt", "pyproject.toml", "tests/parity")
MACHINERY = (
    "docs/_ext",
    "docs/_templates",
    "docs/_static",
    "docs/conf.py",
    "docs/languages.toml",
    "docs/package-lock.json",
    "docs/inventory.txt",
    "locale/*/LC_MESSAGES/sphinx.po",
)
IGNORED = {"__pycache__", "_generated", "node_modules", ".DS_Store"}
GENERATED = ("search.html", "genindex.html", "py-modindex.html")


def main(root: Path = ROOT) -> int:
    """Make the site; return the exit status."""
    try:
        state = fingerprints(root)
    except ValueError as error:  # an address that is none
        return _fail([str(error)])
    languages = list(load(root / "docs/languages.toml").values())
    if is_current(root, languages, state):
        print("build/site is up to date")
        return 0
    for row in languages:
        _forget_vanished(root, row, state)
        if status := sphinx_build.build("html", row.path, *full_build(root, row, state), root=root):
            return _fail(
                [f"the {row.label} pages do not build (nox -s 'docs({row.path})'): see the messages above"], status
            )
        _remember(root, row, state)
    site, new = root / "build/site", root / "build/site.new"
    if wrong := assemble(root, new, languages):
        return _fail(wrong)
    swap(new, site, root / "build/site.json", state)
    print(f"build/site: {', '.join(f'{len(_pages(site, row))} pages in {row.path}/' for row in languages)}")
    return 0


def _fail(lines: list[str], status: int = 1) -> int:
    shown = lines[:50] + ([f"… and {len(lines) - 50} more"] if len(lines) > 50 else [])
    print(*shown, f"site: {len(lines)} problem(s); build/site is left as it was", sep="\n", file=sys.stderr)
    return status


def fingerprints(root: Path) -> dict[str, Any]:
    """Return a hash of all that the site is made from, one of what concerns every page, and the names of pages."""
    versions = sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    around = [platform.python_version(), *versions, site_url(os.environ), repr(repository(os.environ, root))]
    return {
        "all": _hash(root, INPUTS, around),
        "machinery": _hash(root, MACHINERY, around),
        "pages": sorted(p.relative_to(root / "docs").as_posix() for p in _files(root / "docs") if p.suffix == ".rst"),
    }


def _hash(root: Path, names: tuple[str, ...], around: list[Any]) -> str:
    digest = hashlib.sha256(repr(around).encode())
    for path in (path for name in names for top in sorted(root.glob(name)) for path in _files(top)):
        digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files below a folder but those that builds write, in a fixed order."""
    if path.is_file():
        yield path
    elif path.is_dir() and path.name not in IGNORED:
        for child in sorted(path.iterdir()):
            if child.suffix not in (".mo", ".pyc") and child.name not in IGNORED:
                yield from _files(child)


def is_current(root: Path, languages: list[Language], state: dict[str, Any]) -> bool:
    """Tell whether the site is there and was made from exactly these inputs."""
    there = all((root / "build/site" / row.path / "index.html").exists() for row in languages)
    return there and _read(root / "build/site.json").get("all") == state["all"]


def full_build(root: Path, row: Language, state: dict[str, Any]) -> list[str]:
    """Return the options for a build from nothing: in CI, and where our machinery changed, which Sphinx overlooks."""
    last = _read(root / f"build/html/{row.path}.json")
    return ["-E", "-a"] if os.environ.get("CI") or last.get("machinery") != state["machinery"] else []


def _forget_vanished(root: Path, row: Language, state: dict[str, Any]) -> None:
    """Remove the pages of a language when a source is gone: Sphinx would leave its page for ever."""
    last = _read(root / f"build/html/{row.path}.json")
    if not set(last.get("pages", [])) <= set(state["pages"]) or not last:
        shutil.rmtree(root / f"build/html/{row.path}", ignore_errors=True)
        shutil.rmtree(root / f"build/doctrees/html-{row.path}", ignore_errors=True)


def _remember(root: Path, row: Language, state: dict[str, Any]) -> None:
    (root / f"build/html/{row.path}.json").write_text(json.dumps(state), "utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def assemble(root: Path, new: Path, languages: list[Language]) -> list[str]:
    """Put the site together in a new folder; return what is wrong with it."""
    base = site_url(os.environ)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for row in languages:
        unwanted = shutil.ignore_patterns(".buildinfo*", ".doctrees")
        shutil.copytree(
            root / f"build/html/{row.path}", new / row.path, ignore=unwanted
        )  # keeps the times of unchanged pages
    pages = _pages(new, languages[0])
    redirects = site_pages.load_redirects(root / "docs/redirects.toml")
    if wrong := site_pages.redirect_problems(redirects, pages):
        return wrong
    for row in languages:
        for old, target in redirects.items():
            _write(new / row.path / f"{old}.html", site_pages.redirect_page(old, target, row, base))
    _write(new / "index.html", site_pages.root_page(languages, base))
    _write(new / "404.html", site_pages.missing_page(languages, base))
    _write(new / ".nojekyll", "")  # or GitHub Pages would leave out every folder that begins with _
    if base:
        _write(new / "sitemap.xml", site_pages.sitemap(languages, base, pages))
    return [*site_links.problems(new, [row.path for row in languages]), *site_language.check(new, root)]


def _pages(site: Path, row: Language) -> list[str]:
    """Return the names of the pages that have a source."""
    top = site / row.path
    found = (path.relative_to(top) for path in top.rglob("*.html") if "_static" not in path.parts)
    return sorted(path.with_suffix("").as_posix() for path in found if path.as_posix() not in GENERATED)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def swap(new: Path, site: Path, record: Path, state: dict[str, Any]) -> None:
    """Put the new site in the place of the old one, and note what it was made from."""
    old = site.with_name("site.old")
    record.unlink(missing_ok=True)  # whatever happens from here on, nobody takes an old record for the new site
    shutil.rmtree(old, ignore_errors=True)
    if site.exists():
        site.rename(old)
    new.rename(site)
    shutil.rmtree(old, ignore_errors=True)
    record.write_text(json.dumps(state), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
