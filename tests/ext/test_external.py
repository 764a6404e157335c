"""The table of links to torch and Python: what it resolves, what it must not, and how its own faults are told."""

from pathlib import Path

import pytest
from external import KINDS, parse
from sphinx.errors import ExtensionError

DOCS = Path(__file__).parents[2] / "docs"
TABLE = """\
# a comment, then a blank line

torch.Tensor class https://example.org/tensors.html#$
torch.nn.modules.module.Module class https://example.org/Module.html#torch.nn.Module
torch.softmax function https://example.org/softmax.html
"""


def page(*roles):
    return "Title\n=====\n\n" + "\n\n".join(roles) + "\n"


def build(book, text, table=TABLE, **options):
    return book({"index.rst": text, "inventory.txt": table}, extensions=["external"], **options)


def test_a_dollar_stands_for_the_name_and_a_full_address_is_kept():
    entries = parse(TABLE)
    assert entries["torch.Tensor"].address == "https://example.org/tensors.html#torch.Tensor"
    assert entries["torch.nn.modules.module.Module"].address == "https://example.org/Module.html#torch.nn.Module"
    assert len(entries) == 3


def test_roles_of_the_python_domain_lead_to_the_address(book):
    built = build(book, page(":py:class:`~torch.Tensor`", ":py:func:`torch.softmax`", ":py:obj:`torch.softmax`"))
    html = built.read("index.html")
    assert built.warnings == ""
    assert (
        'class="reference external" href="https://example.org/tensors.html#torch.Tensor" title="torch.Tensor"' in html
    )
    assert '<span class="pre">Tensor</span>' in html
    assert html.count('href="https://example.org/softmax.html"') == 2


def test_links_work_when_pages_are_read_and_written_by_workers(book):
    files = {f"p{n}.rst": page(":py:class:`torch.Tensor`") for n in range(6)}
    toc = "Title\n=====\n\n.. toctree::\n\n" + "".join(f"   p{n}\n" for n in range(6))
    built = book({"index.rst": toc, "inventory.txt": TABLE, **files}, extensions=["external"], parallel=2)
    assert built.warnings == ""
    assert all("https://example.org/tensors.html#torch.Tensor" in built.read(f"p{n}.html") for n in range(6))


@pytest.mark.parametrize("role", [":py:class:`torch.Tensr`", ":py:func:`torch.Tensor`", ":py:class:`torch.softmax`"])
def test_an_unknown_name_or_a_role_of_another_kind_still_warns(book, role):
    built = build(book, page("text", role))
    assert "index.rst:6: WARNING: py:" in built.warnings
    assert "reference target not found" in built.warnings
    assert "example.org" not in built.read("index.html")


def test_names_of_other_domains_are_left_alone(book):
    built = build(book, page(":any:`nothing`", ":c:func:`torch.softmax`"))
    assert built.warnings.count("WARNING") == 2
    assert "example.org" not in built.read("index.html")


def test_our_own_page_wins_over_the_table(book):
    text = page(":py:func:`torch.softmax`", ".. py:function:: torch.softmax(x)")
    assert 'href="#torch.softmax"' in build(book, text).read("index.html")


def test_a_changed_table_renews_pages_that_did_not_change(book):
    build(book, page(":py:class:`torch.Tensor`"))
    built = book({"inventory.txt": TABLE.replace("tensors.html", "moved.html")}, extensions=["external"])
    assert "https://example.org/moved.html#torch.Tensor" in built.read("index.html")
    built = book({"inventory.txt": ""}, extensions=["external"])
    assert "reference target not found: torch.Tensor" in built.warnings


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("torch.Size class", "expected «name kind address», found 2 fields: 'torch.Size class'"),
        ("torch.Size class https://example.org/ x", "found 4 fields"),
        (
            "torch.Size py:class https://example.org/",
            "the kind of torch.Size is 'py:class', expected one of class, data",
        ),
        ("torch.Size class http://example.org/", "expected one that begins with https://"),
        ("torch.Tensor class https://example.org/", "torch.Tensor stands in line 3 already"),
    ],
)
def test_a_faulty_line_stops_the_build_with_its_number(book, line, fault):
    with pytest.raises(ExtensionError) as error:
        build(book, page("text"), f"{TABLE}{line}\n")
    assert "inventory.txt:6: " in str(error.value)
    assert fault in str(error.value)


def test_every_faulty_line_is_told_at_once():
    with pytest.raises(ExtensionError) as error:
        parse("one\n\ntwo\n")
    assert "inventory.txt:1: " in str(error.value)
    assert "inventory.txt:3: " in str(error.value)


def test_the_table_of_the_book_has_what_signatures_of_modules_need():
    entries = parse((DOCS / "inventory.txt").read_text("utf-8"))
    assert {"torch.Tensor", "torch.nn.Module", "torch.nn.modules.module.Module", "typing.Literal", "int", "str"} <= set(
        entries
    )
    assert {entry.kind for entry in entries.values()} <= set(KINDS)
    assert all("docs.pytorch.org/docs/stable/" in e.address for name, e in entries.items() if name.startswith("torch"))
    assert all(
        e.address.startswith("https://docs.python.org/3/")
        for name, e in entries.items()
        if not name.startswith("torch")
    )
