"""The language switch, the root page and the 404 page, as a reader uses them."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chapter(site_root: Path) -> str:
    """Return the name of the longest page, which has sections enough to scroll to."""
    path = max((site_root / "zh/general").rglob("*.html"), key=lambda path: path.stat().st_size)
    return path.relative_to(site_root / "zh").as_posix()


SWITCH = {1280: ".sidebar-drawer .language-switch", 390: ".mobile-header .language-switch"}
"""Where the switch is seen."""


def switch(page: Page) -> Locator:
    """Return the link to the other language."""
    return page.locator(f"{SWITCH[page.viewport_size['width']]} a")


def sections(page: Page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('article section section')].map((s) => s.id)")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("local", [False, True], ids=["http", "file"])
def test_switch_keeps_page_and_section(
    browser: Browser, site_root: Path, site_url: str, chapter: str, size: dict[str, int], local: bool
) -> None:
    base = f"{site_root.as_uri()}/" if local else site_url
    page = browser.new_page(viewport=size)
    page.goto(f"{base}zh/{chapter}")
    anchor = sections(page)[1]
    page.goto(f"{base}zh/{chapter}#{anchor}")
    heading = page.locator(f"[id='{anchor}'] > :is(h1, h2, h3)")
    expect(
        heading
    ).to_be_in_viewport()  # the browser scrolls smoothly, and what is on the way would be taken for the place
    expect(switch(page)).to_be_in_viewport()
    switch(page).click()
    page.wait_for_url(f"{base}en/{chapter}#{anchor}")
    assert page.evaluate("document.documentElement.lang") == "en"
    expect(heading).to_be_in_viewport()
    switch(page).click()
    page.wait_for_url(f"{base}zh/{chapter}#{anchor}")
    page.close()


def test_switch_finds_the_section_that_is_being_read(browser: Browser, site_url: str, chapter: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{site_url}zh/{chapter}")
    anchor = sections(page)[2]
    page.evaluate("id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", anchor)
    expect(page.locator(f".toc-tree li.scroll-current > a[href='#{anchor}']")).to_have_count(1)
    switch(page).click()
    page.wait_for_url(f"{site_url}en/{chapter}#{anchor}")
    page.close()


def test_switch_keeps_what_was_searched(browser: Browser, site_url: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{site_url}zh/search.html?q=attention")
    switch(page).click()
    page.wait_for_url(f"{site_url}en/search.html?q=attention")
    expect(page.locator("#search-results ul.search li").first).to_be_visible()
    page.close()


def test_switch_works_without_scripts(browser: Browser, site_url: str, chapter: str) -> None:
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site_url}zh/{chapter}")
    switch(page).click()
    page.wait_for_url(f"{site_url}en/{chapter}")
    context.close()


def test_formulas_are_readable_without_scripts(browser: Browser, site_url: str, chapter: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site_url}zh/{chapter}")
    formulas = page.locator("article .katex-display .katex-html:not(details:not([open]) *)")
    assert formulas.count() > 0
    for formula in formulas.all():
        box = formula.bounding_box()
        assert box is not None
        assert box["height"] > 10
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('12px KaTeX_Main'))")
    context.close()


def test_a_mark_leads_to_the_check_and_back(browser: Browser, site_url: str, chapter: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{site_url}zh/{chapter}")
    mark = page.locator(".verified-by a").first
    expect(mark).to_have_attribute("aria-label", "由可运行的代码验证")
    equation = (
        mark.locator("xpath=ancestor::*[contains(@class, 'verified')]").locator("div.math").first.get_attribute("id")
    )
    mark.click()
    check = page.locator(":target")
    assert check.get_attribute("id") == mark.get_attribute("href").removeprefix("#")
    expect(check).to_be_in_viewport()
    page.locator(f"p.verifies a[href='#{equation}']").first.click()
    expect(page.locator(f"#{equation}")).to_be_in_viewport()
    page.close()


@pytest.mark.parametrize(
    ("preferred", "path"), [("zh-TW", "zh"), ("en-GB", "en"), ("fr-FR", "en")], ids=["zh", "en", "neither"]
)
@pytest.mark.parametrize("local", [False, True], ids=["http", "file"])
def test_root_page_follows_the_browser(
    browser: Browser, site_root: Path, site_url: str, preferred: str, path: str, local: bool
) -> None:
    base = f"{site_root.as_uri()}/" if local else site_url
    context = browser.new_context(locale=preferred)
    page = context.new_page()
    page.goto(f"{base}index.html")
    page.wait_for_url(f"{base}{path}/index.html")
    context.close()


def test_root_page_remembers_the_choice(browser: Browser, site_url: str) -> None:
    context = browser.new_context(locale="zh-CN", viewport=DESKTOP)
    page = context.new_page()
    page.goto(site_url)
    page.wait_for_url(f"{site_url}zh/index.html")
    switch(page).click()
    page.wait_for_url(f"{site_url}en/index.html")
    page.goto(site_url)
    page.wait_for_url(f"{site_url}en/index.html")
    context.close()


def test_root_page_without_scripts_offers_the_languages(browser: Browser, site_url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site_url)
    page.get_by_role("link", name="English").click()
    page.wait_for_url(f"{site_url}en/index.html")
    context.close()


@pytest.mark.parametrize("address", ["zh/some/where/deep.html", "nothing.html", "a/b/c/nothing"])
def test_404_page_leads_home_from_anywhere(browser: Browser, site_url: str, address: str) -> None:
    page = browser.new_page()
    answer = page.goto(site_url + address)
    assert answer is not None
    assert answer.status == 404
    for path in ("zh", "en"):
        expect(page.locator(f"a[data-path='{path}/index.html']")).to_have_attribute("href", f"/book/{path}/index.html")
    page.locator("a[data-path='en/index.html']").click()
    page.wait_for_url(f"{site_url}en/index.html")
    page.close()
