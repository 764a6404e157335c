"""Catalogs of translations: refresh, check and count them.

Run ``nox -s po-update``, ``po-lint`` or ``po-stat``; each calls one of the commands of this file.
"""

import argparse
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "_ext"))

from catalogs.counts import Counts, count
from catalogs.extraction import ExtractionError, Project, Templates, templates
from catalogs.finding import Finding, excerpt
from catalogs.merging import Changes, merge
from catalogs.rules import RULES, Page
from catalogs.storage import BrokenCatalogError, Catalog, catalogs, read, remove, write
from catalogs.tables import TableError, Waiver, load


def update(project: Project, targets: list[str]) -> int:
    """Bring the catalogs of each target up to date with the sources, and print what is new, fuzzy or gone."""
    wanted = templates(project, targets, fresh=True)
    plans = {
        target: plan(project, target, wanted[target]) for target in targets
    }  # nothing is written before all is known
    for target, (merged, changes) in plans.items():
        for domain, path in catalogs(project.locale, target).items():
            if domain not in merged:
                remove(path, project.locale / target)
        for catalog in merged.values():
            write(catalog.path, catalog.dump())
        print("\n".join(report(target, changes)) or f"{target}: up to date, {len(merged)} catalogs")
    return 0


def plan(project: Project, target: str, wanted: Templates) -> tuple[dict[str, Catalog], dict[str, Changes]]:
    """Return the new catalogs of one language and what changes in each."""
    old = {domain: read(path, target, domain).active for domain, path in catalogs(project.locale, target).items()}
    messages = {domain: {entry.msgid for entry in entries} for domain, entries in wanted.items()}
    left = {
        msgid: entry
        for domain, entries in old.items()
        for msgid, entry in entries.items()
        if msgid not in messages.get(domain, ()) and entry.msgstr and not entry.fuzzy
    }
    merged, changes = (
        {},
        {domain: Changes(gone=list(entries)) for domain, entries in old.items() if domain not in wanted},
    )
    for domain, entries in wanted.items():
        result, changes[domain] = merge(entries, old.get(domain, {}), left)
        path = project.locale / target / "LC_MESSAGES" / f"{domain}.po"
        merged[domain] = Catalog(path, target, domain, entries=result)
    return merged, changes


def report(target: str, changes: dict[str, Changes]) -> list[str]:
    """Return lines that tell a translator what to do, page by page."""
    lines = []
    for domain, change in sorted(changes.items()):
        if change:
            lines.append(
                f"{target}/{domain}: {len(change.new)} new, {len(change.fuzzy)} fuzzy, {len(change.gone)} gone"
            )
            for name in ("new", "fuzzy", "gone"):
                lines += [f"  {name:5} {excerpt(message)}" for message in getattr(change, name)]
    return lines


def lint(project: Project, targets: list[str]) -> int:
    """Print what is wrong with the catalogs of each target; 1 if anything is."""
    findings = check(project, targets)
    for finding in findings:
        print(finding)
    print(
        f"{len(findings)} findings in the catalogs of {', '.join(targets)}"
        if findings
        else "catalogs: nothing to mend",
        file=sys.stderr,
    )
    return 1 if findings else 0


def check(project: Project, targets: list[str]) -> list[Finding]:
    """Return the findings of every rule, in the order of files and lines."""
    tables, used, languages = load(project.locale), set(), project.languages()
    wanted, findings = templates(project, targets, fresh=False), []
    for target in targets:
        complete = target not in languages or languages[target].complete
        paths = catalogs(project.locale, target)
        for domain in sorted(wanted[target].keys() | paths.keys()):
            path = project.locale / target / "LC_MESSAGES" / f"{domain}.po"
            try:
                catalog = read(path, target, domain) if domain in paths else Catalog(path, target, domain)
            except BrokenCatalogError as error:
                findings.append(Finding(path, error.line, "po-parse", "a catalog in UTF-8", error.found, error.mend))
                continue
            page = Page(catalog, {entry.msgid: entry for entry in wanted[target].get(domain, [])}, complete, tables)
            left, needed = judge(page)
            findings, used = findings + left, used | needed
    findings += tables.idle(used, targets)
    return sorted(relative(finding, project.root) for finding in findings)


def judge(page: Page) -> tuple[list[Finding], set[Waiver]]:
    """Return the findings of every rule on one catalog that nothing waives, and the waivers that were needed."""
    messages = {entry.linenum: entry.msgid for entry in page.catalog.entries}
    return page.tables.judge(page.name, [finding for rule in RULES for finding in rule(page)], messages)


def relative(finding: Finding, root: Path) -> Finding:
    """Return a finding with the path as a person at the root of the repository writes it."""
    return replace(finding, path=finding.path.relative_to(root)) if finding.path.is_relative_to(root) else finding


def stat(project: Project, targets: list[str]) -> int:
    """Print how much of each page is translated, and write the same to ``build/po-stat.json``."""
    wanted = templates(project, targets, fresh=False)
    counts = {target: count_pages(project, target, wanted[target]) for target in targets}
    for target, pages in counts.items():
        whole = functools.reduce(Counts.plus, pages.values(), Counts())
        width = max(map(len, ["total", *pages]))
        print(f"{target}\n  {'page':{width}} {'messages':>9} {'translated':>11} {'fuzzy':>6} {'empty':>6}")
        for domain, page in [*sorted(pages.items()), ("total", whole)]:
            print(f"  {domain:{width}} {page.messages:9} {page.translated:11} {page.fuzzy:6} {page.empty:6}")
    shown = {target: {domain: page._asdict() for domain, page in pages.items()} for target, pages in counts.items()}
    write(project.build / "po-stat.json", json.dumps(shown, indent=1, sort_keys=True) + "\n")
    return 0


def count_pages(project: Project, target: str, wanted: Templates) -> dict[str, Counts]:
    """Count the messages that each page has now by their state; one that the catalog lacks is empty."""
    paths = catalogs(project.locale, target)
    known = {domain: read(path, target, domain).active for domain, path in paths.items() if domain in wanted}
    return {d: count([entry.msgid for entry in entries], known.get(d, {})) for d, entries in wanted.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="root of the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("update", "refresh the catalogs"),
        ("lint", "check them"),
        ("stat", "count what is translated"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "languages", nargs="*", metavar="LANG", help="codes of languages; default: all of the table"
        )
    options = parser.parse_args(arguments)
    project = Project(options.root.resolve())
    targets = options.languages or list(project.languages())
    try:
        return {"update": update, "lint": lint, "stat": stat}[options.command](project, targets)
    except (BrokenCatalogError, ExtractionError, TableError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
