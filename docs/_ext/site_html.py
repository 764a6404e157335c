"""What a page of the site knows about its language, its twin in the other languages, its address and its source."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from addresses import alternates, repository, site_url
from docutils import nodes
from languages import DOCS, Language, load, source_language
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError
from sphinx.locale import _
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

GENERATED = ("search", "genindex", "py-modindex")
"""Pages that Sphinx writes: they have no source, and each language orders them in its own way."""

FIXED = (
    "Toggle Light / Dark / Auto color theme",
    "Toggle site navigation sidebar",
    "Toggle table of contents sidebar",
    "Light mode",
    "Dark mode",
    "Auto light/dark, in light mode",
    "Auto light/dark, in dark mode",
    "Contents",
    "Expand",
    "Menu",
)
"""What Furo writes in English, whatever the language of the page."""

EXPANDER = "Toggle navigation of "


def per_language(app: Sphinx, config: Config) -> None:
    """Set what depends on the language; ``-D language=…`` is applied only after conf.py has run."""
    languages = load()
    if config.language not in languages:
        return  # the catalogs of a language may be made before it has a row
    row = languages[config.language]
    try:
        base = site_url(os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config.project = config.html_title = config.epub_title = row.title
    config.html_baseurl = f"{base}{row.path}/" if base else ""
    config.epub_language = row.tag  # "zh_CN" is no language tag of EPUB
    config.epub_basename = f"book-{row.path}"


def known_language(app: Sphinx) -> None:
    """Refuse to make pages in a language that is not in the table."""
    languages = load()
    if app.config.language not in languages and app.builder.name != "gettext":
        raise ConfigError(
            f"docs/languages.toml: expected a row for language {app.config.language!r}, found {list(languages)}"
        )


def context(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give the templates the twins of a page, the links to its source, and the means to translate Furo."""
    if app.builder.name != "html":  # an EPUB has one language and no address
        return
    languages, base = load(), site_url(os.environ)
    here = languages[app.config.language]
    context["here"] = here
    context["twins"] = [(row, twin(here, row, pagename, context["content_root"])) for row in languages.values()]
    context["alternates"] = (
        alternates([*languages.values()], base, pagename) if base and pagename not in GENERATED else []
    )
    context["in_page_language"] = in_page_language
    context["furo_navigation_tree"] = name_expanders(context.get("furo_navigation_tree", ""))
    repo = repository(os.environ)
    if doctree is not None and repo is not None:
        source = source_path(pagename, app.config.language)
        context["theme_source_view_link"] = escape_format(repo.view(source))
        context["theme_source_edit_link"] = escape_format(repo.edit(source))
        context["report_link"] = repo.report(f"{source}: ")


def twin(here: Language, there: Language, pagename: str, content_root: str) -> str:
    """Return the relative link to the same page in another language; relative, so that it works below any address."""
    return f"{content_root}{'../' * len(here.path.split('/'))}{there.path}/{pagename}.html"


def source_path(pagename: str, language: str, docs: Path = DOCS) -> str:
    """Return the file, relative to the repository, that somebody who wants to change this page would edit.

    That is the catalog of a translated page, the module behind a page of the API, else the .rst file.
    """
    catalog = docs.parent / f"locale/{language}/LC_MESSAGES/{pagename}.po"
    if language != source_language(pagename) and catalog.exists():
        return catalog.relative_to(docs.parent).as_posix()
    page = docs / f"{pagename}.rst"
    if pagename.startswith("api/") and (
        module := re.search(r"^\.\. automodule:: (\S+)", page.read_text("utf-8"), re.M)
    ):
        path = docs.parent.joinpath(*module[1].split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file.relative_to(docs.parent).as_posix()
    return page.relative_to(docs.parent).as_posix()


def escape_format(url: str) -> str:
    """Furo calls ``str.format`` on the links it is given."""
    return url.replace("{", "{{").replace("}", "}}")


def in_page_language(html: str) -> str:
    """Translate the labels that are fixed in Furo's templates."""
    for text in FIXED:
        html = html.replace(f'"{text}"', f'"{_(text)}"').replace(f"<title>{text}</title>", f"<title>{_(text)}</title>")
    return html


def name_expanders(tree: str) -> str:
    """Translate the accessible names of the switches that unfold the navigation."""
    name = _("Toggle navigation of %s")
    return re.sub(f'aria-label="{EXPANDER}([^"]*)"', lambda found: f'aria-label="{name.replace("%s", found[1])}"', tree)


class ModuleEntries(SphinxTransform):
    """Translate the word that Sphinx puts before each module in the index ("module; llm_study")."""

    default_priority = 15  # before the entries are looked up in the catalog of the page

    def apply(self, **kwargs: Any) -> None:
        """Rewrite the entries of one page."""
        for node in self.document.findall(addnodes.index):
            node["entries"] = [
                (kind, value.replace("module; ", f"{_('module')}; ", 1) if kind == "pair" else value, *rest)
                for kind, value, *rest in node["entries"]
            ]


class UniqueIds(SphinxPostTransform):
    """Take the ids off the boxes that Furo puts around tables and formulas: the things inside have them too."""

    default_priority = 501  # after Furo
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Mend one page."""
        for box in self.document.findall(nodes.container):
            if {"table-wrapper", "math-wrapper"} & set(box["classes"]):
                box["ids"] = []


def refresh_sidebars(app: Sphinx, env: BuildEnvironment) -> Iterable[str]:
    """Have every page written again where a title or the tree changed: all of them show it in the sidebar."""
    now = {
        name: (title.astext(), env.toctree_includes.get(name, []), env.toc_secnumbers.get(name, {}).get(""))
        for name, title in env.titles.items()
    }
    before, env.site_titles = getattr(env, "site_titles", now), now
    return [] if now == before else sorted(env.found_docs)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_transform(ModuleEntries)
    app.add_post_transform(UniqueIds)
    handlers: dict[str, tuple[Callable[..., Any], int]] = {
        "config-inited": (per_language, 500),
        "builder-inited": (known_language, 500),
        "env-updated": (refresh_sidebars, 900),
        "html-page-context": (context, 900),  # after Furo, which makes the navigation
    }
    for event, (handler, priority) in handlers.items():
        app.connect(event, handler, priority)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
