"""The guides for translators and authors say what the tools really do."""

import re
import tomllib
from pathlib import Path

import pytest
from languages import load

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs/contributing"
TOOLS = [*sorted((ROOT / "docs/_tools").glob("*.py")), *sorted((ROOT / "docs/_tools/catalogs").glob("*.py"))]


def rows(page: str) -> list[str]:
    """Return the codes in the first column of the tables of a page."""
    return re.findall(r"^   \* - ``((?:po|rst)-\w+)``$", (GUIDES / f"{page}.rst").read_text("utf-8"), re.M)


def commands() -> list[str]:
    """Return the sessions that the guides tell people to run."""
    lines = [line for page in GUIDES.glob("*.rst") for line in page.read_text("utf-8").splitlines()]
    return re.findall(r'nox -s ((?:"[^"]+" ?|[\w-]+ ?)+)', "\n".join(line.partition(" -- ")[0] for line in lines))


@pytest.mark.parametrize(("page", "prefix"), [("translating", "po"), ("writing", "rst")])
def test_every_code_has_its_row(page: str, prefix: str) -> None:
    known = {code for path in TOOLS for code in re.findall(rf'"({prefix}-[a-z]+)"', path.read_text("utf-8"))}
    assert len(known) > 5
    assert sorted(rows(page)) == sorted(known), f"complete the table of codes in docs/contributing/{page}.rst"


def test_every_session_exists() -> None:
    source = (ROOT / "noxfile.py").read_text("utf-8")
    functions = re.findall(r"^@nox\.session(?:\((?:name=\"([\w-]+)\")?.*?\))?\n(?:@.*\n)*def (\w+)", source, re.M)
    known = {name or function for name, function in functions}
    told = {name for command in commands() for name in re.findall(r'"[^"]+"|[\w-]+', command)}
    assert {"po-update", "docs-live", "po-lint", "po-stat", "mutants", '"doctest(zh)"'} <= told
    paths = {row.path for row in load(ROOT / "docs/languages.toml").values()}
    for name in told:
        found = re.fullmatch(r'"?([\w-]+)(?:\((\w+)\))?"?', name)
        assert found is not None
        assert found[1] in known, name
        assert (found[2] or "zh") in paths, name


def test_the_row_of_a_new_language_has_the_keys_of_the_table(tmp_path: Path) -> None:
    [block] = re.findall(r"^   \[\[language\]\]\n(?:   .*\n)+", (GUIDES / "translating.rst").read_text("utf-8"), re.M)
    table = tmp_path / "languages.toml"
    table.write_text((ROOT / "docs/languages.toml").read_text("utf-8") + "\n" + block, "utf-8")
    assert [*load(table)][-1] == tomllib.loads(block)["language"][0]["code"] == "ja"


def test_files_that_are_named_exist() -> None:
    for page in GUIDES.glob("*.rst"):
        names = re.findall(
            r"``((?:docs|locale|tests|llm_study)/[\w/.-]+|README\.md|CHANGELOG\.md|\.ci/run)``", page.read_text("utf-8")
        )
        for name in names:
            assert (ROOT / name).exists(), f"{page.name}: {name}"
