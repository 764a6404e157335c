"""Listings of the package: what they show, what they leave out, where they lead, and what a wrong name is told."""

import ast
import html
import re
import textwrap

import pytest
from source_listing import find

ATTENTION = '''\
"""A module."""

import functools


def twice(f):
    return f


# Stands above, and belongs to no function.
@twice
@functools.cache
def attention(
    q: float,  # queries
    *,
    scale: float | None = None,
) -> str:
    r"""Weigh the values.

    Example:
        >>> attention(1.0)
        'q = 1.0'
    """

    # why the scale is one
    text = f"""q = {q}"""

    return text  # 中文


class Head:
    """One head."""

    width: int = 4
    """How wide it is."""

    depth: int = 1
    """How deep it is."""

    def forward(self, x: int) -> int:
        """Run it."""
        return x + self.width

    def _hidden(self) -> None:
        """Only a docstring."""


class EmptyError(ValueError):
    """Raised when empty."""
'''
NAME = "llm_study.functional.attention.attention"
PACKAGE = {
    "../llm_study/__init__.py": "",
    "../llm_study/functional/__init__.py": '"""Functions."""\n\n\ndef total(x):\n    return x\n',
    "../llm_study/functional/attention.py": ATTENTION,
    "api.rst": f"API\n===\n\n.. py:function:: {NAME}(q)\n\n.. py:class:: llm_study.functional.attention.Head\n",
}
ATTENTION_CODE = '''\
@twice
@functools.cache
def attention(
    q: float,  # queries
    *,
    scale: float | None = None,
) -> str:
    # why the scale is one
    text = f"""q = {q}"""

    return text  # 中文'''
HEAD_CODE = """\
class Head:
    width: int = 4
    depth: int = 1

    def forward(self, x: int) -> int:
        return x + self.width

    def _hidden(self) -> None:
        ..."""


def page(*directives):
    return "Title\n=====\n\n.. toctree::\n\n   api\n\n" + "\n\n".join(directives) + "\n"


def build(book, *directives, **options):
    return book({**PACKAGE, "index.rst": page(*directives)}, extensions=["source_listing"], numfig=True, **options)


def shown(text):
    """Return the plain text of the listings on a page."""
    blocks = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", block)).strip("\n") for block in blocks]


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        path.resolve().write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (NAME, ATTENTION_CODE),
        ("llm_study.functional.attention.Head", HEAD_CODE),
        ("llm_study.functional.attention.Head.forward", "def forward(self, x: int) -> int:\n    return x + self.width"),
        ("llm_study.functional.attention.EmptyError", "class EmptyError(ValueError):\n    ..."),
        ("llm_study.functional.total", "def total(x):\n    return x"),
    ],
)
def test_a_definition_is_shown_whole_without_docstrings(package, name, code):
    assert find(package, name).code() == code
    ast.parse(code)


def test_of_overloads_the_implementation_is_shown(package):
    text = "def f(x): ...\n\n\ndef f(x=1):\n    return x\n"
    (package / "llm_study/over.py").write_text(text, "utf-8")
    assert find(package, "llm_study.over.f").code() == "def f(x=1):\n    return x"


def test_a_blank_line_in_a_string_and_a_form_feed_do_not_shift_the_lines(package):
    text = 'X = """a\x0c\u2028b"""\n\n\ndef f():\n    """Doc."""\n    return """\n\n    kept\n    """\n'
    (package / "llm_study/odd.py").write_text(text, "utf-8")
    assert find(package, "llm_study.odd.f").code() == 'def f():\n    return """\n\n    kept\n    """'


def test_the_page_shows_highlighted_code_under_a_link_to_the_api_page(book):
    built = build(book, f".. source:: {NAME}\n   :name: listing-attention", "See :numref:`listing-attention`.")
    text = built.read("index.html")
    assert built.warnings == ""
    assert shown(text) == [ATTENTION_CODE]
    assert '<span class="k">def</span>' in text
    caption = re.search(r'<div class="code-block-caption">(.*?)</div>', text, re.DOTALL)[1]
    assert f'href="api.html#{NAME}"' in caption
    assert f'<span class="pre">{NAME}</span>' in caption
    assert 'id="listing-attention"' in text
    assert re.search(
        r'<a class="reference internal" href="#listing-attention"><span class="std std-numref">\S+ 1</span>', text
    )


def test_a_listing_without_an_api_page_fails_a_nitpicky_build(book):
    built = build(book, "text", ".. source:: llm_study.functional.total")
    assert "index.rst:10: WARNING: py:obj reference target not found: llm_study.functional.total" in built.warnings


def test_emphasized_lines_count_from_the_first_line_of_the_listing(book):
    built = build(book, ".. source:: llm_study.functional.attention.Head.forward\n   :emphasize-lines: 2")
    assert re.search(r'<span class="hll">(?:(?!</pre>).)*return', built.read("index.html"), re.DOTALL)
    assert not re.search(r'<span class="hll">(?:(?!</pre>|return).)*forward', built.read("index.html"), re.DOTALL)


@pytest.mark.parametrize("lines", ["3", "0", "two"])
def test_lines_that_a_listing_lacks_cannot_be_emphasized(book, lines):
    built = build(book, f".. source:: llm_study.functional.attention.Head.forward\n   :emphasize-lines: {lines}")
    assert "index.rst:8: ERROR: source: emphasize-lines" in built.warnings


@pytest.mark.parametrize(
    ("name", "told", "nearest"),
    [
        (
            "llm_study.functional.attention.atention",
            "llm_study/functional/attention.py defines no function or class atention",
            NAME,
        ),
        (
            "llm_study.functional.atention.attention",
            "llm_study/functional/__init__.py defines no function or class atention.att",
            NAME,
        ),
        ("functional.attention.attention", "functional.attention.attention is not in the package", NAME),
        (
            "llm_study.functional.attention",
            "llm_study/functional/attention.py defines no function or class llm_study",
            f"{NAME.rpartition('.')[0]}.Head",
        ),
    ],
)
def test_a_wrong_name_is_told_the_nearest_public_one(book, name, told, nearest):
    built = build(book, "text", f".. source:: {name}")
    assert f"index.rst:10: ERROR: source: {told}" in built.warnings
    assert f"the nearest public name is {nearest} " in built.warnings


def test_private_names_are_not_proposed(package):
    with pytest.raises(LookupError) as error:
        find(package, "llm_study.functional.attention.Head._hiden")
    assert "the nearest public name is llm_study.functional.attention.Head" in str(error.value)
    assert "_hidden" not in str(error.value)


def test_a_file_that_python_cannot_read_is_named_with_its_line(book):
    files = {
        **PACKAGE,
        "../llm_study/broken.py": "x = 1\ndef f(:\n",
        "index.rst": page(".. source:: llm_study.broken.f"),
    }
    built = book(files, extensions=["source_listing"])
    assert re.search(r"index\.rst:8: ERROR: source: \S*broken\.py:2: invalid syntax; mend the file", built.warnings)


def test_the_page_follows_a_change_of_the_file(book, package):
    build(book, f".. source:: {NAME}")
    (package / "llm_study/functional/attention.py").write_text(ATTENTION.replace("q = {q}", "query = {q}"), "utf-8")
    index = package / "docs/index.rst"
    before = index.stat().st_mtime_ns
    built = book({}, extensions=["source_listing"], numfig=True)
    assert index.stat().st_mtime_ns == before
    assert "query = {q}" in shown(built.read("index.html"))[0]


def test_nothing_of_a_listing_is_offered_to_translators(book):
    built = build(
        book,
        "An ordinary paragraph.",
        f".. source:: {NAME}",
        ".. code-block:: python\n\n   other = 1",
        builder="gettext",
    )
    catalog = built.read("index.pot")
    assert 'msgid "An ordinary paragraph."' in catalog
    assert "other = 1" in catalog
    assert "attention" not in catalog
    assert "return" not in catalog


def test_a_catalog_cannot_change_a_listing(book):
    entries = {ATTENTION_CODE: "import os", f":py:obj:`{NAME}`": ":py:obj:`llm_study.functional.attention.Head`"}
    built = build(book, f".. source:: {NAME}", catalogs={"index": entries}, language="en")
    assert built.warnings == ""
    assert shown(built.read("index.html")) == [ATTENTION_CODE]
    assert f'<span class="pre">{NAME}</span>' in built.read("index.html")


def test_listings_inside_lists_and_admonitions_keep_their_indentation(book):
    listing = textwrap.indent(".. source:: llm_study.functional.attention.Head.forward", "     ")
    built = build(book, f"* item\n\n  .. note::\n\n{listing}")
    assert shown(built.read("index.html")) == ["def forward(self, x: int) -> int:\n    return x + self.width"]
