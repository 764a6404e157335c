"""Terms show their counterpart to the mouse, to a finger and to the keyboard; nothing else on the page changes."""

import pytest
from playwright.sync_api import Browser, Page

CHAPTER = "general/transformer_1.html"
LOOK = """
() => [...document.querySelectorAll(".term-hint")].map((term) => {
  const size = () => `${document.documentElement.scrollWidth} ${document.querySelector("article").offsetHeight}`;
  const bubble = () => getComputedStyle(term, "::after").content;
  term.scrollIntoView({ block: "center" });
  document.activeElement.blur();
  const before = [size(), bubble()];
  term.focus({ preventScroll: true });
  const wide = document.documentElement.scrollWidth > innerWidth;
  return { moved: size() !== before[0], hidden: before[1], shown: bubble(), wide, name: term.dataset.term };
})
"""


def opened(browser: Browser, site_url: str, language: str, width: int) -> Page:
    """Return a page with the chapter, whose folded parts are open."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"{site_url}{language}/{CHAPTER}")
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    return page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_bubble_appears_on_focus_and_nothing_moves(
    browser: Browser, site_url: str, language: str, width: int
) -> None:
    page = opened(browser, site_url, language, width)
    looks = page.evaluate(LOOK)
    assert len(looks) > 50
    for look in looks:
        assert look["hidden"] == "none", look
        assert f'"{look["name"]}"' in look["shown"], look
        assert not look["moved"], look
        assert not look["wide"], look
    page.close()


def test_the_mouse_and_the_tab_key_show_it_too(browser: Browser, site_url: str) -> None:
    page = opened(browser, site_url, "zh", 1280)
    shown = (
        "[...document.querySelectorAll('.term-hint')].filter((t) => getComputedStyle(t, '::after').content !== 'none')"
    )
    first, *_, last = page.locator(".term-hint").all()
    last.hover()
    assert page.evaluate(f"{shown}.map((term) => term.dataset.term)") == [last.get_attribute("data-term")]
    page.mouse.move(0, 0)
    page.evaluate("document.querySelector('article h1').tabIndex = -1")  # its own link is hidden: it takes no focus
    page.evaluate("document.querySelector('article h1').focus()")
    for _ in range(20):
        page.keyboard.press("Tab")
        if found := page.evaluate(f"{shown}.map((term) => term.dataset.term)"):
            break
    assert found == [first.get_attribute("data-term")]
    page.close()


def test_what_is_copied_is_the_text(browser: Browser, site_url: str) -> None:
    page = opened(browser, site_url, "zh", 1280)
    term = page.locator("p > .term-hint").first
    term.focus()
    copied = term.evaluate("(e) => { getSelection().selectAllChildren(e.parentNode); return `${getSelection()}` }")
    assert term.inner_text() in copied
    assert (term.get_attribute("data-term") or "") not in copied
    page.close()


def test_a_screen_reader_hears_the_counterpart(browser: Browser, site_url: str) -> None:
    page = opened(browser, site_url, "zh", 1280)
    page.locator(".term-hint").first.focus()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    focused = [
        node
        for node in tree
        if {"name": "focused", "value": {"type": "booleanOrUndefined", "value": True}} in node.get("properties", [])
    ]
    term = page.locator(".term-hint").first
    assert [node["description"]["value"] for node in focused if "description" in node] == [
        term.get_attribute("data-term")
    ]
    page.close()
