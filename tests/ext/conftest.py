"""A book of a few pages, built in a temporary folder with the extensions of the real one."""

import gettext
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sphinx.application import Sphinx
from sphinx.locale import translators
from sphinx.util.docutils import docutils_namespace, patch_docutils

ANSI = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Built:
    """What one build left behind."""

    app: Sphinx
    out: Path
    warnings: str
    status: str

    def read(self, name: str) -> str:
        """Return the text of one output file, such as ``index.html`` or ``output.txt``."""
        return (self.out / name).read_text("utf-8")


Book = Callable[..., Built]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """Return ``build(files, catalogs={}, builder="html", language="zh_CN", **conf)``; call it again for a second build.

    ``files`` are written below ``docs/`` and ``catalogs`` (page → {source: translation}, or the text of a .po) below
    ``locale/<language>/LC_MESSAGES/``. The layout is the project's, so relative paths of extensions hold.
    """

    def build(
        files: Mapping[str, str],
        catalogs: Mapping[str, Mapping[str, str] | str] | None = None,
        *,
        builder: str = "html",
        language: str = "zh_CN",
        parallel: int = 1,
        **conf: Any,
    ) -> Built:
        gettext._translations.clear()  # and so does Python
        docs = tmp_path / "docs"
        for name, text in files.items():
            _write(docs / name, text)
        for page, entries in (catalogs or {}).items():
            _write(
                tmp_path / f"locale/{language}/LC_MESSAGES/{page}.po",
                entries if isinstance(entries, str) else po(entries),
            )
        out, status, warning = tmp_path / builder / language, io.StringIO(), io.StringIO()
        overrides = {
            "language": language, "locale_dirs": ["../locale"], "gettext_compact": False, "nitpicky": True,
            "gettext_additional_targets": ["index", "literal-block", "doctest-block", "image"],
            "root_doc": "index", **conf,
        }  # fmt: skip
        if {"sphinx.ext.doctest", "verified"} & set(
            conf.get("extensions", [])
        ):  # elsewhere the name is unknown, and warns
            overrides.setdefault("doctest_test_doctest_blocks", "")
        translators.clear()  # each build has a process of its own, elsewhere
        with patch_docutils(str(docs)), docutils_namespace():
            app = Sphinx(
                docs, None, out, tmp_path / f"doctrees/{builder}-{language}", builder, overrides,
                status=status, warning=warning, parallel=parallel,
            )  # fmt: skip
            app.build()
        return Built(app, out, ANSI.sub("", warning.getvalue()), status.getvalue())

    return build


def po(entries: Mapping[str, str]) -> str:
    """Return a catalog with these messages."""
    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
    return header + "".join(f"\nmsgid {_quoted(a)}\nmsgstr {_quoted(b)}\n" for a, b in entries.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:  # what did not change keeps its time
        path.write_text(text, "utf-8")
