"""Root page, 404 page, redirects and sitemap, as text; tests/site drives them in a browser."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import site_links
import site_pages
from languages import load

ROWS = list(load().values())
BASE = "https://example.org/book/"


def test_root_page_has_relative_links_and_addresses_only_where_known() -> None:
    text = site_pages.root_page(ROWS, None)
    assert site_links.read(text).links == ["zh/index.html", "en/index.html"]
    assert "http" not in text
    assert f'<link rel="canonical" href="{BASE}">' in site_pages.root_page(ROWS, BASE)


def test_404_page_is_whole_in_itself_and_speaks_every_language() -> None:
    text = site_pages.missing_page(ROWS, None)
    assert site_links.read(text).loads == [
        "data:,"
    ]  # it is served for any depth of folder: nothing relative would be found
    assert re.findall(r'<section lang="([^"]+)"', text) == ["zh-CN", "en"]
    assert f'href="{BASE}zh/index.html"' in site_pages.missing_page(ROWS, BASE)


def test_redirect_leads_to_the_new_page_from_any_depth() -> None:
    text = site_pages.redirect_page("old/deep/page", "new/page", ROWS[0], BASE)
    assert site_links.read(text).links == ["../../new/page.html"]
    assert '<meta http-equiv="refresh" content="0; url=../../new/page.html">' in text
    assert 'location.replace("../../new/page.html" + location.search + location.hash)' in text
    assert f'<link rel="canonical" href="{BASE}zh/new/page.html">' in text
    assert "canonical" not in site_pages.redirect_page("old", "new", ROWS[0], None)


def test_redirects_are_held_to_the_pages() -> None:
    assert site_pages.redirect_problems({"old": "a"}, ["a", "b"]) == []
    assert site_pages.redirect_problems({"old": "gone"}, ["a"]) == [
        "docs/redirects.toml: 'old' leads to 'gone', which is no page"
    ]
    assert "still is a page" in site_pages.redirect_problems({"a": "b"}, ["a", "b"])[0]


def test_redirects_are_read(tmp_path: Path) -> None:
    assert site_pages.load_redirects(tmp_path / "none.toml") == {}
    (tmp_path / "r.toml").write_text('"a/b" = "c"\n', "utf-8")
    assert site_pages.load_redirects(tmp_path / "r.toml") == {"a/b": "c"}


@pytest.mark.parametrize("page", ["index", "general/a&b"])
def test_sitemap_gives_each_page_its_twins(page: str) -> None:
    root = ElementTree.fromstring(site_pages.sitemap(ROWS, BASE, [page]))
    name = {"s": "http://www.sitemaps.org/schemas/sitemap/0.9", "x": "http://www.w3.org/1999/xhtml"}
    locations = [node.text for node in root.findall("s:url/s:loc", name)]
    assert locations == [f"{BASE}zh/{page}.html", f"{BASE}en/{page}.html"]
    for url in root.findall("s:url", name):
        twins = {link.get("hreflang"): link.get("href") for link in url.findall("x:link", name)}
        default = BASE if page == "index" else locations[1]
        assert twins == {"zh-CN": locations[0], "en": locations[1], "x-default": default}
