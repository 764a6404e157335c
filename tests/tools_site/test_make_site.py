"""The site is made when something changed, replaced only when it is sound, and left alone otherwise."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import make_site
import pytest
import sphinx_build
from addresses import VARIABLES
from languages import load

ROOT = Path(__file__).parents[2]
PAGE = '<html><body><section id="s"><h1>{}</h1></section></body></html>'


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "CI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a repository with two pages."""
    files = {
        "docs/index.rst": "一",
        "docs/a.rst": "二",
        "docs/conf.py": "",
        "llm_study/x.py": "",
        "constraints.txt": "x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    languages = (ROOT / "docs/languages.toml").read_text("utf-8")
    (tmp_path / "docs/languages.toml").write_text(languages.replace("complete = true", "complete = false"), "utf-8")
    return tmp_path


class Fake:
    """Stands for Sphinx: each page of the book becomes a page of the site."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.status = 0
        self.body = PAGE

    def __call__(self, builder: str, path: str, *options: str, root: Path) -> int:
        self.calls.append((path, *options))
        out = root / f"build/{builder}/{path}"
        out.mkdir(parents=True, exist_ok=True)
        (out / "search.html").write_text(PAGE, "utf-8")
        for source in (root / "docs").glob("*.rst"):
            (out / f"{source.stem}.html").write_text(self.body.format(source.read_text("utf-8")), "utf-8")
        return self.status


@pytest.fixture
def sphinx(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(sphinx_build, "build", fake)
    return fake


def test_a_second_run_does_nothing(tree: Path, sphinx: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_site.main(tree) == 0
    assert [call[0] for call in sphinx.calls] == ["zh", "en"]
    made = {path: path.stat().st_mtime_ns for path in (tree / "build").rglob("*")}
    assert set(made) >= {
        tree / "build/site" / name for name in ("index.html", "404.html", ".nojekyll", "en/a.html", "zh/index.html")
    }
    capsys.readouterr()
    assert make_site.main(tree) == 0
    assert capsys.readouterr().out == "build/site is up to date\n"
    assert len(sphinx.calls) == 2
    assert {path: path.stat().st_mtime_ns for path in (tree / "build").rglob("*")} == made


@pytest.mark.parametrize(
    "name",
    [
        "docs/a.rst", "docs/new.rst", "docs/conf.py", "docs/_ext/x.py", "docs/references.bib",
        "docs/redirects.toml", "locale/en/LC_MESSAGES/a.po", "llm_study/x.py", "llm_study/nn/y.py",
        "tests/parity/test_x.py", "constraints.txt",
    ],
)  # fmt: skip
def test_every_input_counts(tree: Path, name: str) -> None:
    before = make_site.fingerprints(tree)["all"]
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text("changed = 1\n", "utf-8")
    assert make_site.fingerprints(tree)["all"] != before


@pytest.mark.parametrize(
    "name",
    [
        "locale/en/LC_MESSAGES/a.mo",
        "docs/_ext/__pycache__/x.pyc",
        "docs/_generated/x.svg",
        "docs/node_modules/x",
        "README.md",
    ],
)
def test_what_builds_write_does_not_count(tree: Path, name: str) -> None:
    before = make_site.fingerprints(tree)
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text("x", "utf-8")
    assert make_site.fingerprints(tree) == before


def test_addresses_and_versions_count(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [make_site.fingerprints(tree)["machinery"]]
    monkeypatch.setenv("SITE_URL", "https://example.org/")
    seen.append(make_site.fingerprints(tree)["machinery"])
    monkeypatch.setenv("GITHUB_REPOSITORY", "ann/book")
    seen.append(make_site.fingerprints(tree)["machinery"])
    monkeypatch.setattr(make_site, "distributions", list)
    seen.append(make_site.fingerprints(tree)["machinery"])
    assert len(set(seen)) == 4


def test_a_wrong_address_is_told(
    tree: Path, sphinx: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SITE_URL", "example.org")
    assert make_site.main(tree) == 1
    assert "expected an address such as https://example.org/book/, found 'example.org'" in capsys.readouterr().err


def test_only_machinery_and_ci_build_everything_anew(tree: Path, sphinx: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    make_site.main(tree)
    sphinx.calls.clear()
    (tree / "docs/a.rst").write_text("三", "utf-8")
    make_site.main(tree)
    assert sphinx.calls == [("zh",), ("en",)]
    sphinx.calls.clear()
    (tree / "docs/conf.py").write_text("x = 1", "utf-8")
    make_site.main(tree)
    assert sphinx.calls == [("zh", "-E", "-a"), ("en", "-E", "-a")]
    sphinx.calls.clear()
    monkeypatch.setenv("CI", "true")
    (tree / "docs/a.rst").write_text("四", "utf-8")
    make_site.main(tree)
    assert sphinx.calls == [("zh", "-E", "-a"), ("en", "-E", "-a")]


def test_a_theme_catalog_is_machinery(tree: Path) -> None:
    before = make_site.fingerprints(tree)["machinery"]
    (tree / "locale/zh_CN/LC_MESSAGES").mkdir(parents=True)
    (tree / "locale/zh_CN/LC_MESSAGES/a.po").write_text("x", "utf-8")
    assert make_site.fingerprints(tree)["machinery"] == before
    (tree / "locale/zh_CN/LC_MESSAGES/sphinx.po").write_text("x", "utf-8")
    assert make_site.fingerprints(tree)["machinery"] != before


def test_a_page_whose_source_is_gone_disappears(tree: Path, sphinx: Fake) -> None:
    make_site.main(tree)
    (tree / "docs/a.rst").unlink()
    assert make_site.main(tree) == 0
    assert not (tree / "build/site/zh/a.html").exists()


def test_redirects_stay_behind(tree: Path, sphinx: Fake) -> None:
    (tree / "docs/redirects.toml").write_text('"old/a" = "a"\n', "utf-8")
    assert make_site.main(tree) == 0
    for path in ("zh", "en"):
        assert 'href="../a.html"' in (tree / f"build/site/{path}/old/a.html").read_text("utf-8")


def test_sitemap_only_where_the_address_is_known(tree: Path, sphinx: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    make_site.main(tree)
    assert not (tree / "build/site/sitemap.xml").exists()
    monkeypatch.setenv("SITE_URL", "https://example.org/")
    make_site.main(tree)
    text = (tree / "build/site/sitemap.xml").read_text("utf-8")
    assert text.count("<loc>") == 4


Break = Callable[[Path, Fake], None]


def _sphinx_fails(tree: Path, sphinx: Fake) -> None:
    sphinx.status = 2


def _broken_link(tree: Path, sphinx: Fake) -> None:
    sphinx.body = '<a href="gone.html">{}</a>'


def _bad_redirect(tree: Path, sphinx: Fake) -> None:
    (tree / "docs/redirects.toml").write_text('"old" = "gone"\n', "utf-8")


@pytest.mark.parametrize(
    ("spoil", "status", "message"),
    [
        (_sphinx_fails, 2, "the 简体中文 pages do not build (nox -s 'docs(zh)')"),
        (_broken_link, 1, "zh/a.html: the link gone.html leads nowhere: there is no zh/gone.html"),
        (_bad_redirect, 1, "docs/redirects.toml: 'old' leads to 'gone', which is no page"),
    ],
)
def test_a_failure_leaves_the_last_good_site(
    tree: Path, sphinx: Fake, capsys: pytest.CaptureFixture[str], spoil: Break, status: int, message: str
) -> None:
    make_site.main(tree)
    good = (tree / "build/site/zh/a.html").read_text("utf-8")
    (tree / "docs/a.rst").write_text("坏", "utf-8")
    spoil(tree, sphinx)
    assert make_site.main(tree) == status
    told = capsys.readouterr().err
    assert message in told
    assert told.splitlines()[-1].endswith("build/site is left as it was")
    assert (tree / "build/site/zh/a.html").read_text("utf-8") == good
    assert make_site.main(tree) == status  # the same inputs fail again


def test_a_swap_that_is_cut_short_is_never_taken_for_current(
    tree: Path, sphinx: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_site.main(tree)
    (tree / "docs/a.rst").write_text("三", "utf-8")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        if path.name == "site.new":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_site.main(tree)
    monkeypatch.undo()
    (tree / "docs/a.rst").write_text("二", "utf-8")
    state = make_site.fingerprints(tree)
    assert not make_site.is_current(tree, list(load().values()), state)


# -- sphinx_build, with the real Sphinx -------------------------------------------------------------------------------


@pytest.fixture
def small(tree: Path) -> Path:
    """Return a repository whose book Sphinx can build in a second."""
    sources = {
        "docs/index.rst": "书\n==\n\n.. _top:\n\n节\n--\n\n.. toctree::\n\n   a\n",
        "docs/a.rst": "甲\n==\n\n文。\n",
    }
    for name, text in sources.items():
        (tree / name).write_text(text, "utf-8")
    (tree / "docs/conf.py").write_text(
        "html_theme = 'basic'\nhtml_copy_source = False\nlocale_dirs = ['../locale']\n", "utf-8"
    )
    return tree


def test_the_command_is_strict(tree: Path) -> None:
    command = sphinx_build.command("html", "en", "-E", root=tree)
    assert {"-n", "-W", "--keep-going", "-q", "-E"} <= set(command)
    assert "language=en" in command
    with pytest.raises(SystemExit, match=r"languages\.toml: .*\(zh, en\), found 'fr'"):
        sphinx_build.command("html", "fr", root=tree)


def test_a_warning_fails_every_time_until_it_is_mended(small: Path) -> None:
    good = (small / "docs/a.rst").read_text("utf-8")
    assert sphinx_build.build("html", "zh", root=small) == 0
    (small / "docs/a.rst").write_text(good + "\n:ref:`nowhere`\n", "utf-8")
    assert sphinx_build.build("html", "zh", root=small) != 0
    assert sphinx_build.build("html", "zh", root=small) != 0
    (small / "docs/a.rst").write_text(good, "utf-8")
    assert sphinx_build.build("html", "zh", root=small) == 0


def test_the_whole_way_from_the_command_line(small: Path) -> None:
    for folder in ("_tools", "_ext"):
        shutil.copytree(ROOT / "docs" / folder, small / "docs" / folder)
    catalog = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "文。"\nmsgstr "Text."\n'
    (small / "locale/en/LC_MESSAGES").mkdir(parents=True)
    (small / "locale/en/LC_MESSAGES/a.po").write_text(catalog, "utf-8")
    run = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "docs/_tools/make_site.py"],
        cwd=small,
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    first = run()
    assert (first.returncode, first.stdout) == (0, "build/site: 2 pages in zh/, 2 pages in en/\n"), first.stderr
    assert "文。" in (small / "build/site/zh/a.html").read_text("utf-8")
    assert "Text." in (small / "build/site/en/a.html").read_text("utf-8")
    assert json.loads((small / "build/site.json").read_text("utf-8"))["pages"] == ["a.rst", "index.rst"]
    assert run().stdout == "build/site is up to date\n"
