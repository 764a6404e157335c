"""What the project says about itself: metadata, pinned versions, README, waivers, and what no file may contain."""

import ast
import io
import json
import re
import subprocess
import tokenize
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llm_study

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")
HALVES = README.split("\n## English\n")
COMMANDS = """\
python -m pip install nox && python -m nox -s site     # both languages → build/site/index.html
python -m nox -s tests                                  # every test
"""

REGISTRIES = [
    "pypi" + ".org", "python" + "hosted.org", "npmjs" + ".", "npm" + "mirror", "yarn" + "pkg.com", "/pypi" + "/simple",
    "download." + "pytorch.org", "deb." + "debian.org", "archive." + "ubuntu.com", "conda." + "anaconda.org",
    "tuna." + "tsinghua", "mirrors." + "aliyun",
]  # fmt: skip
"""Whoever builds chooses where packages come from. Written in two parts, for this file is searched too."""
MACHINE = re.compile(r"(?<![\w.:/~-])/(?:home|root|Users|work)/(?!ann/)[\w.]|[A-Z]:\\\\?Users\\")
"""A path that exists on one machine only. Ann, of whom some tests speak, has none."""

WAIVERS = {
    "noqa": 2,  # short functions in tests
    "type: ignore": 0,
    "skip": 1,  # the tests that need Chromium, where there is none; CI has it
    "xfail": 0,
    "ignored warnings": 1,  # sphinx-autodoc-typehints warns of its own use of Sphinx
}
"""How many exceptions from the rules there are. The numbers only fall."""


def git(*arguments: str) -> str:
    """Return what git says of the repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@cache
def files() -> dict[str, str]:
    """Return the text files of the repository by name, also those that are not committed yet."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    raw = {name: (ROOT / name).read_bytes() for name in sorted(names) if name and (ROOT / name).is_file()}
    return {name: data.decode() for name, data in raw.items() if b"\0" not in data}


@cache
def sessions() -> frozenset[str]:
    """Return the sessions of noxfile.py, as ``-s`` takes them."""
    languages = tomllib.loads(files()["docs/languages.toml"])["language"]
    names: set[str] = set()
    for node in ast.parse(files()["noxfile.py"]).body:
        decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
        if session := [text for text in decorators if text.startswith("nox.session")]:
            given = re.search(r"\bname='([^']+)'", session[0])
            name = given[1] if given else node.name
            names |= {f"{name}({row['path']})" for row in languages} if "each_language" in decorators else {name}
    return frozenset(names)


def found(pattern: re.Pattern[str]) -> list[str]:
    """Return where a pattern occurs."""
    lines = ((name, number, line) for name, text in files().items() for number, line in enumerate(text.split("\n"), 1))
    return [f"{name}:{number}: {line.strip()[:80]}" for name, number, line in lines if pattern.search(line)]


def test_the_search_sees_the_whole_repository():
    assert {"README.md", "tests/test_project.py", "docs/conf.py", ".ci/run", ".github/workflows/ci.yml"} <= set(files())
    assert found(re.compile("^# What CI runs"))[0].startswith(".ci/run:2: ")
    assert not [name for name in files() if name.startswith(("build/", ".nox/", "docs/node_modules/"))]


def test_no_file_names_the_host_of_a_package_registry():
    assert found(re.compile("|".join(map(re.escape, REGISTRIES)), re.IGNORECASE)) == []


def test_no_file_names_a_path_of_one_machine():
    assert MACHINE.search("see /" + "work/x")
    assert MACHINE.search('"/' + 'home/me"')
    assert not MACHINE.search("https://example.org/home/x")
    assert found(MACHINE) == []


def test_the_lock_of_npm_names_no_host():
    lock = json.loads(files()["docs/package-lock.json"])
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert "node_modules/katex" in packages
    assert all("integrity" in entry for entry in packages.values())
    assert "resolved" not in files()["docs/package-lock.json"]


def test_the_package_needs_torch_safetensors_and_regex_of_any_later_version():
    requirements = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    assert [requirement.name for requirement in requirements] == ["torch", "safetensors", "regex"]
    assert [[spec.operator for spec in requirement.specifier] for requirement in requirements] == [[">="]] * 3


def pinned() -> dict[str, str]:
    """Return the versions of constraints.txt by canonical name."""
    lines = [line for line in files()["constraints.txt"].splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "expected «name==version», no local suffix"
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_direct_dependency_is_pinned_within_its_bounds():
    groups = PROJECT["dependency-groups"]
    direct = [Requirement(text) for group in groups.values() for text in group if isinstance(text, str)]
    direct += [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    assert len(direct) > 15
    for requirement in direct:
        version = pinned().get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt: expected a line for {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_every_file_tells_the_same_version_license_and_authors():
    citation = yaml.safe_load(files()["CITATION.cff"])
    assert citation["version"] == llm_study.__version__
    assert citation["license"] == ["MIT", "CC-BY-SA-4.0"]
    assert PROJECT["project"]["license"] == "MIT"
    assert citation["authors"][0]["name"] == PROJECT["project"]["authors"][0]["name"] == "LLM Study contributors"
    text = files()["LICENSE"]
    assert text.count("Copyright (c) 2026 LLM Study contributors") == 2
    assert "MIT License" in text
    assert "https://creativecommons.org/licenses/by-sa/4.0/" in text
    assert re.search(r"^## \[(Unreleased|\d+\.\d+\.\d+)\]", files()["CHANGELOG.md"], re.MULTILINE)


def test_readme_begins_with_the_two_commands_in_both_languages():
    chinese, english = HALVES
    assert re.match(r"# [^\n]+\n\n```\n" + re.escape(COMMANDS) + "```\n", chinese)
    assert english.startswith(f"\n```\n{COMMANDS}```\n")


def named(text: str) -> set[str]:
    """Return the sessions that a text names: in the first column of its table, and after ``-s``."""
    columns = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    names = {name for column in columns for name in re.findall(r"`([^`]+)`", column)}
    for arguments in re.findall(r"nox -s ((?:\"[^\"]+\" ?|[a-z-]+ ?)+)", text):
        names |= {argument.strip('"') for argument in arguments.partition("-- ")[0].split()}
    return names


@pytest.mark.parametrize("half", [0, 1], ids=["zh", "en"])
def test_readme_names_every_session_and_no_other(half):
    internal = {"docs-env", "tests-env"}
    assert {"site", "tests", "doctest(zh)", "doctest(en)"} <= sessions()
    assert named(HALVES[half]) == sessions() - internal


def test_both_halves_of_readme_have_the_same_parts():
    chinese, english = HALVES
    assert len(re.findall("^## ", chinese, re.MULTILINE)) == len(re.findall("^### ", english, re.MULTILINE)) == 5
    for part in ("zdm.code@gmail.com", "https://pytorch.org/get-started/locally/", "PIP_FIND_LINKS", "CITATION.cff"):
        assert part in chinese
        assert part in english


def test_ci_runs_the_commands_of_readme_and_the_tests_last():
    script = files()[".ci/run"]
    commands = [line.split("  #")[0].strip() for line in COMMANDS.splitlines()]
    lines = script.splitlines()
    assert "set -euo pipefail" in lines
    assert commands[0] in lines
    assert lines[-1] == commands[1]
    assert named(script) <= sessions()
    assert {"doctest(zh)", "doctest(en)", "lint", "po-lint"} <= named(script)
    assert "100644" not in git("ls-files", "--stage", ".ci/run"), "git update-index --chmod=+x .ci/run"


def test_workflows_run_the_same_script_with_actions_of_a_major_version():
    workflows = {name: yaml.safe_load(text) for name, text in files().items() if name.startswith(".github/workflows/")}
    steps = {name: [s for job in flow["jobs"].values() for s in job["steps"]] for name, flow in workflows.items()}
    used = [step["uses"] for group in steps.values() for step in group if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    assert ".ci/run" in [step.get("run") for step in steps[".github/workflows/ci.yml"]]
    assert any("SITE_URL" in step.get("env", {}) for step in steps[".github/workflows/pages.yml"])


def waivers(source: str) -> Counter[str]:
    """Count the exceptions that one Python file makes."""
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    count = Counter(kind for kind in ("noqa", "type: ignore") for text in comments if re.search(rf"# {kind}\b", text))
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        if re.fullmatch(r"pytest\.(mark\.skip(if)?|skip|importorskip)", name):
            count["skip"] += 1
        if re.fullmatch(r"pytest\.(mark\.)?xfail", name):
            count["xfail"] += 1
        if name in {"warnings.filterwarnings", "warnings.simplefilter", "suppress_warnings", "nitpick_ignore"}:
            count["ignored warnings"] += 1
    return count


def test_waivers_are_counted_where_they_stand():
    comments = "import x  # noqa: F401\ny = 1  # type: ignore[x]\n"
    text = comments + "pytest.mark.skipif(1)\npytest.skip('# noqa')\nsuppress_warnings = []\n"
    assert waivers(text) == {"noqa": 1, "type: ignore": 1, "skip": 2, "ignored warnings": 1}
    assert waivers("text = 'pytest.skip()'\n") == {}


def test_the_number_of_waivers_only_falls():
    count = sum((waivers(text) for name, text in files().items() if name.endswith(".py")), Counter())
    assert {kind: count[kind] for kind in WAIVERS} == WAIVERS, "one more: avoid it; one less: lower the number here"


def test_the_package_itself_has_no_waiver():
    assert not sum((waivers(text) for name, text in files().items() if name.startswith("llm_study/")), Counter())
