"""New messages into old catalogs: translations of unchanged messages stay, those of changed ones become fuzzy."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polib

SIMILAR = 0.6
"""How alike, of 1, a gone message and a new one must be for the old translation to be offered."""


@dataclass
class Changes:
    """What happened to one catalog."""

    new: list[str] = field(default_factory=list)
    fuzzy: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.fuzzy or self.gone)


def merge(
    template: Iterable[polib.POEntry],
    old: Mapping[str, polib.POEntry],
    moved: Mapping[str, polib.POEntry],
) -> tuple[list[polib.POEntry], Changes]:
    """Return the entries of the new catalog, in the order of the page, and what changed.

    Args:
        template: the messages of the page.
        old: the entries of its catalog.
        moved: translated entries that left the catalogs of other pages (renamed pages, paragraphs moved elsewhere).
    """
    template = list(template)
    wanted = {entry.msgid for entry in template}
    gone = {msgid: entry for msgid, entry in old.items() if msgid not in wanted}
    changes, entries, offers = Changes(gone=list(gone)), [], {m: e for m, e in gone.items() if e.msgstr}
    for message in template:
        entry = polib.POEntry(msgid=message.msgid, comment=message.comment)
        if (known := old.get(message.msgid)) or (known := moved.get(message.msgid)):
            _take(entry, known)
        elif match := difflib.get_close_matches(message.msgid, offers, n=1, cutoff=SIMILAR):
            _offer(entry, offers.pop(match[0]))
            changes.fuzzy.append(message.msgid)
            changes.gone.remove(match[0])
        else:
            changes.new.append(message.msgid)
        entries.append(entry)
    return entries, changes


def _take(entry: polib.POEntry, known: polib.POEntry) -> None:
    """Copy a translation with what belongs to it."""
    entry.msgstr, entry.tcomment = known.msgstr, known.tcomment
    if known.fuzzy:
        entry.flags, entry.previous_msgid = ["fuzzy"], known.previous_msgid


def _offer(entry: polib.POEntry, former: polib.POEntry) -> None:
    """Offer the translation of a similar message, to be checked by a person."""
    entry.msgstr, entry.tcomment, entry.flags = former.msgstr, former.tcomment, ["fuzzy"]
    entry.previous_msgid = former.previous_msgid or former.msgid
