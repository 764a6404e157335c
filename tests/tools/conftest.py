"""A book of two chapters, a figure and a theme string, in a temporary folder."""

from pathlib import Path

import po
import polib
import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "docs/conf.py": f"""\
import sys
sys.path.insert(0, {str(ROOT / "docs/_ext")!r})
extensions = ["site_i18n", "verified"]
language = "zh_CN"
gettext_compact = False
gettext_additional_targets = {{"index", "literal-block", "doctest-block"}}
templates_path = ["_templates"]
exclude_patterns = ["figures"]
""",
    "docs/languages.toml": (ROOT / "docs/languages.toml").read_text("utf-8"),
    "docs/index.rst": "书\n====\n\n.. toctree::\n\n   general/a\n   general/b\n   api/m\n",
    "docs/general/a.rst": """\
甲
====

第一段，说明注意力的由来。

第二段，说明注意力的用途。

.. doctest::

   >>> 1 + 1  # 一加一
   2
""",
    "docs/general/b.rst": "乙\n====\n\n另一章的第一段话。\n\nEnglish only.\n",
    "docs/api/m.rst": "m\n==\n\nWhat the module does.\n\n``code``\n",
    "docs/figures/f.py": '"""Figures."""\n\n\ndef f(plt, _):\n    return _("横轴") + _("x")\n',
    "docs/_templates/t.html": '{{ _("Toggle colors") }}\n',
}
ENGLISH = {
    "书": "Book",
    "甲": "A",
    "乙": "B",
    "第一段，说明注意力的由来。": "First.",
    "第二段，说明注意力的用途。": "Second.",
    ">>> 1 + 1  # 一加一\n2": ">>> 1 + 1  # one and one\n2",
    "另一章的第一段话。": "Another.",
    "横轴": "x axis",
}


class SmallBook:
    """The book, and what a translator does with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text("utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def po(self, *arguments: str) -> int:
        return po.main(["--root", str(self.root), *arguments])

    def catalog(self, domain: str, language: str = "en") -> Path:
        return self.root / "locale" / language / "LC_MESSAGES" / f"{domain}.po"

    def extracts(self, monkeypatch: pytest.MonkeyPatch, pages: dict[str, list[str]]) -> None:
        """From now on ``po.py`` finds these messages for every language, without a run of Sphinx."""
        found = {domain: [polib.POEntry(msgid=text) for text in texts] for domain, texts in pages.items()}
        monkeypatch.setattr(po, "templates", lambda project, targets, fresh: dict.fromkeys(targets, found))

    def translate(self) -> None:
        """Complete every catalog."""
        for path in (self.root / "locale").rglob("*.po"):
            catalog = polib.pofile(str(path), wrapwidth=0)
            for entry in catalog:
                entry.msgstr = entry.msgstr or ENGLISH.get(entry.msgid, "译文" + " %s" * entry.msgid.count("%s"))
            catalog.save(newline="\n")

    def catalogs(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.root / "locale").as_posix(): path.read_bytes()
            for path in sorted((self.root / "locale").rglob("*.*"))
        }


@pytest.fixture
def book(tmp_path: Path) -> SmallBook:
    """Return the book without catalogs."""
    return SmallBook(tmp_path)
