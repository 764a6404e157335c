"""What stands between an argument and its description."""

import pytest

PAGE = "书\n==\n\n.. py:function:: f(x)\n\n   :param x: 数 -- 不是字。\n   :raises ValueError: 错。\n"


@pytest.mark.parametrize(
    ("language", "shown"),
    [("zh_CN", "<strong>x</strong>：数 -- 不是字。"), ("en", "<strong>x</strong> – 数 – 不是字。")],
)
def test_the_dash_is_a_colon_in_chinese_only(book, language, shown):
    built = book({"index.rst": PAGE}, language=language, extensions=["field_dashes"], nitpicky=False)
    assert shown in built.read("index.html")
