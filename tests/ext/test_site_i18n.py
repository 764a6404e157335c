"""Extraction: all that a reader of the other language needs, and nothing else."""

import sys

import marked_strings
import polib
import pytest
from site_i18n import needs_translation

CONF = {
    "builder": "gettext",
    "extensions": ["site_i18n", "guarded_doctest", "sphinx_design"],
    "doctest_test_doctest_blocks": "",
}
CHAPTER = """\
.. _a:

标题
====

.. toctree::
   :caption: 目录

   api/m

中文段落，带 :ref:`引用 <a>`。

English only.

.. figure:: x.png
   :alt: 图中的曲线

   图的说明

.. list-table:: 表的标题

   * - 单元格
     - cell

.. math:: a \\text{ 若 } b

.. math:: a = b

.. doctest::
   :options: +NORMALIZE_WHITESPACE

   >>> 1  # 注释  # doctest: +ELLIPSIS
   1

- .. testcode::

     print("列表中的代码")

.. testcode::

   print("code")

.. testsetup::

   # 隐藏的代码

.. code-block:: bash

   ls  # 列出

::

   字面内容

.. tab-set::

   .. tab-item:: 标签

      标签页的文字

.. dropdown:: 折叠的标题

   折叠的文字

.. glossary::

   术语
     解释

.. index:: 索引词, index

脚注 [#f]_

.. [#f] 脚注的内容

.. 注释
"""
WANTED = [
    ("目录", "title"),
    ("标题", "title"),
    ("中文段落，带 :ref:`引用 <a>`。", ""),
    ("图中的曲线", "image text"),
    ("图的说明", ""),
    ("表的标题", "title"),
    ("单元格", ""),
    ("a \\text{ 若 } b\n\n", "formula"),
    (">>> 1  # 注释  # doctest: +ELLIPSIS\n1", "code: pycon"),
    ('print("列表中的代码")', "code: python"),
    ("ls  # 列出", "code: bash"),
    ("字面内容", "code: default"),
    ("标签", ""),
    ("标签页的文字", ""),
    ("折叠的标题", ""),
    ("折叠的文字", ""),
    ("术语", "term"),
    ("解释", ""),
    ("脚注 [#f]_", ""),
    ("脚注的内容", ""),
    ("索引词", ""),
]


def template(built, domain: str) -> list[tuple[str, str]]:
    """Return message and kind of each entry of a template."""
    return [(entry.msgid, entry.comment) for entry in polib.pofile(str(built.out / f"{domain}.pot"))]


def test_a_chapter_gives_every_chinese_text_in_its_order_and_nothing_else(book):
    built = book({"index.rst": CHAPTER, "x.png": "", "api/m.rst": "m\n=\n"}, language="en", **CONF)
    assert template(built, "index") == WANTED


def test_a_page_of_the_target_language_gives_nothing(book):
    files = {"index.rst": CHAPTER, "x.png": "", "api/m.rst": "Module\n======\n\nSome words.\n"}
    assert not (book(files, language="en", **CONF).out / "api/m.pot").exists()
    built = book({}, language="zh_CN", **CONF)
    assert not (built.out / "index.pot").exists()
    assert template(built, "api/m") == [("Module", "title"), ("Some words.", "")]


def test_a_page_without_anything_to_translate_gives_no_template(book):
    built = book({"index.rst": "English\n=======\n"}, language="en", **CONF)
    assert not list(built.out.rglob("index.pot"))


MODULE = '''
"""What the module does."""

def double(x: int, y: "list[str] | None" = None) -> int:
    """Return twice a number.

    .. math:: y = 2 x \\\\text{ or so}

    Args:
        x: ``(B, T)`` the number.
        y: unused.

    Returns:
        ``(B,)``, the double.

    Raises:
        ValueError: if it is odd.

    References:
        Someone (2020).

    Example:
        >>> double(2)  # four
        4
    """

class Base:
    """A class to derive from."""

class Derived(Base):
    """Another class."""

    width: int = 3
    """How wide it is."""
'''


@pytest.mark.parametrize("language", ["zh_CN", "qq"])
def test_an_api_page_gives_prose_without_code_types_formulas_and_labels(book, tmp_path, monkeypatch, language):
    (tmp_path / "i18n_sample.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "i18n_sample", raising=False)
    page = "i18n_sample.sub\n===============\n\n.. automodule:: i18n_sample\n   :members:\n   :show-inheritance:\n"
    extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_autodoc_typehints", "site_i18n"]
    built = book(
        {"index.rst": "书\n==\n\n.. toctree::\n\n   api/m\n", "api/m.rst": page},
        language=language, **{**CONF, "extensions": extensions, "typehints_use_rtype": True},
    )  # fmt: skip
    assert {message for message, _ in template(built, "api/m")} == {
        "What the module does.",
        "Return twice a number.",
        "``(B, T)`` the number.",
        "unused.",
        "``(B,)``, the double.",
        "if it is odd.",
        "Someone (2020).",
        "A class to derive from.",
        "Another class.",
        "How wide it is.",
    }


def test_strings_of_theme_and_extensions_are_extracted_unless_sphinx_has_them(book):
    template_of_theme = '{{ _("Toggle colors") }}{{ _("Next topic") }}'
    files = {"index.rst": "书\n==\n", "_templates/x.html": template_of_theme}
    built = book(files, language="zh_CN", templates_path=["_templates"], exclude_patterns=["_templates"], **CONF)
    found = {message for message, _ in template(built, "sphinx")}
    assert {"Toggle colors", "Verifies", "verified by runnable code"} <= found
    assert "Next topic" not in found
    assert not (book({}, language="en", templates_path=["_templates"], **CONF).out / "sphinx.pot").exists()


@pytest.mark.parametrize(
    ("message", "source", "expected"),
    [
        ("中文", "zh_CN", True),
        ("，", "zh_CN", True),
        ("English", "zh_CN", False),
        ("English", "en", True),
        ("参数", "en", False),
        ("``(B, T)``", "en", False),
        ("``(B, T)`` tensor", "en", True),
        (":sphinx_autodoc_typehints_type:`\\:py\\:class\\:\\`int\\``", "en", False),
        ("llm_study.core.checks", "en", False),
        (":func:`double`", "en", False),
        (":func:`the double <double>`", "en", True),
        ("**Never** 1", "en", True),
        (".. image:: words.png", "en", False),
        ("x = 3", "en", False),
    ],
)
def test_what_needs_translation(message, source, expected):
    assert needs_translation(message, source) is expected


def test_marked_strings():
    source = '_("a")\nf(_("b" "c"), _(x))\n_(f"{d}")\ngettext("e")\n_("g", 1)\n'
    assert sorted(marked_strings.strings(source), key=str) == sorted(
        [(1, "a"), (2, "bc"), (2, None), (3, None), (5, None)], key=str
    )
