"""The rules about what a translation says: each with a translation that passes and some that fail."""

import polib
import pytest
from catalogs.numbers import numbers
from catalogs.rules import RULES, Page
from catalogs.rules_markup import blocks
from catalogs.storage import Catalog
from catalogs.tables import Tables

TABLES = Tables(
    terms={
        "注意力": ("attention",), "自注意力": ("self-attention",), "键": ("key",),
        "矩阵": ("matrix",), "熵": ("entropy",), "批大小": ("batch size",), "小批量": ("mini-batch size",),
        "残差连接": ("residual connection",),
    },
    words=frozenset({"关键"}),
    allowed={"en/a": ("小猫",)},
)  # fmt: skip
FORMULA = "N_{\\text{layer}} = a + b \\text{ 当 $a = 1$}"
# what is tried → (kind of message, source, a translation that passes, {a translation that fails: its code})
EN = {
    "roles": ("", "见 :ref:`后面 <a-b>` 与 :eq:`eq-x`。", "See :eq:`eq-x` and :ref:`below <a-b>`.", {
        "See :eq:`eq-x` and :ref:`below <a-c>`.": "po-markup",
        "See :eq:`eq-x` and :numref:`below <a-b>`.": "po-markup",
        "See :eq:`eq-x` and :eq:`eq-x` and :ref:`below <a-b>`.": "po-markup",
        "See :eq:`eq-x` and below.": "po-markup",
        "See:eq:`eq-x` and :ref:`below <a-b>`.": "po-markup",
    }),
    "a role whose target is hidden in part": ("", "用 :func:`~a.b` 算。", "Computed by :func:`a.b`.", {
        "Computed by :func:`~a.c`.": "po-markup"
    }),
    "a term of the glossary": ("", "这是 :term:`注意力` 。", "This is :term:`attention <注意力>`.", {
        "This is :term:`attention`.": "po-markup"
    }),
    "literals": ("", "``q`` 与 ``k``。", "``k`` and ``q``.", {
        "``k`` and ``v``.": "po-markup", "``k`` and q.": "po-markup", "``k`` and ``q``x.": "po-markup",
    }),
    "substitutions": ("", "是 |name| 。", "It is |name|.", {"It is |other|.": "po-markup"}),
    "footnotes": ("", "如此 [#n]_ 。", "So [#n]_.", {"So [#m]_.": "po-markup"}),
    "citations": ("", "如此 [ref]_ 。", "So [ref]_.", {"So.": "po-markup"}),
    "links": ("", "在 `这里 <https://a.org/x>`_ 。", "It is `here <https://a.org/x>`_.", {
        "It is `here <https://a.org/y>`_.": "po-link", "It is here.": "po-markup",
    }),
    "addresses": ("", "写信到 a@b.org，或看 https://a.org。", "Write to a@b.org, or see https://a.org.", {
        "Write to x@b.org, or see https://a.org.": "po-markup",
        "Write to a@b.org, or see https://a.org/x.": "po-link",
    }),
    "scripts": ("", "在 `这里 <https://a.org/x>`_ 。", "It is `here <https://a.org/x>`_.", {
        "It is `here <javascript:alert(1)>`_.": "po-link",
        "It is `here <java\\script:alert(1)>`_.": "po-link",
        "It is `here <data:text/html,x>`_.": "po-link",
    }),
    "a target of its own": ("", "文字。", "Text.", {"Text, _`target`.": "po-markup", "_`Text`.": "po-markup"}),
    "strong": ("", "要 **点** 和 *线* 。", "The **point** and the *line*.", {
        "The point and the *line*.": "po-emphasis",
        "The **point** and the **line**.": "po-emphasis",
        "The **point**s and the *line*.": "po-emphasis",
    }),
    "inline formulas": ("", "除以 :math:`\\sqrt{d}` 与 :math:`d`。", "Divided by :math:`d` and :math:`\\sqrt{d}`.", {
        "Divided by :math:`d` and :math:`\\sqrt{k}`.": "po-formula",
        "Divided by :math:`\\sqrt{d}`.": "po-formula",
        "Divided by :math:`d`, :math:`d` and :math:`\\sqrt{d}`.": "po-formula",
    }),
    "formulas": ("formula", FORMULA, FORMULA.replace("当", "if"), {
        "N_{\\text{layer}} = a - b \\text{ if $a = 1$}": "po-formula",
        "N_{\\text{layer}} = a + b \\text{ if $a = 2$}": "po-formula",
        "N_{\\text{level}} = a + b \\text{ if $a = 1$}": "po-formula",
        "N_{\\text{layer}} = a + b \\text{ \\href{x} if $a = 1$}": "po-formula",
        "N_{\\text{layer}} = a + b": "po-formula",
        "N_{\\text{layer}} = a + b \\text{ 当 $a = 1$}": "po-script",
    }),
    "one paragraph": ("", "甲 乙。", "Some. Words.", {
        "- A. B.": "po-block", "Some. Words": None, "A. B.": "po-block", "1. A.": "po-block", "(a) B.": "po-block",
        "\\1. A.": "po-number",
        "A.\n\nB.": "po-block", "A\n=\n\nB": "po-block", "A ::\n\n   B": "po-block", "  A. B.": "po-block",
        "| A. B.": "po-block", ">>> A": "po-block", ":A: B": "po-block", ".. A": "po-block", "-a  B": "po-block",
        "=====": "po-block", "A\n  B": "po-block",
    }),
    "one title": ("title", "甲", "A", {"- A": "po-block", "1. A": "po-number", "A. B.": None}),
    "Chinese": ("", "小猫 **它** 。", "The kitten **it**.", {
        "The kitten **它**.": "po-script", "The kitten **it**。": "po-script", "The （kitten） **it**.": "po-script",
        "The 小猫 **it**.": None,
    }),
    "dashes and apostrophes": ("", "文字。", "Text — it's fine… really.", {
        "Text —— fine.": "po-typography", "Text……": "po-typography", "It’s fine.": "po-typography",
        "Text , fine.": "po-typography", "Text,fine.": "po-typography",
    }),
    "quotation marks": ("", "“文字”。", "“Text”.", {
        '"Text".': "po-quotes", "“Text.": "po-quotes", "”Text“.": "po-quotes",
    }),
    "a term": ("", "自注意力与键。", "Self-attention and keys.", {
        "Attention and keys.": "po-term", "Self-attention and values.": "po-term",
        "Self-attention and keyboards.": "po-term",
    }),
    "plurals": ("", "矩阵的熵。", "The entropies of matrices.", {"The entropies of matrixes.": "po-term"}),
    "a hyphen for a space": ("", "批大小。", "The batch-size.", {"The batchsize.": "po-term"}),
    "a word that hides a term": ("", "关键在此。", "This is the point.", {}),
    "a term in a title of a role": ("", "见 :ref:`键 <a-key>`。", "See :ref:`keys <a-key>`.", {
        "See :ref:`this <a-key>`.": "po-term"
    }),
    "digits": ("", "取 400 次与 0.5。", "Take 0.5 and 400.", {
        "Take 0.5 and 40.": "po-number", "Take 400.": "po-number", "Take 0,5 and 400.": "po-number",
        "Take 0.5 and 400 of 7.": "po-number",
    }),
    "a sign": ("", "取 -3。", "Take -3.", {"Take 3.": "po-number"}),
    "myriads": ("", "共 6500 万与 1.5 亿。", "65 million and 150,000,000.", {
        "6,500 million and 150,000,000.": "po-number", "65 million and 15 million.": "po-number",
    }),
    "number words": ("", "四千四百万个词，三个头，第六章。", "44 million words, three heads, the sixth chapter.", {
        "44 million words, four heads, the sixth chapter.": "po-number",
        "4.4 million words, three heads, chapter 6.": "po-number",
        "44 million words, three heads, the chapter.": "po-number",
    }),
    "words that are no numbers": ("", "一旦千万人十分万一，二者。", "Once.", {}),
    "fractions": ("", "三分之一。", "One third.", {"A quarter.": "po-number"}),
    "ranges": ("", "3 到 5。", "3–5.", {"3–6.": "po-number"}),
    "months": ("", "2017 年 6 月。", "June 2017.", {"July 2017.": "po-number"}),
    "percent": ("", "百分之五与 7%。", "5 % and 7 percent.", {"5 and 7.": "po-number"}),
    "units": ("", "4 GiB，3 毫秒，2 倍。", "4 GiB, 3 ms, twice 2.", {
        "4 GB, 3 ms, 2 times.": "po-number", "4 GiB, 3 seconds, 2 times.": "po-number", "4 GiB, 3 ms, 2.": "po-number",
    }),
}  # fmt: skip
ZH = {
    "emphasis becomes strong": ("", "It *is* so.", "它 **就是** 这样。", {"它就是这样。": "po-emphasis"}),
    "punctuation": ("", "A, ``b`` (see C): yes.", "甲，``b``\\ （见 C）：对。", {
        "甲,``b``\\ （见 C）：对。": "po-typography", "甲，``b``\\ （见 C）：对.": "po-typography",
        "甲，``b``\\ （见C）：对。": "po-typography", "甲，``b`` 乙(见 C)：对。": "po-typography",
        "甲，「乙」 ``b``\\ （见 C）：对。": "po-typography", "甲，``b``乙\\ （见 C）：对。": "po-markup",
    }),
    "quotation marks": ("", 'The "Concat".', "“Concat”。", {'"Concat"。': "po-quotes"}),
    "compounds": ("", "Self-attention over the batch size.", "自注意力，批大小。", {
        "注意力，批大小。": "po-term", "自注意力，批的大小。": "po-term",
    }),
    "a compound within a longer one": ("", "The mini-batch size.", "小批量。", {"批大小。": "po-term"}),
    "numbers": ("", "It has three parts, 4 rows and 10 bytes.", "它有三个部分、4 行、10 字节。", {
        "它有几个部分、4 行、10 字节。": "po-number", "它有三个部分、5 行、10 字节。": "po-number",
        "它有三个部分、4 行、10 个。": "po-number",
    }),
}  # fmt: skip


def check(source, translation, kind="", language="en", domain="a"):
    entries = [
        polib.POEntry(msgid=text, msgstr=told, comment=about, linenum=line)
        for text, told, about, line in [("前文", "Before", "", 9), (source, translation, kind, 12)]
    ]
    catalog = Catalog("a.po", language, domain, entries=entries)
    page = Page(catalog, {entry.msgid: entry for entry in entries}, tables=TABLES)
    return [(finding.code, finding.line) for rule in RULES for finding in rule(page)]


CASES = [
    (f"{language}: {name}", language, *case)
    for language, table in (("en", EN), ("zh_CN", ZH))
    for name, case in table.items()
]


@pytest.mark.parametrize(
    ("language", "kind", "source", "good", "bad"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_good_translation_passes_and_a_bad_one_is_found_at_its_line(language, kind, source, good, bad):
    assert check(source, good, kind, language) == []
    for translation, code in bad.items():
        found = check(source, translation, kind, language)
        assert found if code else not found, translation
        if code:
            assert (code, 12) in found, translation


def test_every_rule_about_wording_and_markup_has_a_defect():
    modules = {"catalogs.rules_markup", "catalogs.rules_text", "catalogs.rules_terms"}
    named = {f"po-{rule.__name__}" for rule in RULES if rule.__module__ in modules}
    found = {code for *_, bad in CASES for code in bad.values()}
    assert named - found == {"po-placeholder", "po-compound"}  # the first below, the second reports a po-term


@pytest.mark.parametrize(
    ("source", "good", "bad", "code"),
    [
        ("图 {n}：%s", "Figure {n}: %s", "Figure {m}: %s", "po-placeholder"),
        ("图 {n}：%s", "Figure {n}: %s", "Figure {n}: %d", "po-placeholder"),
        ("除以 $d$", "divided by $d$", "divided by $e$", "po-formula"),
        ("- 甲", "- A", "- A <b>", "po-placeholder"),
    ],
)
def test_plain_messages_of_figures_and_of_the_theme(source, good, bad, code):
    assert check(source, good, "figure", domain="figures") == []
    assert check(source, bad, "figure", domain="figures") == [(code, 12)]


def test_a_script_is_refused_even_if_the_source_has_it():
    link = "`x <javascript:f()>`_"
    assert check(f"在 {link} 。", f"At {link}.") == [("po-link", 12)]


def test_alternative_text_is_no_markup():
    assert check("甲 * 乙", "- A * B", "image text") == []


def test_code_is_not_judged_as_text():
    assert check(">>> 1  # 三个", ">>> 1  # some, “", "code: pycon") == []


@pytest.mark.parametrize(
    ("text", "value", "certain"),
    [
        ("十二层", 12, True), ("十层", 10, True), ("二十", 20, True), ("三百零五", 305, True), ("一万亿", 10**12, True),
        ("四千四百万", 44_000_000, True), ("一亿两千万", 120_000_000, True), ("两亿", 200_000_000, True),
        ("两个", 2, False), ("一步", 1, False), ("第三", 3, True), ("三角", 3, False),
        ("几十个", 10, False), ("三十多", 30, False), ("1.5 万亿", 1_500_000_000_000, True), ("37,000", 37000, True),
        ("3 千", 3000, True), ("−3", -3, True),
    ],
)  # fmt: skip
def test_a_chinese_number_has_a_value_and_may_be_vague(text, value, certain):
    (found,) = numbers(text, "zh_CN")
    assert (found.values, found.certain) == ({value}, certain)


def test_small_numbers_may_go_unsaid():
    assert check("这一步取两个头里的一个。", "This picks a head.") == []


def test_what_docutils_reads(tmp_path):
    assert blocks("A *b* ``c``.") == ["paragraph"]
    assert blocks(".. include:: /etc/passwd\n") == []
    assert blocks("A\n\n- b") == ["paragraph", "bullet_list"]
