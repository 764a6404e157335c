"""Terms of a chapter are marked with their counterpart: which of them, where, and without any change of the text."""

import html
import re

import pytest
from term_hints import Terms

from .conftest import Book, Built

TERMS = """\
zh	en	note
注意力	attention
多头注意力	multi-head attention
多头	multi-head;heads
头	head
键	key
值	value
权重	weight;weighted
最大值	maximum;max
"""
FILES = {
    "../locale/terms.tsv": TERMS,
    "../locale/allowed.toml": 'words = "关键 数值"\n',
    "index.rst": "书\n==\n\n注意力。\n\n.. toctree::\n\n   general/a\n",
}
OPTIONS = {"extensions": ["term_hints"]}


def chapter(body: str) -> dict[str, str]:
    """Return a book whose chapter says this."""
    return {**FILES, "general/a.rst": f"多头注意力\n==========\n\n{body}\n"}


def hints(built: Built, page: str = "general/a") -> list[tuple[str, str, str]]:
    """Return what is marked on a page: the text, what the bubble shows, and the place in the tab order."""
    pattern = r'<span class="term-hint" tabindex="(.*?)" data-term="(.*?)" aria-description="\2">(.*?)</span>'
    return [
        (html.unescape(text), html.unescape(name), tab)
        for tab, name, text in re.findall(pattern, built.read(f"{page}.html"))
    ]


def marked(built: Built) -> list[tuple[str, str]]:
    """Return the texts that are marked and what their bubbles show."""
    return [hint[:2] for hint in hints(built)]


def test_the_longest_term_at_each_place_shows_its_first_english_form(book: Book) -> None:
    built = book(chapter("多头注意力与注意力的 **权重**，最大值。"), **OPTIONS)
    expected = [
        ("多头注意力", "multi-head attention"),
        ("注意力", "attention"),
        ("权重", "weight"),
        ("最大值", "maximum"),
    ]
    assert marked(built) == expected
    assert built.warnings == ""


def test_other_pages_are_left_alone(book: Book) -> None:
    assert hints(book(chapter("注意力。"), **OPTIONS), "index") == []


def test_books_without_a_mouse_are_left_alone(book: Book) -> None:
    assert "term-hint" not in book(chapter("注意力。"), builder="epub", version="1", **OPTIONS).read("general/a.xhtml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("查询、键与值。", ["键", "值"]),
        ("每个键的值", ["键", "值"]),
        ("关键的是数值。", []),
        ("键盘和初值，按键", []),
        ("头", ["头"]),
        ("开头", []),
        ("K 值：", ["值"]),
    ],
)
def test_a_term_of_one_character_stands_alone(text: str, found: list[str]) -> None:
    terms = Terms({"键": ("key",), "值": ("value",), "头": ("head",)}, frozenset({"关键", "数值"}), frozenset())
    assert [zh for _, zh in terms.in_chinese(text)] == found


PLACES = """\
.. rubric:: 多头注意力

:多头注意力: 正文

- ``多头注意力`` 与 :math:`\\text{多头注意力}`
- `多头注意力 <https://example.org>`_ 与 :doc:`多头注意力 </index>`

多头注意力
   正文。

.. list-table::

   * - 多头注意力
     - 正文

::

   多头注意力

.. code-block:: text
   :caption: 多头注意力

   x

.. math::

   \\text{多头注意力}

.. admonition:: 多头注意力

   框里的注意力。

.. figure:: a.svg
   :alt: 图

   图下的 *权重*。

*  一项里的 **最大值**

至此才有多头注意力。
"""


def test_only_running_text_is_marked(book: Book) -> None:
    built = book({**chapter(PLACES), "general/a.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>'}, **OPTIONS)
    assert built.warnings == ""
    assert built.read("general/a.html").count("多头注意力") > 12
    assert [text for text, _ in marked(built)] == ["注意力", "权重", "最大值", "多头注意力"]


def test_a_term_is_marked_once_in_each_section_and_reached_once_by_the_tab_key(book: Book) -> None:
    text = "权重，权重。\n\n甲\n--\n\n权重。\n\n乙\n~~\n\n权重。\n\n丙\n--\n\n权重。"
    built = book(chapter(text), **OPTIONS)
    assert hints(built) == [("权重", "weight", "0"), ("权重", "weight", "-1"), ("权重", "weight", "-1")]


def test_a_term_that_is_explained_on_the_spot_is_not_marked(book: Book) -> None:
    built = book(chapter("注意力（attention）是什么？注意力。\n\n甲\n--\n\n注意力。"), **OPTIONS)
    assert hints(built) == [("注意力", "attention", "0")]  # the one of the second section, and it is reached


def test_an_english_page_has_the_terms_that_its_source_has(book: Book) -> None:
    messages = {
        "多头注意力也是注意力。": "Multi-head attention is attention.",
        "注意力的权重。": "Weights of attention: a head, a value & a key.",
        "查询键": "query key",
        "每个键的值": "Keys and their <values>, **values**",
        "多头": "Several heads.",
        "多头的头": "Multi-head attention has a head.",
    }
    body = "\n\n".join(f"- {zh}" for zh in messages)
    built = book(chapter(body), {"general/a": messages}, language="en", **OPTIONS)
    expected = {
        "Multi-head attention": "多头注意力", "attention": "注意力", "Weights": "权重",
        "Keys": "键", "values": "值", "Multi-head": "多头", "head": "头",
    }  # fmt: skip
    assert marked(built) == list(expected.items())
    text = html.unescape(re.sub("<[^>]+>", "", built.read("general/a.html")))
    assert all(message.replace("**", "") in text for message in messages.values())


def test_other_languages_and_untranslated_paragraphs_have_no_hints(book: Book) -> None:
    japanese = {"general/a": {"注意力。": "attention です。"}}
    assert hints(book(chapter("注意力。"), japanese, language="ja", **OPTIONS)) == []
    assert hints(book(chapter("注意力。"), language="en", **OPTIONS)) == []


@pytest.mark.parametrize("language", ["zh_CN", "en"])
def test_text_search_and_catalogs_stay_as_they_are(book: Book, language: str) -> None:
    text = "自从“注意力”的权重与键 & 值出现。"
    files, english = chapter(text), {"general/a": {text: "Since 'attention' weights & keys."}}
    texts = []
    for extensions in (["search_grams", "term_hints"], ["search_grams"]):
        built = book(files, english if language == "en" else {}, language=language, extensions=extensions)
        article = re.search(r'<section id=".*</section>', built.read("general/a.html"), re.DOTALL)
        assert article is not None
        texts.append((re.sub("<[^>]+>", "", article[0]), built.read("searchindex.js")))
        assert ("term-hint" in article[0]) == ("term_hints" in extensions)
    assert texts[0] == texts[1]
    pot = book(files, builder="gettext", language=language, **OPTIONS).read("general/a.pot")
    assert "term-hint" not in pot
    assert f'msgid "{text}"' in pot


def test_names_are_escaped(book: Book) -> None:
    files = chapter("批") | {"../locale/terms.tsv": 'zh\ten\tnote\n批\tbatch "<b>" & more\n'}
    built = book(files, **OPTIONS)
    assert marked(built) == [("批", 'batch "<b>" & more')]
    assert 'data-term="batch &quot;&lt;b&gt;&quot; &amp; more"' in built.read("general/a.html")


@pytest.mark.parametrize(
    ("name", "text", "after"),
    [
        ("terms.tsv", "zh\ten\tnote\n注意力\tregard\n", [("注意力", "regard")]),
        ("allowed.toml", 'words = "注意力不集中"\n', []),
    ],
)
def test_pages_follow_the_tables(book: Book, name: str, text: str, after: list[tuple[str, str]]) -> None:
    assert marked(book(chapter("注意力不集中。"), **OPTIONS)) == [("注意力", "attention")]
    assert marked(book({**chapter("注意力不集中。"), f"../locale/{name}": text}, **OPTIONS)) == after
