"""Show one language in a browser while its chapters or catalogs are edited: ``python docs/_tools/live.py en``.

Passages without a translation are marked. Warnings are shown and stop nothing: a text in the making is full of them.
More options of sphinx-autobuild may follow the language, such as ``--port 8001`` or ``--open-browser``.
"""

import os
import sys

from sphinx_build import ROOT, code

WATCHED = ("locale", "llm_study", "tests/parity")
"""What pages are made from beside ``docs``."""

WRITTEN = r"\.(mo|pyc)$|/(_generated|node_modules|__pycache__)(/|$)|/[^/]*~$|/\.[^/]*$"
"""What the build itself writes, or an editor: it must not start the next build."""


def arguments(path: str, *options: str) -> list[str]:
    """Return the arguments of sphinx-autobuild for the language whose folder on the site is ``path``."""
    watched = [option for folder in WATCHED if (ROOT / folder).exists() for option in ("--watch", folder)]
    return [
        *watched, "--re-ignore", WRITTEN,
        "-b", "html", "-n", "-q", "-j", "auto", "-d", f"build/doctrees/live-{path}",
        "-D", f"language={code(path)}", "-D", "translation_progress_classes=untranslated",
        *options, "docs", f"build/live/{path}",
    ]  # fmt: skip


def main(path: str = "zh", *options: str) -> None:
    """Serve until the author presses Ctrl-C."""
    from sphinx_autobuild.__main__ import main as serve

    os.chdir(ROOT)
    serve(arguments(path, *options))  # in this process: nothing is left behind when it is stopped


if __name__ == "__main__":
    main(*sys.argv[1:])
