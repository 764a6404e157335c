"""A link to the form for issues stands only where the address of the repository is known."""

import pytest
from addresses import VARIABLES

from .conftest import Book

FILES = {"index.rst": "书\n==\n\n有错？:issue:`提交 issue <docs/a.rst>`，或者写信。\n"}
OPTIONS = {"extensions": ["issue_link"]}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("addresses._git", lambda *command: "")


def test_no_address_is_made_up(book: Book) -> None:
    page = book(FILES, **OPTIONS).read("index.html")
    assert "有错？<span>提交 issue</span>，或者写信。" in page


def test_the_link_leads_to_the_form_of_the_repository(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "ann/book")
    english = "Please :issue:`open an issue <docs/a.rst>` or write."
    catalogs = {"index": {"有错？:issue:`提交 issue <docs/a.rst>`，或者写信。": english}}
    built = book(FILES, catalogs, language="en", **OPTIONS)
    link = 'href="https://github.com/ann/book/issues/new?title=docs/a.rst%3A%20"'
    assert built.warnings == ""
    assert f'Please <a class="reference external" {link}>open an issue</a> or write.' in built.read("index.html")
