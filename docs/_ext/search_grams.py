"""Search finds a page if the text is on it: any part of a word, any piece of a Chinese sentence, in every language.

Sphinx's own page and index do the work. This module says how text is split into terms: words whole, neither stemmed
nor left out, and Chinese, which has no spaces, into grams of three characters. ``search_grams.js`` splits what a
reader types in the same way and finds each piece inside the terms, so that one and two characters are found too.

Three because two are too few: on 34 chapters of another book, of 300,000 characters, grams of three find pieces of
three and four characters with a precision of 1.00 and 0.96, grams of two with 0.80 and 0.73. It costs an index of
2.4 MB, 0.6 MB as a host sends it, where grams of two cost 0.9 and 0.2; only the search page loads it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.search import SearchLanguage
from sphinx.util.typing import ExtensionMetadata

SCRIPT = Path(__file__).with_suffix(".js")

HAN = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that are written without spaces between words; the script has the same."""

RUNS = re.compile(rf"([{HAN}]+)|[^\W{HAN}]+(?:[.-][^\W{HAN}]+)*")
"""A run of Chinese characters, or a word; dots and hyphens inside keep names such as ``torch.nn`` in one piece."""


def terms(text: str) -> Iterator[str]:
    """Yield what a text is found by.

    >>> list(terms("KV缓存：位置编码，torch.nn"))
    ['KV', '缓存', '位置编', '置编码', 'torch.nn']
    """
    for run in RUNS.finditer(text):
        han = run[1] or ""
        yield from [han[i : i + 3] for i in range(len(han) - 2)] or [run[0]]


class Grams(SearchLanguage):
    """How any language of this book is indexed and searched."""

    js_splitter_code = SCRIPT.read_text("utf-8")

    def split(self, input: str) -> list[str]:
        """Return the terms of a text; Sphinx writes them in lower case."""
        return list(terms(input))


class ChineseGrams(Grams):
    """Chinese pages."""

    lang = "zh"
    language_name = "Chinese"


class EnglishGrams(Grams):
    """English pages, whose glossary and examples have Chinese words too."""

    lang = "en"
    language_name = "English"


def setup(app: Sphinx) -> ExtensionMetadata:
    """Replace what Sphinx has for our languages."""
    app.add_search_language(ChineseGrams)
    app.add_search_language(EnglishGrams)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
