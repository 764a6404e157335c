"""The glossary shows each term in both languages, in the order of the reader's."""

import re

import pytest

TERMS = "zh\ten\tnote\n注意力\tattention\t\n批大小\tbatch size;size of the batch\t\n"
PAGE = """书
====

.. glossary-terms::

   注意力
      按匹配求平均。

   批大小
      一批有几个。

.. termbase::
"""


@pytest.fixture
def glossary(book, tmp_path):
    (tmp_path / "locale").mkdir()
    (tmp_path / "locale/terms.tsv").write_text(TERMS, "utf-8")

    def build(language):
        built = book({"index.rst": PAGE}, extensions=["termbase"], language=language, html_theme="basic")
        assert built.warnings == ""
        return re.sub(r"\s*\n\s*", "", built.read("index.html"))

    return build


def test_headwords_stand_in_both_languages_and_say_which(glossary):
    zh, en = '<span lang="zh-CN">注意力</span>', '<span lang="en">attention</span>'
    assert f'<dt id="term-attention">{zh} · {en}</dt>' in glossary("zh_CN")
    assert f'<dt id="term-attention">{en} · {zh}</dt>' in glossary("en")


def test_a_headword_is_the_first_form_alone(glossary):
    assert '<span lang="en">batch size</span> · <span lang="zh-CN">批大小</span></dt>' in glossary("en")


def test_the_table_is_ordered_by_its_english_and_lists_all_forms(glossary):
    rows = re.findall(r'<p><span lang="en">([^<]*)</span></p></td><td><p><span lang="zh-CN">([^<]*)', glossary("en"))
    assert rows == [("attention", "注意力"), ("batch size, size of the batch", "批大小")]


def test_a_term_that_is_not_in_the_table_is_an_error(book, tmp_path, glossary):
    text = PAGE.replace("注意力", "没有的词")
    built = book({"index.rst": text}, extensions=["termbase"], html_theme="basic")
    assert "'没有的词' is not in locale/terms.tsv" in built.warnings
