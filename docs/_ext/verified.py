"""Equations verified by code: ``:verifies: eq-page-name`` on a doctest.

The page shows a ✓ beside the number of the equation that leads to the check, and the check leads back. An equation
with a label that nothing verifies is an error, unless ``verify_exempt`` in ``conf.py`` gives a reason; so is a check of
an equation that does not exist.
"""

import html
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from guarded_doctest import DIRECTIVES, Faithful
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains import Domain
from sphinx.environment import BuildEnvironment
from sphinx.locale import _
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)


class Check(NamedTuple):
    """A doctest that verifies an equation."""

    docname: str
    anchor: str
    location: str


class Verification(Domain):
    """Which equation stands where, and what verifies it; a domain, so that purging and merging come with it."""

    name = "verify"
    label = "verified equations"
    data_version = 2
    initial_data: ClassVar[dict[str, Any]] = {
        "checks": {},  # label → checks
        "lines": {},  # label → (docname, line)
        "drawn": {},  # docname → marks at the time when the page was last written
    }

    @property
    def checks(self) -> dict[str, list[Check]]:
        """The checks of each equation, by its label."""
        return self.data["checks"]

    @property
    def lines(self) -> dict[str, tuple[str, int]]:
        """Page and line of each labelled equation."""
        return self.data["lines"]

    def note(self, labels: Sequence[str], location: str) -> str:
        """Remember a check of these equations and return its anchor, the same in every language."""
        docname = self.env.current_document.docname
        mine = {check.anchor for checks in self.checks.values() for check in checks if check.docname == docname}
        base = nodes.make_id(f"check-{labels[0]}")
        anchor = next(name for n in range(1, len(mine) + 2) if (name := base if n == 1 else f"{base}-{n}") not in mine)
        for label in labels:
            self.checks.setdefault(label, []).append(Check(docname, anchor, location))
        return anchor

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        """Remember the lines of the equations of a page, for messages."""
        for node in document.findall(nodes.math_block):
            if node.get("label"):
                self.lines[node["label"]] = (docname, node.line or 0)

    def clear_doc(self, docname: str) -> None:
        """Forget a page that is read again or removed."""
        for label, checks in list(self.checks.items()):
            checks[:] = [check for check in checks if check.docname != docname]
            if not checks:
                del self.checks[label]
        for label, (page, _line) in list(self.lines.items()):
            if page == docname:
                del self.lines[label]

    def merge_domaindata(self, docnames: Any, otherdata: dict[str, Any]) -> None:
        """Take over what another process read."""
        for label, checks in otherdata["checks"].items():
            mine = self.checks.setdefault(label, [])
            mine += [check for check in checks if check.docname in docnames and check not in mine]
            if not mine:
                del self.checks[label]
        self.lines.update({label: line for label, line in otherdata["lines"].items() if line[0] in docnames})

    def marks(self, docname: str) -> object:
        """Return all that other pages contribute to the marks of this one; a page is written again if it changes."""
        equations = self.env.get_domain("math").equations
        checked = sorted((label, sorted(checks)) for label, checks in self.checks.items())
        here, numbers = [], []
        for label, checks in checked:
            page = self.lines.get(label, ("", 0))[0]
            if page == docname:
                here.append((label, [check[:2] for check in checks]))
            if page and any(check.docname == docname for check in checks):
                in_chapters = self.env.toc_fignumbers.get(page, {}).get("displaymath", {})
                numbers.append((label, equations.get(label), sorted(in_chapters.items())))
        return here, numbers


def redraw(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Return the pages whose marks changed because another page changed."""
    domain: Verification = env.get_domain("verify")
    drawn, outdated = domain.data["drawn"], []
    for docname in sorted(env.all_docs):
        if drawn.get(docname, ([], [])) != (now := domain.marks(docname)):
            drawn[docname] = now
            outdated.append(docname)
    for gone in drawn.keys() - env.all_docs:
        del drawn[gone]
    return outdated


def problems(domain: Verification, exempt: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Yield kind, message and place of all that is wrong with labels, checks and exemptions."""
    for label, (docname, line) in sorted(domain.lines.items()):
        if label not in domain.checks and label not in exempt:
            text = f"expected a doctest that verifies equation {label!r}, found none; write ':verifies: {label}' on one"
            yield "missing", text, (docname, line)
    for label, checks in sorted(domain.checks.items()):
        if label not in domain.lines:
            for check in checks:
                text = f"expected the label of an equation in ':verifies:', found {label!r}; correct it"
                yield "unknown", text, check.location
    for label, reason in sorted(exempt.items()):
        state = "verified" if label in domain.checks else "" if label in domain.lines else "unknown"
        if state or not reason.strip():
            text = f"verify_exempt: equation {label!r} is {state or 'exempt without a reason'}; remove it or say why"
            yield "exempt", text, None


def check_consistency(app: Sphinx, env: BuildEnvironment) -> None:
    """Report every problem as a warning, that is, as an error of the build."""
    domain: Verification = env.get_domain("verify")
    for kind, text, place in problems(domain, app.config.verify_exempt):
        logger.warning(text, location=place, type="verify", subtype=kind)


class Verifying(Faithful):
    """A doctest directive with ``:verifies:``, a comma-separated list of labels of equations."""

    def run(self) -> list[nodes.Node]:
        """Return the block, and below it a line with links to the equations it verifies."""
        [node] = super().run()
        labels = [label.strip() for label in self.options.get("verifies", "").split(",") if label.strip()]
        if not labels:
            return [node]
        if isinstance(node, nodes.comment):
            raise self.error("expected a visible block under ':verifies:', found ':hide:'; readers must see the check")
        domain: Verification = self.env.get_domain("verify")
        node["ids"].append(domain.note(labels, self.get_location()))
        self.state.document.note_explicit_target(node)
        return [node, self.back_links(labels)]

    def back_links(self, labels: Sequence[str]) -> nodes.paragraph:
        """Return ``Verifies (1.1), (1.2)``, the numbers being links."""
        line = nodes.paragraph("", "", nodes.Text(_("Verifies")), classes=["verifies"], translatable=False)
        self.set_source_info(line)
        for i, label in enumerate(labels):
            line += nodes.Text(", " if i else " ")
            number = addnodes.pending_xref("", nodes.literal("", label), refexplicit=False, refwarn=False)
            here = self.env.current_document.docname
            number.attributes |= {"refdomain": "math", "reftype": "eq", "reftarget": label, "refdoc": here}
            line += number
        return line


class Marks(SphinxPostTransform):
    """Puts the ✓ beside the equation: both stand in one box, which the style sheet lays out as a row."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Wrap every verified equation of the page."""
        domain: Verification = self.env.get_domain("verify")
        for equation in list(self.document.findall(nodes.math_block)):
            checks = sorted(domain.checks.get(equation.get("label"), ()))
            if checks:
                links = "".join(self.link(check, i) for i, check in enumerate(checks, 1))
                box = nodes.container(classes=["verified"])
                equation.parent[equation.parent.index(equation)] = box  # replace_self would copy the id of the equation
                box += [equation, nodes.paragraph("", "", nodes.raw("", links, format="html"), classes=["verified-by"])]

    def link(self, check: Check, number: int) -> str:
        """Return the link to a check; raw, because docutils knows no ``aria-label``."""
        here = self.env.current_document.docname
        page = "" if check.docname == here else self.env._app.builder.get_relative_uri(here, check.docname)
        name = html.escape(_("verified by runnable code")) + (f" ({number})" if number > 1 else "")
        return f'<a class="reference internal" href="{page}#{check.anchor}" title="{name}" aria-label="{name}">✓</a>'


def with_verifies(base: type) -> type:
    """Return a doctest directive that also takes ``:verifies:``."""
    options = {**base.option_spec, "verifies": directives.unchanged_required}
    return type(base.__name__, (Verifying, base), {"option_spec": options})


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the domain, the directives that readers see, the marks and the checks."""
    app.setup_extension("guarded_doctest")
    for name in ("doctest", "testcode", "testoutput"):
        app.add_directive(name, with_verifies(DIRECTIVES[name]), override=True)
    app.add_domain(Verification)
    app.add_post_transform(Marks)
    app.add_config_value("verify_exempt", {}, "env", frozenset({dict}), "equations without a check: label → reason")
    app.add_css_file("verified.css")
    app.connect("env-get-updated", redraw, priority=900)  # after Sphinx has numbered the equations
    app.connect("env-check-consistency", check_consistency)
    return {"version": "1", "env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
