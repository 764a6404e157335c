"""The checks of a finished site, each on a site with one fault."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import site_links

PAGE = '<html><body><section id="top"><h1>T</h1>{}</section></body></html>'
Make = Callable[..., list[str]]


@pytest.fixture
def check(tmp_path: Path) -> Make:
    """Return a function that writes a sound site of two languages, with changes, and returns what is wrong with it."""

    links = {"a": "b.html#top", "index": "b.html#top", "b": "../en/b.html?x=1#top"}
    sound = {
        f"{path}/{name}.html": PAGE.format(f'<a href="{link}">b</a>')
        for path in ("zh", "en")
        for name, link in links.items()
    }
    sound |= {
        "index.html": '<a href="zh/index.html">z</a>',
        "en/b.html": PAGE.format('<a href="https://example.org/">out</a><img src="_static/x.svg">'),
        "en/_static/x.svg": "<svg/>",
        "en/_static/x.css": "a { background: url(x.svg) } b { background: url('data:image/png;base64,xx') }",
    }

    def run(changes: dict[str, str] | None = None) -> list[str]:
        for name, text in {**sound, **(changes or {})}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        return list(site_links.problems(tmp_path, ["zh", "en"]))

    return run


def test_a_sound_site_has_no_problem(check: Make) -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<a href="gone.html">x</a>', "the link gone.html leads nowhere: there is no zh/gone.html"),
        ('<a href="b.html#gone">x</a>', "the link b.html#gone leads nowhere: zh/b.html has no anchor #gone"),
        ('<a href="#gone">x</a>', "the link #gone leads nowhere: zh/a.html has no anchor #gone"),
        ('<a href="/zh/b.html">x</a>', "the link /zh/b.html starts at the root of the host"),
        ('<a href="../../b.html">x</a>', "the link ../../b.html leaves the site"),
        ('<img src="gone.svg">', "the link gone.svg leads nowhere"),
        ('<img src="https://cdn.example.org/x.svg">', "loads https://cdn.example.org/x.svg from another host"),
        ("<img src=//cdn.example.org/x.svg>", "loads //cdn.example.org/x.svg from another host"),
        ('<img srcset="https://cdn.example.org/x.svg 2x">', "loads https://cdn.example.org/x.svg from another host"),
        (
            '<script async src="https://cdn.example.org/x.js"></script>',
            "loads https://cdn.example.org/x.js from another",
        ),
        ('<link rel="stylesheet" href="https://cdn.example.org/x.css">', "loads https://cdn.example.org/x.css from"),
        ('<link rel="preconnect" href="https://cdn.example.org">', "loads https://cdn.example.org from another host"),
        (
            "<style>@import 'https://cdn.example.org/x.css'</style>",
            "loads https://cdn.example.org/x.css from another host",
        ),
        ('<p style="background: url(https://cdn.example.org/x)">', "loads https://cdn.example.org/x from another host"),
        ('<iframe src="https://video.example.org/1"></iframe>', "loads https://video.example.org/1 from another host"),
    ],
)
def test_each_fault_is_found(check: Make, body: str, expected: str) -> None:
    [problem] = check({"zh/a.html": PAGE.format(body)})
    assert problem.startswith(f"zh/a.html: {expected}")


@pytest.mark.parametrize(
    "body",
    [
        '<a href="https://example.org/">x</a>',
        '<a href="mailto:ann@example.org">x</a>',
        '<link rel="canonical" href="https://example.org/zh/a.html">',
        '<link rel="alternate" hreflang="en" href="https://example.org/en/a.html">',
        '<!-- <img src="https://example.org/x.svg"> -->',
        "<script>const text = '<img src=\"https://example.org/x.svg\">'</script>",
        "<pre>&lt;img src=&quot;https://example.org/x.svg&quot;&gt;</pre>",
        '<img src="data:image/svg+xml;base64,xx">',
        '<a href="b.html?a=1&amp;b=2#top">x</a>',
        '<a href="b%2Ehtml">x</a>',
    ],
)
def test_what_is_allowed_passes(check: Make, body: str) -> None:
    assert check({"zh/a.html": PAGE.format(body)}) == []


def test_stylesheets_are_read(check: Make) -> None:
    assert check({"zh/_static/x.css": "@font-face { src: url(https://fonts.example.org/f.woff2) }"}) != []
    assert check({"zh/_static/x.css": "a { background: url(gone.svg) }"}) == [
        "zh/_static/x.css: the link gone.svg leads nowhere: there is no zh/_static/gone.svg"
    ]


def test_languages_have_the_same_pages(check: Make) -> None:
    [problem] = check({"zh/new.html": PAGE})
    assert problem == "en/new.html: the page exists in zh/ only; every language has the same pages"
    problems = check({"en/more.html": PAGE})
    assert "zh/more.html: the page exists in en/ only; every language has the same pages" in problems


@pytest.mark.parametrize("mark", ['<section id="s">', '<dt id="s">', '<div id="equation-s">'])
def test_languages_have_the_same_anchors(check: Make, mark: str) -> None:
    [problem] = check({"en/a.html": PAGE.format(mark)})
    assert "exists in en/ only; label the section" in problem
    assert problem.startswith("en/a.html: the anchor #")


def test_an_id_is_given_once(check: Make) -> None:
    assert check({"zh/a.html": PAGE.format('<p id="top">')}) == [
        "zh/a.html: two elements have the id 'top'; give one another name"
    ]


def test_markup_that_was_not_read_is_found(check: Make) -> None:
    [problem] = check({"zh/a.html": PAGE.format("<p>熵:math:<cite>H(p)</cite></p>")})
    assert problem == "zh/a.html: the text shows the markup :math:; put a space or '\\ ' before it"
    [problem] = check({"zh/a.html": PAGE.format("<p>见:py:func:<cite>f</cite></p>")})
    assert ":py:func:" in problem


def test_an_index_may_differ(check: Make) -> None:
    assert check({"en/genindex.html": PAGE, "zh/genindex.html": PAGE.format('<section id="X">')}) == []


class Parser(HTMLParser):
    """The slow way."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids |= {attributes["id"] or ""} if "id" in attributes else set()
        self.links += [attributes["href"] or ""] if tag == "a" and "href" in attributes else []


def test_the_fast_reader_sees_what_a_parser_sees(site_root: Path) -> None:
    pages = sorted(site_root.glob("*/**/*.html"))
    assert pages
    for path in pages:
        text, parser = path.read_text("utf-8"), Parser()
        parser.feed(text)
        page = site_links.read(text)
        assert (page.ids, page.links) == (parser.ids, parser.links), path
