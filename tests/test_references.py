"""Every entry of the bibliography can be found by its readers, and is used or at least well formed."""

import re
from pathlib import Path

import pytest
from pybtex.database import Entry, parse_file

DOCS = Path(__file__).parents[1] / "docs"
ENTRIES = parse_file(str(DOCS / "references.bib")).entries
ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}")


def identifiers(entry: Entry) -> list[str]:
    """Return what is wrong with the identifiers of an entry."""
    fields = entry.fields
    wrong = []
    if not {"doi", "eprint", "url"} & set(fields):
        wrong.append("no doi, eprint or url")
    if "doi" in fields and not re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"]):
        wrong.append(f"doi {fields['doi']!r}")
    if "eprint" in fields and not ARXIV.fullmatch(fields["eprint"]):
        wrong.append(f"eprint {fields['eprint']!r}")
    if (
        "eprint" in fields
        and fields.get("url", "").startswith("https://arxiv.org")
        and fields["eprint"] not in fields["url"]
    ):
        wrong.append("url and eprint of different papers")
    return wrong


@pytest.mark.parametrize("key", sorted(ENTRIES))
def test_entry_is_complete_and_resolvable(key):
    entry = ENTRIES[key]
    assert identifiers(entry) == []
    assert {"title", "year"} <= set(entry.fields)
    names = entry.persons["author"]
    assert names
    assert re.fullmatch(r"[a-z]+\d{4}[a-z0-9]+", key), "firstauthor + year + topic"
    assert entry.fields["year"] in key


def test_the_check_refuses_entries_that_nobody_can_find():
    assert identifiers(Entry("misc", {"title": "x"})) == ["no doi, eprint or url"]
    assert identifiers(Entry("misc", {"doi": "see website"})) == ["doi 'see website'"]
    assert identifiers(Entry("misc", {"eprint": "1706.037"})) == ["eprint '1706.037'"]
    mixed = {"eprint": "1706.03762", "url": "https://arxiv.org/abs/1409.0473"}
    assert identifiers(Entry("misc", mixed)) == ["url and eprint of different papers"]


def test_every_citation_names_an_entry():
    cited = set()
    for page in DOCS.rglob("*.rst"):
        if "node_modules" not in page.parts:
            for keys in re.findall(r":cite(?::\w+)?:`([^`]+)`", page.read_text("utf-8")):
                cited |= {key.strip() for key in keys.split(",")}
    assert cited
    assert cited <= set(ENTRIES)
