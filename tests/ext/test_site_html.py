"""Addresses, titles, the switch, links to sources, translated theme strings and fresh sidebars."""

import re
import subprocess
from pathlib import Path

import furo
import live
import pytest
import site_html
from addresses import VARIABLES, Repository, alternates, repository, site_url, web_address
from languages import load
from sphinx.errors import ConfigError

from .conftest import Book

ROOT = Path(__file__).parents[2]
HTML = {
    "html_theme": "furo",
    "html_copy_source": False,
    "templates_path": [str(ROOT / "docs/_templates")],
    "extensions": ["site_html"],
}
TREE = {
    "index.rst": "首页\n====\n\n.. toctree::\n\n   a\n   sub/b\n",
    "a.rst": "甲\n==\n\n正文。\n",
    "sub/b.rst": "乙\n==\n\n正文。\n",
}
SIDEBARS = {"html_sidebars": {"**": ["sidebar/language.html", "sidebar/navigation.html"]}}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no host of a build speak, unless a test says so; the repository of these tests has no remote either."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("addresses._git", lambda *command: "")


# -- the address of the site ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SITE_URL": ""}, None),
        ({"SITE_URL": "https://example.org/book"}, "https://example.org/book/"),
        ({"SITE_URL": "https://a.org/", "READTHEDOCS_CANONICAL_URL": "https://b.org/"}, "https://a.org/"),
        (
            {"READTHEDOCS_CANONICAL_URL": "https://x.readthedocs.io/zh-cn/latest/"},
            "https://x.readthedocs.io/zh-cn/latest/",
        ),
        ({"GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "Ann/Book"}, "https://ann.github.io/Book/"),
        ({"GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "Ann/ann.github.io"}, "https://ann.github.io/"),
        ({"GITHUB_REPOSITORY": "ann/book"}, None),
        ({"GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "a/b", "GITHUB_SERVER_URL": "https://git.example.org"}, None),
    ],
)
def test_site_url(environ: dict[str, str], expected: str | None) -> None:
    assert site_url(environ) == expected


@pytest.mark.parametrize("wrong", ["example.org", "ftp://example.org", "https://", "/book/"])
def test_site_url_must_be_an_address(wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(wrong))):
        site_url({"SITE_URL": wrong})


def test_alternates_have_one_page_for_all_others() -> None:
    rows = list(load().values())
    assert alternates(rows, "https://e.org/", "a/b") == [
        ("zh-CN", "https://e.org/zh/a/b.html"),
        ("en", "https://e.org/en/a/b.html"),
        ("x-default", "https://e.org/en/a/b.html"),
    ]
    assert alternates(rows, "https://e.org/", "index")[-1] == ("x-default", "https://e.org/")


# -- the address of the repository ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("https://github.com/ann/book.git", "https://github.com/ann/book"),
        ("https://token:x-oauth@github.com/ann/book", "https://github.com/ann/book"),
        ("git@gitlab.com:group/sub/book.git", "https://gitlab.com/group/sub/book"),
        ("ssh://git@git.example.org:2222/ann/book.git", "https://git.example.org/ann/book"),
        ("/srv/git/book.git", None),
        ("../book", None),
        ("file:///srv/book.git", None),
        ("http://localhost:3000/ann/book", None),
        ("https://localhost/ann/book", None),
        ("https://192.168.1.5/ann/book", None),
        ("git@server:ann/book.git", None),
        ("C:\\books\\book", None),
        ("book.bundle", None),
        ("", None),
    ],
)
def test_web_address(remote: str, expected: str | None) -> None:
    assert web_address(remote) == expected


def test_repository_of_github() -> None:
    environ = {
        "GITHUB_REPOSITORY": "ann/book",
        "GITHUB_SERVER_URL": "https://git.example.org",
        "GITHUB_REF_NAME": "v1",
    }
    assert repository(environ) == Repository("https://git.example.org/ann/book", "v1")
    assert repository({**environ, "GITHUB_REF_NAME": "7/merge", "GITHUB_BASE_REF": "main"}).ref == "main"


def test_repository_of_read_the_docs() -> None:
    environ = {"READTHEDOCS_GIT_CLONE_URL": "git@gitlab.com:ann/book.git", "READTHEDOCS_GIT_IDENTIFIER": "main"}
    assert repository(environ) == Repository("https://gitlab.com/ann/book", "main")
    assert (
        repository({**environ, "READTHEDOCS_VERSION_TYPE": "external", "READTHEDOCS_GIT_IDENTIFIER": "7"}).ref == "HEAD"
    )


def test_repository_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    git = lambda *command: subprocess.run(["git", "-C", str(tmp_path), *command], check=True)  # noqa: E731
    assert repository({}, tmp_path) is None
    git("init", "-q")
    assert repository({}, tmp_path) is None
    git("remote", "add", "origin", "/srv/book.git")
    assert repository({}, tmp_path) is None
    git("remote", "set-url", "origin", "git@github.com:ann/book.git")
    assert repository({}, tmp_path) == Repository("https://github.com/ann/book", "HEAD")
    git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "x")
    git("update-ref", "refs/remotes/origin/trunk", "HEAD")
    assert repository({}, tmp_path).ref == "trunk"


@pytest.mark.parametrize(
    ("url", "view", "edit"),
    [
        ("https://github.com/a/b", "/blob/main/x%20y.rst?plain=1", "/edit/main/x%20y.rst"),
        ("https://gitlab.com/a/b", "/-/blob/main/x%20y.rst?plain=1", "/-/edit/main/x%20y.rst"),
        ("https://bitbucket.org/a/b", "/src/main/x%20y.rst", "/src/main/x%20y.rst?mode=edit"),
        ("https://codeberg.org/a/b", "/src/branch/main/x%20y.rst", "/_edit/main/x%20y.rst"),
    ],
)
def test_hosts_spell_links_in_their_own_way(url: str, view: str, edit: str) -> None:
    repo = Repository(url, "main")
    assert (repo.view("x y.rst"), repo.edit("x y.rst")) == (url + view, url + edit)
    assert "/issues/new?" in repo.report("a: b")


# -- the source of a page ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "language", "expected"),
    [
        ("general/x", "zh_CN", "docs/general/x.rst"),
        ("general/x", "en", "locale/en/LC_MESSAGES/general/x.po"),
        ("general/new", "en", "docs/general/new.rst"),
        ("general/stray", "zh_CN", "docs/general/stray.rst"),
        ("api/m", "en", "llm_study/m.py"),
        ("api/m", "zh_CN", "locale/zh_CN/LC_MESSAGES/api/m.po"),
        ("api/p", "en", "llm_study/p/__init__.py"),
        ("api/index", "en", "docs/api/index.rst"),
    ],
)
def test_each_page_has_its_own_source(tmp_path: Path, page: str, language: str, expected: str) -> None:
    files = {
        "docs/general/x.rst": "", "docs/general/new.rst": "", "docs/api/index.rst": "API\n===\n",
        "docs/api/m.rst": "m\n=\n\n.. automodule:: llm_study.m\n", "docs/api/p.rst": ".. automodule:: llm_study.p\n",
        "llm_study/m.py": "", "llm_study/p/__init__.py": "",
        "docs/general/stray.rst": "", "locale/zh_CN/LC_MESSAGES/general/stray.po": "",
        "locale/en/LC_MESSAGES/general/x.po": "", "locale/zh_CN/LC_MESSAGES/api/m.po": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert site_html.source_path(page, language, tmp_path / "docs") == expected


# -- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_without_address_or_repository_has_nothing_that_dangles(book: Book) -> None:
    html = book(TREE, **HTML, **SIDEBARS).read("sub/b.html")
    assert 'rel="canonical"' not in html
    assert 'rel="alternate" hreflang' not in re.sub(r"<nav.*?</nav>", "", html, flags=re.S)
    assert 'rel="edit"' not in html
    assert "report" not in html
    assert "view-this-page" not in html


def test_a_page_knows_its_addresses(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_URL", "https://example.org/book")
    monkeypatch.setenv("GITHUB_REPOSITORY", "ann/{book}")
    built = book(TREE, **HTML, **SIDEBARS, language="en")
    html = built.read("sub/b.html")
    assert '<link rel="canonical" href="https://example.org/book/en/sub/b.html">' in html
    assert '<link rel="alternate" hreflang="zh-CN" href="https://example.org/book/zh/sub/b.html">' in html
    assert '<link rel="alternate" hreflang="x-default" href="https://example.org/book/en/sub/b.html">' in html
    assert "https://github.com/ann/{book}/blob/HEAD/docs/sub/b.rst?plain=1" in html
    assert 'href="https://github.com/ann/{book}/issues/new?title=docs/sub/b.rst%3A%20"' in html
    special = built.read("genindex.html")
    assert "/issues/new" not in special
    assert 'hreflang="x-default"' not in special


def test_a_wrong_address_stops_the_build(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_URL", "example.org")
    with pytest.raises(ConfigError, match=r"SITE_URL: expected an address such as .*found 'example.org'"):
        book(TREE, **HTML)


def test_a_language_without_a_row_stops_the_build(book: Book) -> None:
    with pytest.raises(ConfigError, match=r"languages\.toml: expected a row for language 'fr'"):
        book(TREE, **HTML, language="fr")


@pytest.mark.parametrize(("language", "tag", "other"), [("zh_CN", "zh-CN", "en"), ("en", "en", "zh")])
def test_title_and_switch(book: Book, language: str, tag: str, other: str) -> None:
    built = book(TREE, **HTML, **SIDEBARS, language=language)
    page, front, search = (built.read(name) for name in ("sub/b.html", "index.html", "search.html"))
    title = load()[language].title
    assert f'<html class="no-js" lang="{tag}"' in page
    assert re.search(rf"<title>\S+ - {title}</title>", page)
    assert page.count(f'href="../../{other}/sub/b.html"') == 2  # the sidebar, and the header of narrow screens
    assert front.count(f'href="./../{other}/index.html"') == 2
    assert search.count(f'href="./../{other}/search.html"') == 2
    assert page.count(f'<span lang="{tag}" aria-current="true">{load()[language].label}</span>') == 2


def test_switch_lies_in_sidebar_and_header(book: Book) -> None:
    html = book(TREE, **HTML, **SIDEBARS).read("a.html")
    header, sidebar = html.split('<aside class="sidebar-drawer">')
    assert header.split('<div class="header-right">')[1].lstrip().startswith('<nav class="language-switch"')
    assert '<nav class="language-switch"' in sidebar


def test_theme_strings_are_translated(book: Book) -> None:
    catalog = (ROOT / "locale/zh_CN/LC_MESSAGES/sphinx.po").read_text("utf-8")
    nested = {"index.rst": TREE["index.rst"], "a.rst": TREE["a.rst"] + "\n.. toctree::\n\n   c\n", "c.rst": "丙\n==\n"}
    html = book({**TREE, **nested}, {"sphinx": catalog}, **HTML, **SIDEBARS).read("a.html")
    assert 'aria-label="展开或收起“甲”"' in html
    assert 'aria-label="语言"' in html
    assert "<title>目录</title>" in html
    for text in [*site_html.FIXED, site_html.EXPANDER]:
        assert text not in html


def test_index_entries_of_modules_are_translated(book: Book) -> None:
    html = book({"index.rst": "页\n==\n\n.. py:module:: some.where\n"}, **HTML).read("genindex.html")
    assert "模块" in html
    assert ">module<" not in html


def test_tables_and_formulas_have_their_ids_once(book: Book) -> None:
    table = ".. _tab-x:\n\n.. list-table:: 表\n\n   * - 一\n"
    html = book({"index.rst": f"页\n==\n\n{table}\n.. math:: a\n   :label: eq-x\n"}, **HTML, numfig=True).read(
        "index.html"
    )
    assert 'class="table-wrapper' in html
    assert 'class="math-wrapper' in html
    assert html.count('id="tab-x"') == html.count('id="equation-eq-x"') == 1


def test_what_is_fixed_in_furo_is_still_what_furo_writes() -> None:
    theme = Path(furo.__file__).parent
    text = "".join(path.read_text("utf-8") for path in [*theme.rglob("*.html"), theme / "navigation.py"])
    assert [fixed for fixed in (*site_html.FIXED, site_html.EXPANDER) if fixed not in text] == []
    labels = {"".join(label) for label in re.findall(r'aria-label="([A-Z][^"{]*)"|<title>([A-Z][^<{]*)</title>', text)}
    of_read_the_docs = {"On Read the Docs", "On GitHub"}  # shown only where Read the Docs rewrites the page
    assert labels - of_read_the_docs <= set(site_html.FIXED)


def test_every_string_of_extensions_and_theme_reaches_the_catalog() -> None:
    import sphinx.locale

    listed = (ROOT / "docs/_templates/strings.html").read_text("utf-8")
    known = sphinx.locale.init([], "zh_CN")[0]
    used = set(site_html.FIXED)
    for path in (ROOT / "docs/_ext").glob("*.py"):
        if path.name not in ("plot_figure.py", "marked_strings.py"):  # there _ marks the texts of figures
            used |= set(re.findall(r"(?<![\w.])_\(['\"]([^'\"]+)['\"]\)", path.read_text("utf-8")))
    assert {text for text in used if f'_("{text}")' not in listed and known.gettext(text) == text} == set()


def test_sidebars_of_all_pages_follow_a_changed_title(book: Book) -> None:
    book(TREE, **HTML, **SIDEBARS)
    changed = TREE["a.rst"].replace("甲\n==", "新的标题\n========")
    built = book({**TREE, "a.rst": changed}, **HTML, **SIDEBARS)
    assert "新的标题" in built.read("sub/b.html")


def test_sidebars_follow_a_changed_catalog(book: Book) -> None:
    book(TREE, {"a": {"甲": "Alpha"}}, **HTML, **SIDEBARS, language="en")
    built = book(TREE, {"a": {"甲": "First"}}, **HTML, **SIDEBARS, language="en")
    assert "First" in built.read("sub/b.html")


def test_a_changed_paragraph_leaves_other_pages_alone(book: Book) -> None:
    first = book(TREE, **HTML, **SIDEBARS)
    before = (first.out / "sub/b.html").stat().st_mtime_ns
    built = book({**TREE, "a.rst": TREE["a.rst"] + "\n又一段。\n"}, **HTML, **SIDEBARS)
    assert "又一段" in built.read("a.html")
    assert (built.out / "sub/b.html").stat().st_mtime_ns == before


# -- nox -s docs-live -------------------------------------------------------------------------------------------------


def test_live_reload_marks_what_is_not_translated(book: Book) -> None:
    arguments = live.arguments("en", "--port", "0")
    settings = dict(arguments[i + 1].split("=") for i, name in enumerate(arguments) if name == "-D")
    assert settings.pop("language") == "en"
    catalog = {"a": {"甲": "First", "正文。": ""}}
    html = book(TREE, catalog, **HTML, language="en", **settings).read("a.html")
    assert '<p class="untranslated">正文。</p>' in html
    assert "<h1>First" in html
    assert arguments[-4:-2] == ["--port", "0"]
    assert "-W" not in arguments


@pytest.mark.parametrize("path", ["locale/en/LC_MESSAGES/a.mo", "docs/_generated/a.svg", "docs/.a.swp", "docs/a.rst~"])
def test_live_reload_ignores_what_builds_and_editors_write(path: str) -> None:
    assert re.search(live.WRITTEN, f"/home/ann/book/{path}")


@pytest.mark.parametrize("path", ["locale/en/LC_MESSAGES/a.po", "docs/a.rst", "docs/figures/a.py", "llm_study/a.py"])
def test_live_reload_watches_what_authors_write(path: str) -> None:
    assert not re.search(live.WRITTEN, f"/home/ann/book/{path}")
    assert path.split("/")[0] in {*live.WATCHED, "docs"}
