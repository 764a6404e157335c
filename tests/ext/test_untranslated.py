"""While a translation is written, what is left to do is marked, and nothing else."""

import re

from .conftest import Book

PAGE = """\
甲
==

译好的一段。

没有译的一段。

.. math:: a = b

.. math:: a \\text{ 当 } b

English only.

::

   code

.. code-block:: text

   没有译的代码
"""
ENGLISH = {"甲": "A", "译好的一段。": "Done."}
OPTIONS = {"extensions": ["untranslated", "site_i18n"], "translation_progress_classes": "untranslated"}


def test_only_what_needs_a_translation_and_has_none_is_marked(book: Book) -> None:
    html = book({"index.rst": PAGE}, {"index": ENGLISH}, language="en", **OPTIONS).read("index.html")
    marked = re.findall(r"<(?:p|div)[^>]*\buntranslated\b[^>]*>(.*?)</(?:p|div)>", html, re.DOTALL)
    texts = [re.sub(r"<[^>]+>|\\[\[\]]", "", text).strip() for text in marked]
    assert texts == ["没有译的一段。", r"a \text{ 当 } b", "没有译的代码"]


def test_code_and_labels_of_api_pages_need_no_translation(book: Book) -> None:
    page = "m\n=\n\nWhat it does.\n\n:Returns: the sum of words\n\n::\n\n   some words of code\n"
    files = {"index.rst": "书\n==\n\n.. toctree::\n\n   api/m\n", "api/m.rst": page}
    html = book(files, {"api/m": {"the sum of words": "和"}}, language="zh_CN", **OPTIONS).read("api/m.html")
    assert re.findall(r'class="[^"]*\buntranslated\b[^>]*>(.*?)<', html) == ["What it does."]
