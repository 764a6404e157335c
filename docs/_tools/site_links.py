"""Check a finished site: same pages and anchors in all languages, no broken link, nothing from another host."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

TAG = re.compile(r"<([a-z][\w-]*)((?:\s+[\w:.-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?)*)\s*/?>", re.I)
ATTRIBUTE = re.compile(r"([\w:.-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
OPAQUE = re.compile(
    r"<!--.*?-->|(<(script|style)\b[^>]*>).*?</\2>", re.S | re.I
)  # the tag counts, what it encloses does not
CSS_URL = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", re.I)
STYLE = re.compile(r"<style\b[^>]*>(.*?)</style>|\sstyle=\"([^\"]*)\"", re.S | re.I)

UNREAD = re.compile(r"(:[\w+-]+(?::[\w+-]+)?:)<cite>")

LOADED = {"script", "img", "source", "iframe", "video", "audio", "track", "embed", "object", "input", "image", "use"}
"""Elements whose address the browser asks for by itself."""

HARMLESS = {"alternate", "canonical", "next", "prev", "index", "search", "author", "copyright", "edit"}
"""Relations of ``<link>`` that no browser follows by itself."""

OWN_ORDER = {"genindex.html", "py-modindex.html", "search.html"}
"""Pages of a language whose sections are not those of the others: an index is sorted by its own letters."""


@dataclass
class Page:
    """What one page offers and asks for."""

    ids: set[str] = field(default_factory=set)
    twice: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    """Ids of sections, equations and objects: what other pages link to, the same in every language."""
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    """Roles that reStructuredText did not read: a Chinese character stands before them without a space."""


def read(text: str) -> Page:
    """Return what a page offers and asks for.

    The pages come from one builder that closes its quotes, and formulas make them large: an expression reads them
    some ten times faster than a parser.
    """
    page = Page(roles=UNREAD.findall(text))
    for css in STYLE.finditer(text):
        page.loads += css_urls(unescape(css[1] or css[2] or ""))
    for tag in TAG.finditer(OPAQUE.sub(lambda found: found[1] or "", text)):
        name, attributes = (
            tag[1].lower(),
            {a[1].lower(): unescape(a[2] or a[3] or a[4] or "") for a in ATTRIBUTE.finditer(tag[2])},
        )
        _note(page, name, attributes)
    return page


def _note(page: Page, name: str, attributes: dict[str, str]) -> None:
    if "id" in attributes:
        if attributes["id"] in page.ids:
            page.twice.append(attributes["id"])
        page.ids.add(attributes["id"])
        if name in ("section", "dt") or attributes["id"].startswith("equation-"):
            page.anchors.add(attributes["id"])
    href = attributes.get("href", attributes.get("xlink:href"))
    if href is not None and name in ("a", "area"):
        page.links.append(href)
    elif href is not None and (
        name in LOADED or (name == "link" and not HARMLESS & set(attributes.get("rel", "").split()))
    ):
        page.loads.append(href)
    page.loads += [attributes[key] for key in ("src", "poster", "data") if key in attributes and name in LOADED]
    page.loads += [part.split()[0] for part in attributes.get("srcset", "").split(",") if part.strip()]


def css_urls(css: str) -> list[str]:
    """Return what a stylesheet loads."""
    return [found[1] or found[2] for found in CSS_URL.finditer(css)]


def problems(site: Path, languages: Iterable[str]) -> Iterator[str]:
    """Yield one line for each thing that is wrong: page, what was expected, what was found."""
    pages = {
        path.relative_to(site).as_posix(): read(path.read_text("utf-8"))
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.relative_to(site).parts
    }
    yield from _compare(pages, list(languages))
    for name, page in pages.items():
        yield from (f"{name}: two elements have the id {anchor!r}; give one another name" for anchor in page.twice)
        yield from (f"{name}: the text shows the markup {role}; put a space or '\\ ' before it" for role in page.roles)
        for link in [*page.links, *page.loads]:
            if problem := _follow(site, pages, name, link, foreign=link in page.loads):
                yield f"{name}: {problem}"
    for path in sorted(site.rglob("*.css")):
        name = path.relative_to(site).as_posix()
        for url in css_urls(path.read_text("utf-8")):
            if problem := _follow(site, pages, name, url, foreign=True):
                yield f"{name}: {problem}"


def _compare(pages: dict[str, Page], languages: list[str]) -> Iterator[str]:
    """Compare the pages of each language with those of the first."""
    first, *others = languages
    for other in others:
        ours, theirs = (
            {n.removeprefix(f"{lang}/"): p for n, p in pages.items() if n.startswith(f"{lang}/")}
            for lang in (first, other)
        )
        for name in sorted(set(ours) ^ set(theirs)):
            there, missing = (first, other) if name in ours else (other, first)
            yield f"{missing}/{name}: the page exists in {there}/ only; every language has the same pages"
        for name in sorted((set(ours) & set(theirs)) - OWN_ORDER):
            for anchor in sorted(ours[name].anchors ^ theirs[name].anchors):
                there = first if anchor in ours[name].anchors else other
                yield f"{other}/{name}: the anchor #{anchor} exists in {there}/ only; label the section"


def _follow(site: Path, pages: dict[str, Page], name: str, link: str, *, foreign: bool) -> str | None:
    """Return what is wrong with a link of a page, or of a stylesheet, if anything."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https") or parts.netloc:
        return f"loads {link} from another host; keep a copy of it in docs/_static" if foreign else None
    if parts.scheme:  # mailto: and data:
        return None
    if parts.path.startswith("/"):
        return f"the link {link} starts at the root of the host; write it relative, a site may live below any path"
    target = normpath(join(dirname(name), unquote(parts.path))) if parts.path else name
    if target.startswith(".."):
        return f"the link {link} leaves the site"
    if target not in pages and not (site / target).is_file():
        return f"the link {link} leads nowhere: there is no {target}"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return f"the link {link} leads nowhere: {target} has no anchor #{anchor}"
    return None
