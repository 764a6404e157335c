"""Catalogs on disk: any text survives, and the tools of others keep the canonical form."""

import io
import tempfile
from pathlib import Path

import polib
from babel.messages.pofile import read_po, write_po
from catalogs.merging import merge
from catalogs.storage import Catalog, read
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=40)


def catalog(pairs) -> Catalog:
    entries = [polib.POEntry(msgid=msgid, msgstr=msgstr) for msgid, msgstr in pairs.items()]
    return Catalog(Path("a.po"), "en", "a", entries=entries)


def reread(text: str) -> Catalog:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.po")
        path.write_text(text, "utf-8", newline="")
        return read(path, "en", "a")


@given(st.dictionaries(TEXT, TEXT, max_size=5))
def test_any_text_survives(pairs):
    text = catalog(pairs).dump()
    again = reread(text)
    assert {entry.msgid: entry.msgstr for entry in again.entries} == pairs
    assert again.dump() == text


@given(st.lists(TEXT, unique=True, max_size=6), st.dictionaries(TEXT, TEXT, max_size=6))
def test_a_merge_loses_no_message_and_no_translation_of_an_unchanged_one(wanted, old):
    known = catalog(old).active
    entries, changes = merge([polib.POEntry(msgid=text) for text in wanted], known, {})
    assert [entry.msgid for entry in entries] == wanted
    assert all(entry.msgstr == old[entry.msgid] and not entry.fuzzy for entry in entries if entry.msgid in old)
    assert all(entry.fuzzy for entry in entries if entry.msgstr and entry.msgid not in old)
    assert len(changes.new) + len(changes.fuzzy) + len(set(wanted) & set(old)) == len(wanted)
    assert len(changes.gone) + len(changes.fuzzy) == len(set(old) - set(wanted))


WORDS = {"甲": "A", '引号 " 与 \\ 反斜杠': 'quote " and \\', "两\n行\n": "two\nlines\n", "长" * 200: "long " * 60}


def test_polib_keeps_the_form(tmp_path):
    path = tmp_path / "a.po"
    path.write_text(catalog(WORDS).dump(), "utf-8")
    before = path.read_bytes()
    polib.pofile(str(path), wrapwidth=0).save(newline="\n")
    assert path.read_bytes() == before


def test_babel_keeps_the_form_of_every_entry():
    text, out = catalog(WORDS).dump(), io.BytesIO()
    write_po(out, read_po(io.BytesIO(text.encode())), width=0, omit_header=True)
    assert out.getvalue().decode().strip() == text.partition("\n\n")[2].strip()
