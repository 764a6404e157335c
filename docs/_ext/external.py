"""Links to the documentation of torch and Python from a small table, ``docs/inventory.txt``, without a network.

A name that the table lacks stays unresolved, so a misspelled one still fails the nitpicky build.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

TABLE = "inventory.txt"
KINDS = ("class", "data", "exception", "function", "method", "module")
"""Object types of Sphinx's Python domain that a line may name."""


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    kind: str
    address: str


def parse(text: str, name: str = TABLE) -> dict[str, Entry]:
    """Read the table; its format is explained at its top.

    Raises:
        ExtensionError: with every line that is malformed or repeats a name.
    """
    entries: dict[str, Entry] = {}
    first: dict[str, int] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if fault := _fault(fields, first):
            faults.append(f"{name}:{number}: {fault}")
            continue
        target, kind, address = fields
        first[target] = number
        entries[target] = Entry(kind, address.removesuffix("$") + target if address.endswith("$") else address)
    if faults:
        raise ExtensionError("the table of links to other projects has faults; mend these lines:\n" + "\n".join(faults))
    return entries


def _fault(fields: list[str], first: dict[str, int]) -> str:
    """Say what is wrong with one line, or nothing."""
    if len(fields) != 3:
        return f"expected «name kind address», found {len(fields)} fields: {' '.join(fields)!r}"
    name, kind, address = fields
    if kind not in KINDS:
        return f"the kind of {name} is {kind!r}, expected one of {', '.join(KINDS)}"
    if not address.startswith("https://"):
        return f"the address of {name} is {address!r}, expected one that begins with https://"
    if name in first:
        return f"{name} stands in line {first[name]} already; remove one of the two"
    return ""


class Links:
    """The table as one build read it, and the handler that looks names up in it."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def read(self, app: Sphinx, config: Config) -> None:
        """Read the table; its text becomes a configuration value, so a changed table renews the pages."""
        text = Path(app.srcdir, TABLE).read_text("utf-8")
        self.entries = parse(text)
        config["external_table"] = text

    def resolve(
        self, app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
    ) -> nodes.reference | None:
        """Return the link for a name of the Python domain that none of our pages documents."""
        entry = self.entries.get(node.get("reftarget", ""))
        if node.get("refdomain") != "py" or entry is None or not _fits(env, node["reftype"], entry.kind):
            return None
        link: dict[str, Any] = {"internal": False, "refuri": entry.address, "reftitle": node["reftarget"]}
        return nodes.reference("", "", content, **link)


def _fits(env: BuildEnvironment, role: str, kind: str) -> bool:
    """Tell whether a role may point to a kind of object, by the rules of Sphinx's Python domain."""
    return kind in (env.domains.python_domain.objtypes_for_role(role) or ())


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect the table."""
    links = Links()
    app.add_config_value("external_table", "", "env", types=frozenset({str}))
    app.connect("config-inited", links.read)
    app.connect("missing-reference", links.resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
