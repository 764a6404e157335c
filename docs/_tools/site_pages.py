"""The pages that belong to no language: the root page, the 404 page, redirects of renamed pages, and the sitemap."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from posixpath import dirname, relpath

from addresses import alternates, anyone
from languages import Language

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, -apple-system, "Segoe UI", Roboto, "PingFang SC",
  "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; line-height: 1.7; }
body { max-width: 34rem; margin: 15vh auto 0; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; }
ul { padding: 0; list-style: none; }
li { margin: 1rem 0; }
"""

ROOT_SCRIPT = """
const paths = %(paths)s;
let chosen = null;
try { chosen = localStorage.getItem("language"); } catch { /* refused on file:// by some browsers */ }
if (!paths[chosen]) {
  const main = (tag) => tag.toLowerCase().split("-")[0];
  const known = (navigator.languages || [navigator.language])
    .flatMap((tag) => Object.keys(paths).filter((path) => main(paths[path]) === main(tag)));
  chosen = known[0] || %(default)s;
}
location.replace(chosen + "/index.html" + location.search + location.hash);
"""

# The server answers with this page for every address below the site, however deep: where the site begins is found by
# the folder of a language in the address, else by asking for the front page folder by folder.
MISSING_SCRIPT = """
const paths = %(paths)s;
const mend = (base) => document.querySelectorAll("a[data-path]").forEach((a) => { a.href = base + a.dataset.path; });
const folders = location.pathname.split("/").slice(1, -1);
const prefix = (n) => "/" + folders.slice(0, n).map((folder) => folder + "/").join("");
const search = async () => {
  for (let n = folders.length; n >= 0; n--) {
    const answer = await fetch(prefix(n) + paths[0] + "/index.html", { method: "HEAD" }).catch(() => ({ ok: false }));
    if (answer.ok) return mend(prefix(n));
  }
};
const from = (n) => folders.slice(n).join("/") + "/";
const depth = folders.findIndex((_, n) => paths.some((path) => from(n).startsWith(path + "/")));
if (depth >= 0) mend(prefix(depth));
else if (location.protocol !== "file:") search();
"""

MISSING = {
    "zh": ("没有这个页面", "地址可能写错了，或者页面已经改名。从首页开始：", "搜索"),
    "en": (
        "This page does not exist",
        "The address may be mistyped, or the page may have been renamed. Start at the front page:",
        "Search",
    ),
}
"""Title, sentence and name of the search page, by the language's primary tag; others get English."""


def root_page(languages: Sequence[Language], base: str | None) -> str:
    """Return the page that sends readers to the language they chose last, else to the one their browser prefers."""
    links = "".join(
        f'<li><a lang="{row.tag}" hreflang="{row.tag}" href="{row.path}/index.html">'
        f"{escape(row.label)} – {escape(row.title)}</a></li>\n"
        for row in languages
    )
    twins = alternates(languages, base, "index") if base else []
    head = "".join(f'<link rel="alternate" hreflang="{tag}" href="{url}">\n' for tag, url in twins)
    head += f'<link rel="canonical" href="{base}">\n' if base else ""
    paths = {row.path: row.tag.lower() for row in languages}
    script = ROOT_SCRIPT % {"paths": json.dumps(paths), "default": json.dumps(anyone(languages).path)}
    title = " · ".join(row.title for row in languages)
    return _page(
        title, f"<h1>{escape(title)}</h1>\n<ul>\n{links}</ul>", head=head, script=script, lang=anyone(languages).tag
    )


def missing_page(languages: Sequence[Language], base: str | None) -> str:
    """Return the page for addresses that do not exist, in all languages; scripts mend its links."""
    parts = []
    for row in languages:
        title, text, search = MISSING.get(row.tag.split("-")[0], MISSING["en"])
        front, find = (f"{row.path}/{name}.html" for name in ("index", "search"))
        parts.append(
            f'<section lang="{row.tag}">\n<h1>{title}</h1>\n<p>{text} '
            f'<a data-path="{front}" href="{base or ""}{front}">{escape(row.title)}</a> · '
            f'<a data-path="{find}" href="{base or ""}{find}">{search}</a></p>\n</section>'
        )
    script = MISSING_SCRIPT % {"paths": json.dumps([row.path for row in languages])}
    head = '<meta name="robots" content="noindex">\n'
    return _page("404", "\n".join(parts), head=head, script=script, lang=anyone(languages).tag)


def _page(title: str, body: str, *, head: str, script: str, lang: str) -> str:
    return (
        f'<!doctype html>\n<html lang="{lang}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n{head}'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def load_redirects(file: Path) -> dict[str, str]:
    """Return new names of pages by their old ones, from ``docs/redirects.toml``."""
    return tomllib.loads(file.read_text("utf-8")) if file.exists() else {}


def redirect_problems(redirects: Mapping[str, str], pages: Iterable[str]) -> list[str]:
    """Return what is wrong with the table: names are those of pages, without a language and without ``.html``."""
    pages = set(pages)
    wrong = [f"{old!r} still is a page; a renamed page has left its old name" for old in redirects if old in pages]
    wrong += [f"{old!r} leads to {new!r}, which is no page" for old, new in redirects.items() if new not in pages]
    return [f"docs/redirects.toml: {line}" for line in wrong]


def redirect_page(old: str, new: str, row: Language, base: str | None) -> str:
    """Return the page that stays behind under an old name; it keeps the section that a link names."""
    href = relpath(f"{new}.html", dirname(old) or ".")
    head = f'<noscript><meta http-equiv="refresh" content="0; url={escape(href)}"></noscript>\n'
    head += '<meta name="robots" content="noindex">\n'
    if base:
        head += f'<link rel="canonical" href="{base}{row.path}/{new}.html">\n'
    script = f"location.replace({json.dumps(href)} + location.search + location.hash);"
    return _page(
        row.title, f'<p>→ <a href="{escape(href)}">{escape(new)}</a></p>', head=head, script=script, lang=row.tag
    )


def sitemap(languages: Sequence[Language], base: str, pages: Iterable[str]) -> str:
    """Return the list of pages for search engines, each with its twins in the other languages."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:xhtml="http://www.w3.org/1999/xhtml">',
    ]
    for page in sorted(pages):
        twins = alternates(languages, base, page)
        links = "".join(f'<xhtml:link rel="alternate" hreflang="{tag}" href="{escape(url)}"/>' for tag, url in twins)
        lines += [f"<url><loc>{escape(url)}</loc>{links}</url>" for tag, url in twins if tag != "x-default"]
    return "\n".join([*lines, "</urlset>", ""])
