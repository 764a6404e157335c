"""Search of the built site: what the page's own scripts find, against plain search in the text that readers see."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import languages
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

PATHS = [language.path for language in languages.load().values()]
RECALL, PRECISION = 0.97, 0.90
SAMPLE = 150
HAN_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
LATIN_WORD = re.compile(r"[A-Za-z_]\w+(?:\.\w+)*", re.ASCII)

ASK = (
    "queries => queries.map((q) => [...new Set(Search._performSearch(...Search._parseQuery(q)).map((row) => row[0]))])"
)


class Visible(HTMLParser):
    """The text that a reader sees in the article of a page, formulas left out, and the API objects described there."""

    INLINE = frozenset(
        {"a", "abbr", "b", "cite", "code", "dfn", "em", "i", "kbd", "span", "strong", "sub", "sup", "tspan"}
    )
    VOID = frozenset({"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"})
    HIDDEN = frozenset({"headerlink", "math"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[bool, bool]] = []  # of each open element: inside the article? hidden?
        self.parts: list[str] = []
        self.objects: list[str] = []
        self.feed(html)
        self.text = "".join(self.parts).lower()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        inside, hidden = self.open[-1] if self.open else (False, False)
        inside = inside or attributes.get("role") == "main"
        hidden = hidden or tag in {"script", "style"} or bool(self.HIDDEN & set(attributes.get("class", "").split()))
        self.parts += [] if tag in self.INLINE else ["\n"]
        name = attributes.get("id", "")
        if inside and ("sig-object" in attributes.get("class", "") or name.startswith("module-")):
            self.objects.append(name.removeprefix("module-"))
        if tag not in self.VOID:
            self.open.append((inside, hidden))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            self.open.pop()
            self.parts += [] if tag in self.INLINE else ["\n"]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == (True, False):
            self.parts.append(data)

    def contains(self, query: str) -> bool:
        """Return whether a reader would call this page a right answer."""
        return query.lower() in self.text or any(query.lower() in name.lower() for name in self.objects)


class Site:
    """One language of the site, open on its search page, and its pages as plain text."""

    def __init__(self, page: Page, root: Path, errors: list[str]) -> None:
        self.page, self.errors = page, errors
        docnames: list[str] = page.evaluate("Search._index.docnames")
        self.pages = {name: Visible((root / f"{name}.html").read_text("utf-8")) for name in docnames}

    def ask(self, queries: list[str]) -> list[set[str]]:
        """Return the pages that are listed for each query."""
        return [set(found) for found in self.page.evaluate(ASK, queries)]

    def truth(self, query: str) -> set[str]:
        """Return the pages that should be."""
        return {name for name, page in self.pages.items() if page.contains(query)}

    def words(self, kind: str) -> list[str]:
        """Return an even sample of the words of one kind, the same one in each run."""
        text = "\n".join(page.text for page in self.pages.values())
        match kind:
            case "names of objects":
                found = {name for page in self.pages.values() for name in page.objects}
            case "Latin words":
                found = set(LATIN_WORD.findall(text))
            case "Chinese pairs":
                found = {"".join(pair) for run in HAN_RUN.findall(text) for pair in pairwise(run)}
            case "Chinese triples":
                found = {run[i : i + 3] for run in HAN_RUN.findall(text) for i in range(len(run) - 2)}
        words = sorted(found)
        return words[:: max(1, len(words) // SAMPLE)]


def is_error(message: ConsoleMessage) -> bool:
    """Return whether a page complains; of the icon that a browser asks every host for, no page knows."""
    return message.type == "error" and not message.location["url"].endswith("/favicon.ico")


def open_page(browser: Browser, address: str) -> tuple[Page, list[str]]:
    """Open an address; the list grows by what the browser complains about."""
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(f"{message.text} {message.location}") if is_error(message) else None
    )
    page.goto(address)
    return page, errors


@pytest.fixture(scope="module", params=PATHS)
def site(request: pytest.FixtureRequest, browser: Browser, site_url: str, site_root: Path) -> Iterator[Site]:
    page, errors = open_page(browser, f"{site_url.rstrip('/')}/{request.param}/search.html")
    page.wait_for_function("Search.hasIndex()")
    yield Site(page, site_root / request.param, errors)
    page.close()


@pytest.mark.parametrize("kind", ["Chinese pairs", "Chinese triples", "Latin words", "names of objects"])
def test_search_lists_the_pages_that_have_the_text(site: Site, kind: str) -> None:
    words = site.words(kind)
    assert words, f"no {kind} on these pages"
    answers = [(word, found, site.truth(word)) for word, found in zip(words, site.ask(words), strict=True)]
    recall = sum(len(found & truth) / len(truth) for _, found, truth in answers) / len(answers)
    right = [len(found & truth) / len(found) for _, found, truth in answers if found]
    precision = sum(right) / max(1, len(right))
    worst = [(w, sorted(t - f)[:3], sorted(f - t)[:3]) for w, f, t in answers if f != t][:10]
    assert recall >= RECALL, f"recall {recall:.3f} for {kind}; (word, missing, wrong): {worst}"
    assert precision >= PRECISION, f"precision {precision:.3f} for {kind}; (word, missing, wrong): {worst}"
    assert site.errors == []


def test_commands_of_latex_are_not_found(site: Site) -> None:
    unseen = [word for word in ("frac", "mathbb", "mathcal", "mathrm", "operatorname", "sqrt") if not site.truth(word)]
    assert unseen, "these pages speak of LaTeX: name other commands here"
    assert site.ask(unseen) == [set()] * len(unseen)


def results(page: Page) -> list[str]:
    """Return the pages that the search page lists, once it is done."""
    page.wait_for_function("document.querySelector('.search-summary')?.innerText")
    links = page.locator("#search-results li a")
    return [link.get_attribute("href") or "" for link in links.all()]


def test_the_form_lists_pages_with_excerpts(site: Site, browser: Browser) -> None:
    page, errors = open_page(browser, site.page.url.replace("search.html", "index.html"))
    for query in ("attention_reference", "注意力"):
        page.locator("input[name=q]").first.fill(query)
        with page.expect_navigation(url=re.compile(r"search\.html\?q=")):
            page.locator("input[name=q]").first.press("Enter")
        listed = {link.split("#")[0] for link in results(page)}
        assert {f"{name}.html" for name in site.truth(query)} <= listed
    page.wait_for_function("[...document.querySelectorAll('li.kind-text')].every((li) => li.querySelector('.context'))")
    excerpts = "\n".join(page.locator("#search-results .context").all_inner_texts())
    assert "注意力" in excerpts
    assert not re.search(r"\\(?:frac|mathbf|mathrm|sqrt|operatorname|top)\b", excerpts)
    assert errors == []
    page.close()


@pytest.mark.parametrize("path", PATHS)
def test_from_a_folder_search_lists_pages_without_excerpts(browser: Browser, site_root: Path, path: str) -> None:
    page, errors = open_page(browser, (site_root / path / "search.html").as_uri() + "?q=attention")
    listed = results(page)
    page.wait_for_timeout(200)  # an excerpt would be asked for by now
    assert listed
    assert page.locator("#search-results .context").count() == 0
    assert errors == []
    page.close()
