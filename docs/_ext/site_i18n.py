"""Extraction of what has to be translated, and of nothing else.

``sphinx-build -b gettext -D language=<target> -D locale_dirs=`` writes one template per page that is *not* written in
the target language. A message of a Chinese page is kept if it has a Chinese character, one of an API page if it has
words of its own: code, types, formulas and labels that Sphinx itself translates are the same for every reader.
"""

import re
from collections import defaultdict
from pathlib import Path

import polib
from docutils import nodes
from languages import BOOK, CJK, source_language
from marked_strings import strings
from sphinx import addnodes, package_dir
from sphinx.application import Sphinx
from sphinx.builders.gettext import Catalog, MessageCatalogBuilder, MsgOrigin
from sphinx.util.nodes import LITERAL_TYPE_NODES, extract_messages
from sphinx.util.typing import ExtensionMetadata

TITLED_ROLE = re.compile(r":[\w:+-]+:`([^`<]+?)\s*<[^`>]+>`")
MARKUP = re.compile(
    r":[\w:+-]+:`(?:\\.|[^`\\])*`"  # a role, backticks of its text escaped
    r"|``.*?``|`[^`]*`_*"  # literals and references
    r"|^\.\. image::.*|^Bases: "
    r"|[\w.]+\(\)|\b[A-Za-z_]\w*(?:[._]\w+)+\b"  # names of code
)


def needs_translation(message: str, source: str) -> bool:
    """Whether a reader of another language has to be told what ``message``, written in ``source``, says."""
    if source == BOOK:
        return bool(CJK.search(message))
    if CJK.search(message):  # a label of Sphinx, already in the target language
        return False
    return bool(re.search(r"[A-Za-z]{2,}", MARKUP.sub(" ", TITLED_ROLE.sub(r"\1", message))))


def kind_of(node: nodes.Node) -> str:
    """Return what a translator, and the checks of catalogs, must know about a message: empty for a paragraph."""
    if isinstance(node, nodes.doctest_block) or (isinstance(node, nodes.Element) and node.get("language") == "pycon"):
        return "code: pycon"
    if isinstance(node, nodes.math_block):
        return "formula"
    if isinstance(node, nodes.literal_block):
        return f"code: {node.get('language', 'none')}"
    return {nodes.title: "title", nodes.image: "image text", nodes.term: "term"}.get(type(node), "")


def is_same_everywhere(node: nodes.Node) -> bool:
    """Whether a node of an API page is code, a formula or a label that Sphinx knows in every language."""
    label = isinstance(node, nodes.rubric) and ":docstring of " in (node.source or "")
    return label or isinstance(node, (*LITERAL_TYPE_NODES, nodes.field_name))


def place(source: str) -> str:
    """Return a short name, without spaces, of the file or the docstring that a message comes from."""
    return source.partition(":docstring of ")[2] or Path(source).name.replace(" ", "-")


OURS = {"Listing %s", "References"}
"""What Sphinx has in Chinese, but not as a book says it. ``strings.html`` lists them too."""


def sphinx_translates(language: str) -> set[str]:
    """Return the messages that Sphinx itself has in a language."""
    path = Path(package_dir, "locale", language, "LC_MESSAGES", "sphinx.mo")
    return {entry.msgid for entry in polib.mofile(str(path)) if entry.msgstr} if path.exists() else set()


class Templates(MessageCatalogBuilder):
    """Templates (``.pot``) of the pages to be translated *into* ``language``."""

    name = "gettext"

    def init(self) -> None:
        """Keep doctest flags in messages: the pages look up the text with them."""
        super().init()
        self.config.trim_doctest_flags = False
        self.kinds: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def _extract_from_template(self) -> None:
        """Add what our extensions say to readers to the strings of the theme."""
        super()._extract_from_template()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            for line, text in strings(path.read_text("utf-8")):
                if text is not None:
                    self.catalogs["sphinx"].add(text, MsgOrigin(str(path), line))

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        """Collect the messages of a page, unless it is written in the target language."""
        source = source_language(docname)
        if source == self.config.language:
            return
        if source != BOOK:
            for node in doctree.findall(is_same_everywhere):
                node["translatable"] = False
        super().write_doc(docname, doctree)
        for tree in (doctree, *self.env.tocs[docname].findall(addnodes.toctree)):
            for node, message in extract_messages(tree):
                self.kinds[docname, message].add(kind_of(node))

    def finish(self) -> None:
        """Write one template per domain that has anything to translate."""
        theirs = sphinx_translates(self.config.language) - OURS
        for message in [message for message in self.catalogs["sphinx"].metadata if message in theirs]:
            del self.catalogs["sphinx"].metadata[message]
        for domain, catalog in sorted(self.catalogs.items()):
            source = source_language(domain)
            if source != self.config.language:
                self.write_template(domain, catalog, source)

    def write_template(self, domain: str, catalog: Catalog, source: str) -> None:
        """Write one template, in the order of the page; the place of a message is its page and line."""
        template = polib.POFile(wrapwidth=0)
        template.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
        for message, origins in catalog.metadata.items():
            if message and needs_translation(message, source):
                places = sorted({(place(file), str(max(line, 0))) for file, line, _uid in origins})
                kinds = sorted(self.kinds[domain, message] - {""})
                template.append(polib.POEntry(msgid=message, comment="\n".join(kinds), occurrences=places))
        if template:
            path = Path(self.outdir, f"{domain}.pot")
            path.parent.mkdir(parents=True, exist_ok=True)
            template.save(str(path), newline="\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Put our builder in the place of Sphinx's own."""
    app.add_builder(Templates, override=True)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
