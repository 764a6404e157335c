"""The rules for chapters: each with text that passes and text that fails, at the right line."""

import chapters
import pytest

GOOD = """\
.. _page-1:

标题 one
========

一段中文，带 English、数字 3 与 ``literal``，以及 :math:`x`\\ （公式）和 **重点** 。自注意力（self-attention）如下：

.. _page-1-part:

小节
----

- 列表的一项，不换行。
- 另一项：

  .. doctest::
     :options: +NORMALIZE_WHITESPACE

     >>> f(x)  # 注释,half-width是可以的
     tensor([1])

1. 编号项。

.. math:: a \\text{中文a} = b
   :label: eq-page-1-sum

.. dropdown:: 答案 1

   折叠里的文字。

.. figure:: x.png
   :alt: 一张图

   图的说明。

.. list-table:: 表格

   * - 单元格
     - B, T
   * - 甲
     - :eq:`eq-page-1-sum`

======  ====
符号    含义
======  ====
甲      ab
======  ====

命令如下::

   pip安装 (x)

术语
   解释文字。

| 第一行
| 第二行

See (B, T), no Chinese here: fine?
so are two lines.

.. 注释(comment)里随便写

   继续随便abc写
"""
# defect → a piece of the good text, what it becomes, the code, how many lines below the piece it is reported
BAD = {
    "section without label": (".. _page-1-part:\n\n", "", "rst-label", 0),
    "label of another page": ("_page-1-part", "_other-part", "rst-label", 2),
    "label that is not ASCII": ("_page-1-part", "_page-1-部分", "rst-label", 2),
    "label that only begins alike": ("_page-1-part", "_page-12", "rst-label", 2),
    "text between label and section": ("part:\n\n小节", "part:\n\n文字。\n\n小节", "rst-label", 4),
    "equation of another page": ("eq-page-1-sum\n\n.. dropdown", "eq-sum\n\n.. dropdown", "rst-equation", 0),
    "inline flag": ("# 注释,half-width是可以的", "# doctest: +SKIP", "rst-flags", 0),
    "blank line": ("tensor([1])", "a\n     <BLANKLINE>\n     b", "rst-blankline", 1),
    "bare prompt": ("1. 编号项。", ">>> 1", "rst-prompt", 0),
    "bare prompt in a list": ("1. 编号项。", "- >>> 1", "rst-prompt", 0),
    "prompt in a literal": ("pip安装 (x)", ">>> 1", "rst-prompt", 0),
    "skipif": (":options: +NORMALIZE_WHITESPACE", ":skipif: True", "rst-skip", 0),
    "pyversion": (":options: +NORMALIZE_WHITESPACE", ":pyversion: > 4", "rst-skip", 0),
    "broken paragraph": ("一段中文，", "一段中文，\n", "rst-line", 1),
    "broken list item": ("列表的一项，", "列表的一项，\n  ", "rst-line", 1),
    "broken caption": ("图的说明。", "图的说明，\n   第二行。", "rst-line", 1),
    "no space before Latin": ("带 English", "带English", "rst-space", 0),
    "no space after a digit": ("数字 3 与", "数字 3与", "rst-space", 0),
    "no space before a literal": ("与 ``literal``", "与``literal``", "rst-space", 0),
    "no space after a literal": ("``literal``，", "``literal``也", "rst-space", 0),
    "no space beside strong": ("和 **重点**", "和**重点**", "rst-space", 0),
    "no space in a title": ("标题 one", "标题one", "rst-space", 0),
    "no space in the title of a dropdown": ("答案 1", "答案1", "rst-space", 0),
    "no space in an alternative text": ("一张图", "一张3图", "rst-space", 0),
    "half-width comma": ("一段中文，", "一段中文,", "rst-punctuation", 0),
    "half-width parenthesis": ("自注意力（", "自注意力(", "rst-punctuation", 0),
    "half-width colon": ("如下：", "如下:", "rst-punctuation", 0),
    "half-width period": ("编号项。", "编号项.", "rst-punctuation", 0),
    "half-width closing": ("（公式）和", "(公式)和", "rst-punctuation", 0),
    "straight quotation marks": ("一段中文，", '一段 "中文" ，', "rst-quotes", 0),
    "corner brackets": ("一段中文，", "一段「中文」，", "rst-quotes", 0),
    "an open quotation": ("一段中文，", "一段“中文，", "rst-quotes", 0),
    "full-width letter": ("一段中文，", "一段Ｔ中文，", "rst-width", 0),
    "full-width space": ("一段中文，", "一段　中文，", "rst-width", 0),
    "short ellipsis": ("一段中文，", "一段中文…", "rst-width", 0),
    "three dots": ("一段中文，", "一段中文...", "rst-width", 0),
    "two hyphens": ("一段中文，", "一段--中文，", "rst-width", 0),
    "formula in a title": ("标题 one", "标题 :math:`x`", "rst-title", 0),
    "in a cell": ("单元格", "单元格!", "rst-punctuation", 0),
}


def check(tmp_path, text):
    path = tmp_path / "page_1.rst"
    path.write_text(text, "utf-8")
    return [(finding.code, finding.line) for finding in chapters.check(path)]


def test_good_text_has_no_finding(tmp_path):
    assert check(tmp_path, GOOD) == []


@pytest.mark.parametrize(("old", "new", "code", "below"), BAD.values(), ids=BAD)
def test_a_defect_is_found_at_its_line(tmp_path, old, new, code, below):
    assert GOOD.count(old) == 1
    line = GOOD[: GOOD.index(old)].count("\n") + 1 + below
    assert check(tmp_path, GOOD.replace(old, new)) == [(code, line)]


def test_every_rule_has_a_defect():
    assert len({code for *_, code, _ in BAD.values()}) == len(chapters.RULES)


def test_the_command_names_path_line_code_and_remedy(tmp_path, capsys):
    path = tmp_path / "page_1.rst"
    path.write_text(GOOD.replace("带 English", "带English"), "utf-8")
    assert chapters.main([str(path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}:6: rst-space expected a space beside Chinese, found '带E'; put a space between the two\n"
    )
    path.write_text(GOOD, "utf-8")
    assert chapters.main([str(path)]) == 0


def test_an_index_page_has_the_name_of_its_folder_as_prefix(tmp_path):
    path = tmp_path / "general/index.rst"
    path.parent.mkdir()
    path.write_text(".. _general:\n\n标题\n====\n", "utf-8")
    assert chapters.check(path) == []


@pytest.mark.parametrize(
    ("label", "passes"), [("general-page_1", True), ("general-page_1-x", True), ("page-1-x", True), ("x-page-1", False)]
)
def test_a_label_may_begin_with_the_folder(tmp_path, label, passes):
    path = tmp_path / "general/page_1.rst"
    path.parent.mkdir()
    path.write_text(f".. _{label}:\n\n标题\n====\n", "utf-8")
    assert (chapters.check(path) == []) is passes


def test_api_pages_and_what_is_no_page_are_left_out(tmp_path):
    for name in ("index.rst", "general/a.rst", "api/b.rst", "node_modules/c.rst", "_x/d.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", "utf-8")
    assert [path.relative_to(tmp_path).as_posix() for path in chapters.chapters(tmp_path)] == [
        "general/a.rst",
        "index.rst",
    ]
