"""Every public module has its page in docs/api/, every page its module, and the index names them all."""

import pkgutil
import re
from pathlib import Path

import pytest

import llm_study

API = Path(__file__).parents[1] / "docs/api"


def public_modules() -> set[str]:
    """Return the names of the modules that want a page, without ``llm_study.``."""
    names = (
        i.name.removeprefix("llm_study.")
        for i in pkgutil.walk_packages(llm_study.__path__, "llm_study.")
        if not i.ispkg
    )
    return {name for name in names if not re.search(r"(^|\.)_", name)}


def pages() -> dict[str, str]:
    """Return the text of each page, by the module that its file name says."""
    return {page.stem: page.read_text("utf-8") for page in API.glob("*.rst") if page.stem != "index"}


def problems(name: str, text: str) -> list[str]:
    """Return what is wrong with the page of one module."""
    label, found = f".. _api-{name.replace('.', '-')}:", []
    if not text.startswith(label + "\n"):
        found.append(f"docs/api/{name}.rst: begin with {label}")
    if re.findall(r"^\.\. automodule:: (.+)$", text, re.MULTILINE) != [f"llm_study.{name}"]:
        found.append(f"docs/api/{name}.rst: write one automodule, of llm_study.{name}")
    if re.search(r"[\u4e00-\u9fff]", text):
        found.append(f"docs/api/{name}.rst: write in English; Chinese stands in the catalog")
    return found


def test_every_public_module_has_its_page_and_every_page_its_module() -> None:
    assert set(pages()) == public_modules()


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"^   ([\w.]+)$", (API / "index.rst").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages())


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_is_one_label_and_one_module(name: str) -> None:
    assert problems(name, pages()[name]) == []


def test_a_bad_page_is_seen() -> None:
    good = ".. _api-nn-attention:\n\nTitle\n=====\n\nWords.\n\n.. automodule:: llm_study.nn.attention\n"
    assert problems("nn.attention", good) == []
    assert len(problems("nn.attention", good.replace("api-nn", "nn"))) == 1
    assert len(problems("nn.attention", good.replace("nn.attention\n", "nn.other\n"))) == 1
    assert len(problems("nn.attention", good + "\n.. automodule:: llm_study.nn.other\n")) == 1
    assert len(problems("nn.attention", good.replace("Words", "词"))) == 1
