"""Every page, loaded once on a phone: nothing foreign, no error, nothing too wide, no English labels in Chinese."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from languages import load
from playwright.sync_api import Browser

LOOK = Path(__file__).with_name("look.js").read_text("utf-8")

OURS = {"LLM Study contributors", "Furo", "LLM Study"}


@dataclass
class Visit:
    """What was seen on one page."""

    seen: dict[str, Any]
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def words(self) -> set[str]:
        return set(self.seen["words"])


@pytest.fixture(scope="module")
def visits(site_root: Path, site_url: str, browser: Browser) -> dict[str, Visit]:
    """Load every page once, 390 pixels wide."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, found = context.new_page(), {}
    page.on("request", lambda request: found[name].requests.append(request.url))
    page.on("pageerror", lambda error: found[name].errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and found[name].errors.append(message.text))
    for path in sorted(site_root.rglob("*.html")):
        if "_static" in path.parts or path.parent == site_root or 'http-equiv="refresh"' in path.read_text("utf-8"):
            continue
        name = path.relative_to(site_root).as_posix()
        found[name] = Visit({})
        page.goto(f"{site_url}{name}" + ("?q=attention" if name.endswith("/search.html") else ""))
        if name.endswith("/search.html"):
            page.locator("#search-results ul.search li").first.wait_for()
            page.locator("#search-progress").wait_for(state="hidden")
        found[name].seen = page.evaluate(LOOK)
    context.close()
    return found


def test_pages_of_both_languages_were_seen(visits: dict[str, Visit]) -> None:
    for row in load().values():
        seen = {name: visit.seen["lang"] for name, visit in visits.items() if name.startswith(f"{row.path}/")}
        assert f"{row.path}/index.html" in seen
        assert set(seen.values()) == {row.tag}


def test_a_page_asks_its_own_host_only(visits: dict[str, Visit], site_url: str) -> None:
    foreign = {url for visit in visits.values() for url in visit.requests if not url.startswith((site_url, "data:"))}
    assert not foreign


def test_no_page_reports_an_error(visits: dict[str, Visit]) -> None:
    assert not {name: visit.errors for name, visit in visits.items() if visit.errors}


def test_no_page_scrolls_sideways_on_a_phone(visits: dict[str, Visit]) -> None:
    assert not {name: visit.seen["wide"] for name, visit in visits.items() if visit.seen["wide"]}


def test_no_number_covers_its_formula_on_a_phone(visits: dict[str, Visit]) -> None:
    assert not {name: visit.seen["covered"] for name, visit in visits.items() if visit.seen["covered"]}


def test_every_page_leads_to_itself_in_the_other_languages(visits: dict[str, Visit], site_url: str) -> None:
    rows = load().values()
    for name, visit in visits.items():
        here, _, page = name.partition("/")
        twins = [[row.tag, row.tag, f"{site_url}{row.path}/{page}"] for row in rows if row.path != here]
        assert visit.seen["navigations"] == 2  # in the sidebar and in the header
        assert [[*link[:2], link[2].split("?")[0]] for link in visit.seen["switches"]] == twins * 2


def test_no_string_of_the_theme_is_english_on_a_chinese_page(visits: dict[str, Visit]) -> None:
    headings = {re.sub(r"^[\d.]+ ", "", h) for v in visits.values() for h in v.seen["headings"] if h}
    left = {}
    for name, visit in visits.items():
        if name.startswith("zh/"):
            same = visit.words & visits[f"en/{name.removeprefix('zh/')}"].words
            english = {text for text in same if re.search(r"[A-Za-z]{2}", text) and not is_name(text, headings)}
            if english:
                left[name] = english
    assert not left


def is_name(text: str, headings: set[str]) -> bool:
    """Tell whether a text reads the same in every language."""
    return re.sub(r"^[\d.]+ |^Copyright © |^版权所有 © ", "", text) in headings | OURS
