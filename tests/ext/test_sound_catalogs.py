"""A catalog that cannot be read whole stops the build."""

import re

import pytest

HEADER = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
GOOD = HEADER + 'msgid "书"\nmsgstr "Book"\n'


def test_a_sound_catalog_is_used(book):
    built = book({"index.rst": "书\n==\n"}, {"index": GOOD}, language="en", extensions=["sound_catalogs"])
    assert "index.po" not in built.warnings
    assert "<h1>Book" in built.read("index.html")


@pytest.mark.parametrize(
    ("catalog", "told"),
    [
        (GOOD.replace('"Book"', '"Book'), r"index\.po:5: WARNING: .*quotation mark"),
        (GOOD + 'msgid "页"\n', r"index\.po:6: WARNING: .*end of the file"),
        ("\ufeff" + GOOD, r"index\.po:1: WARNING: .*byte order mark"),
        (GOOD.replace("\n", "\r\n"), r"index\.po:1: WARNING: .*carriage return"),
    ],
)
def test_a_broken_one_is_named_with_its_line(book, catalog, told):
    built = book({"index.rst": "书\n==\n"}, {"index": catalog}, language="en", extensions=["sound_catalogs"])
    assert re.search(told, built.warnings)
