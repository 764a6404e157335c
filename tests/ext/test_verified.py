"""Verified equations: marks, links back, errors, and pages that are drawn again."""

import re

import pytest

CONF = {"extensions": ["verified"], "numfig": True, "math_numfig": True}
SPHINX = {"Verifies": "验证", "verified by runnable code": "由可运行的代码验证"}


def page(title: str, *equations: str, checks: str = "") -> str:
    """Return a page with these equations, and with one doctest that verifies ``checks``."""
    math = "".join(f".. math:: x = y\n   :label: {label}\n\n" for label in equations)
    doctest = f".. doctest::\n   :verifies: {checks}\n\n   >>> 1 + 1\n   2\n" if checks else ""
    return f"{title}\n====\n\n{math}{doctest}"


def index(*names: str) -> str:
    return "书\n====\n\n.. toctree::\n   :numbered:\n\n" + "".join(f"   {name}\n" for name in names)


def links(html: str, kind: str) -> list[str]:
    """Return the targets of the links in paragraphs of a class."""
    return [
        href for text in re.findall(rf'<p class="{kind}">(.*?)</p>', html) for href in re.findall(r'href="(.*?)"', text)
    ]


def test_mark_and_check_lead_to_each_other(book):
    built = book(
        {"index.rst": index("a"), "a.rst": page("甲", "eq-a-x", "eq-a-y", checks="eq-a-x, eq-a-y")},
        {"sphinx": SPHINX},
        **CONF,
    )
    html = built.read("a.html")
    assert built.warnings == ""
    assert links(html, "verified-by") == ["#check-eq-a-x"] * 2
    assert html.count('id="check-eq-a-x"') == 1
    assert html.count('aria-label="由可运行的代码验证"') == 2
    back = re.search(r'<p class="verifies">(.*)</p>', html)
    assert back
    assert re.sub("<.*?>", "", back[1]) == "验证 (1.1), (1.2)"
    assert links(html, "verifies") == ["#equation-eq-a-x", "#equation-eq-a-y"]


def test_the_mark_is_in_one_box_with_its_equation(book):
    html = book({"index.rst": index("a"), "a.rst": page("甲", "eq-a-x", checks="eq-a-x")}, **CONF).read("a.html")
    box = re.search(
        r'<div class="verified docutils container">\s*<div class="math.*?</div>\s*'
        r'<p class="verified-by">.*?</p>\s*</div>',
        html,
        re.S,
    )
    assert box
    assert 'id="equation-eq-a-x"' in box[0]
    assert html.count('id="equation-eq-a-x"') == 1


def test_text_is_in_the_language_of_the_page(book):
    html = book(
        {"index.rst": index("a"), "a.rst": page("甲", "eq-a-x", checks="eq-a-x")},
        {"a": {"甲": "A"}},
        language="en",
        **CONF,
    ).read("a.html")
    assert 'aria-label="verified by runnable code"' in html
    assert "Verifies <a" in html


def test_each_check_of_a_page_has_an_anchor_of_its_own(book):
    text = page("甲", "eq-a-x", checks="eq-a-x") + "\n.. testcode::\n   :verifies: eq-a-x\n\n   assert True\n"
    html = book({"index.rst": index("a"), "a.rst": text}, **CONF).read("a.html")
    assert links(html, "verified-by") == ["#check-eq-a-x", "#check-eq-a-x-2"]
    assert all(html.count(f'id="{anchor[1:]}"') == 1 for anchor in links(html, "verified-by"))


def test_a_check_may_stand_on_another_page(book):
    built = book(
        {"index.rst": index("a", "b"), "a.rst": page("甲", "eq-a-x"), "b.rst": page("乙", checks="eq-a-x")}, **CONF
    )
    assert links(built.read("a.html"), "verified-by") == ["b.html#check-eq-a-x"]
    assert links(built.read("b.html"), "verifies") == ["a.html#equation-eq-a-x"]


@pytest.mark.parametrize(
    ("files", "exempt", "expected"),
    [
        ({"a.rst": page("甲", "eq-a-x")}, {}, r"a\.rst:4: WARNING: expected a doctest that verifies equation 'eq-a-x'"),
        (
            {"a.rst": page("甲", checks="eq-a-z")},
            {},
            r"a\.rst:4: WARNING: expected the label of an equation .* found 'eq-a-z'",
        ),
        ({"a.rst": page("甲", "eq-a-x")}, {"eq-a-x": "a definition"}, None),
        ({"a.rst": page("甲", "eq-a-x")}, {"eq-a-x": " "}, "'eq-a-x' is exempt without a reason"),
        ({"a.rst": page("甲", "eq-a-x", checks="eq-a-x")}, {"eq-a-x": "old"}, "'eq-a-x' is verified"),
        ({"a.rst": page("甲")}, {"eq-a-x": "old"}, "'eq-a-x' is unknown"),
    ],
    ids=["missing", "unknown", "exempt", "no reason", "exempt but verified", "exempt but gone"],
)
@pytest.mark.parametrize("builder", ["html", "doctest"])
def test_what_is_missing_or_unknown_is_an_error(book, files, exempt, expected, builder):
    built = book({"index.rst": index("a"), **files}, builder=builder, verify_exempt=exempt, **CONF)
    if expected is None:
        assert "[verify" not in built.warnings
        assert "equation" not in built.warnings
    else:
        assert re.search(expected, built.warnings)


def test_a_hidden_block_verifies_nothing(book):
    text = page("甲", "eq-a-x") + ".. doctest::\n   :hide:\n   :verifies: eq-a-x\n\n   >>> 1\n   1\n"
    assert "readers must see the check" in book({"index.rst": index("a"), "a.rst": text}, **CONF).warnings


def test_setup_code_verifies_nothing(book):
    text = page("甲", "eq-a-x") + ".. testsetup::\n   :verifies: eq-a-x\n\n   1\n"
    assert 'unknown option: "verifies"' in book({"index.rst": index("a"), "a.rst": text}, **CONF).warnings


def test_a_page_is_drawn_again_when_another_page_changes_its_marks(book):
    files = {"index.rst": index("a", "b"), "a.rst": page("甲", "eq-a-x", checks="eq-a-x"), "b.rst": page("乙")}
    book(files, **CONF)
    built = book({"b.rst": page("乙", checks="eq-a-x")}, **CONF)
    assert links(built.read("a.html"), "verified-by") == ["#check-eq-a-x", "b.html#check-eq-a-x"]
    built = book({"b.rst": page("乙")}, **CONF)
    assert links(built.read("a.html"), "verified-by") == ["#check-eq-a-x"]


def test_a_check_is_drawn_again_when_the_number_of_its_equation_changes(book):
    files = {"index.rst": index("a", "b"), "a.rst": page("甲", "eq-a-x"), "b.rst": page("乙", checks="eq-a-x")}
    assert "(1.1)" in book(files, **CONF).read("b.html")
    built = book({"a.rst": page("甲", "eq-a-w", "eq-a-x")}, **CONF)
    assert "(1.2)" in built.read("b.html")


def test_a_second_build_draws_nothing(book):
    files = {"index.rst": index("a", "b"), "a.rst": page("甲", "eq-a-x"), "b.rst": page("乙", checks="eq-a-x")}
    first = book(files, **CONF)
    before = {path: path.stat().st_mtime_ns for path in first.out.glob("*.html") if path.stem in {"a", "b", "index"}}
    assert before == {path: path.stat().st_mtime_ns for path in before if book({}, **CONF)}


def test_a_removed_check_leaves_its_equation_unverified(book, tmp_path):
    book({"index.rst": index("a", "b"), "a.rst": page("甲", "eq-a-x"), "b.rst": page("乙", checks="eq-a-x")}, **CONF)
    (tmp_path / "docs/b.rst").unlink()
    built = book({"index.rst": index("a")}, **CONF)
    assert "expected a doctest that verifies equation 'eq-a-x'" in built.warnings
    assert links(built.read("a.html"), "verified-by") == []


def test_pages_may_be_read_in_parallel(book):
    names = [f"p{i}" for i in range(12)]
    files = {f"{name}.rst": page(name, f"eq-{name}-x", checks=f"eq-p{(i + 5) % 12}-x") for i, name in enumerate(names)}
    built = book({"index.rst": index(*names), **files}, parallel=2, **CONF)
    assert built.warnings == ""
    for i, name in enumerate(names):
        assert links(built.read(f"{name}.html"), "verified-by") == [f"p{(i - 5) % 12}.html#check-eq-{name}-x"]
