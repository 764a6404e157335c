"""The doctest builder runs what a page shows, in every language, or refuses with the reason."""

import json
import re

import pytest

CONF = {"builder": "doctest", "extensions": ["guarded_doctest", "sphinx_design"], "doctest_test_doctest_blocks": ""}
HEAD = "甲\n====\n\n"
CODE = '>>> word = "词"  # 取一个词\n>>> print(word)\n词'
ENGLISH = '>>> word = "word"  # take a word\n>>> print(word)\nword'


def block(code: str, *options: str, name: str = "doctest", indent: int = 0) -> str:
    lines = [
        f".. {name}::",
        *(f"   {option}" for option in options),
        "",
        *(f"   {line}" for line in code.split("\n")),
        "",
    ]
    return "\n".join(" " * indent + line if line else "" for line in lines) + "\n"


PLACES = {
    "plain": block(CODE),
    "list": "- 一\n\n" + block(CODE, indent=2),
    "admonition": ".. note::\n\n" + block(CODE, indent=3),
    "tab": ".. tab-set::\n\n   .. tab-item:: Tab\n\n" + block(CODE, indent=6),
    "dropdown": ".. dropdown:: Answer\n\n" + block(CODE, indent=3),
    "options": block(CODE, ":options: +NORMALIZE_WHITESPACE"),
    "inline flags": block(CODE.replace("print(word)", "print(word)  # doctest: +NORMALIZE_WHITESPACE")),
    "blank line": block(CODE.replace("print(word)\n词", 'print(word + "\\n\\n3")\n词\n<BLANKLINE>\n3')),
}


def message(place: str) -> str:
    """Return the code of a place as it stands in the catalog."""
    text = re.search(r"^ *(>>>.*)", PLACES[place], re.S | re.M)[1].rstrip()
    return re.sub(r"^ +", "", text, flags=re.M)


def translated(place: str, word: str = "word") -> str:
    return message(place).replace("取一个词", "take a word").replace("词", "word").replace("\nword", f"\n{word}")


def run(book, text, entries, language="en", **conf):
    """Return the build of one page, and whether it passed."""
    catalog = {"index": {"甲": "A", "一": "one", **entries}} if language == "en" else {}
    return book({"index.rst": HEAD + text}, catalog, language=language, **CONF, **conf)


def refusals(built) -> list[str]:
    return re.findall(r"WARNING: (.*?) \[doctest\.guard\]", built.warnings)


@pytest.mark.parametrize("place", PLACES)
def test_the_translation_runs_and_passes_with_as_many_examples(book, place):
    chinese = run(book, PLACES[place], {}, "zh_CN")
    english = run(book, PLACES[place], {message(place): translated(place)})
    for built in (chinese, english):
        assert built.app.statuscode == 0, built.warnings + built.read("output.txt")
        assert json.loads(built.read("counts.json")) == {"index": 2}


@pytest.mark.parametrize("place", PLACES)
def test_a_changed_output_in_the_catalog_fails(book, place):
    built = run(book, PLACES[place], {message(place): translated(place, word="wrong")})
    assert built.app.statuscode == 1
    assert re.search(r"Expected:\n +wrong\n", built.read("output.txt"))
    assert re.search(r"Got:\n +word\n", built.read("output.txt"))


@pytest.mark.parametrize(("output", "passes"), [("word", True), ("wrong", False)])
def test_the_output_of_testcode_is_compared_in_translation(book, output, passes):
    text = block('print("词")', name="testcode") + block("词", name="testoutput")
    built = run(book, text, {'print("词")': 'print("word")', "词": output})
    assert (built.app.statuscode == 0) is passes
    assert passes or "Got:\n    word" in built.read("output.txt")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("flaw", ["fuzzy", "empty", "missing"])
def test_what_is_not_translated_is_refused(book, place, flaw):
    from tests.ext.conftest import po

    catalog = po(
        {"甲": "A", message(place): {"fuzzy": translated(place)}.get(flaw, "")} if flaw != "missing" else {"甲": "A"}
    )
    if flaw == "fuzzy":
        catalog = catalog.replace('msgid ">>>', '#, fuzzy\nmsgid ">>>')
        assert "fuzzy" in catalog
    built = book({"index.rst": HEAD + PLACES[place]}, {"index": catalog}, language="en", **CONF)
    assert built.app.statuscode == 1
    [text] = refusals(built)
    assert text.startswith("expected a translation")
    assert not (built.out / "counts.json").exists()


def test_a_refusal_names_file_and_line(book):
    built = run(book, "一\n\n" + block(CODE), {})
    assert re.search(r"index\.rst:\d+: WARNING: expected a translation, .*complete it in the catalog", built.warnings)


@pytest.mark.parametrize(
    ("translation", "reason"),
    [
        (ENGLISH.replace(">>> ", ""), "expected 2 examples, found 0"),
        (ENGLISH.replace(">>> print", "print"), "expected 2 examples, found 1"),
        (ENGLISH + "\n>>> import os", "expected 2 examples, found 3"),
        (ENGLISH.replace("take a word", "doctest: +SKIP"), "flags"),
        (ENGLISH.replace('"word"', '"word".upper()'), "expected"),
        (ENGLISH.replace("print(word)", "print(ward)"), "'ward'"),
    ],
)
def test_other_code_is_refused(book, translation, reason):
    built = run(book, block(CODE), {CODE: translation})
    assert built.app.statuscode == 1
    assert reason in refusals(built)[0]


def test_nothing_runs_on_any_page_when_one_is_refused(book, tmp_path):
    files = {
        "index.rst": HEAD + block(f'>>> open(r"{tmp_path / "ran"}", "w").close()'),
        "z.rst": ":orphan:\n\n" + HEAD + block(CODE),
    }
    good = book({**files, "z.rst": ":orphan:\n\n" + HEAD}, {}, language="en", **CONF)
    assert (tmp_path / "ran").exists(), good.warnings
    (tmp_path / "ran").unlink()
    built = book(files, {}, language="en", **CONF)
    assert built.app.statuscode == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("language", ["zh_CN", "en"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- >>> 1\n  1\n", "bare '>>>'"),
        (block("1 + 1\n2"), "found none, so that nothing would run"),
        (block("2", name="testoutput"), "expected '.. testcode::' before this output"),
        (block(">>> 1\n1") + block("2", name="testoutput"), "expected '.. testcode::' before this output"),
    ],
    ids=["bare", "no prompt", "output without code", "output after doctest"],
)
def test_what_would_never_run_is_refused_in_every_language(book, text, reason, language):
    built = run(book, text, {}, language)
    assert built.app.statuscode == 1
    assert reason in refusals(built)[0]


@pytest.mark.parametrize(
    "hidden",
    [
        block("词 = 1", name="testsetup"),
        block("print('词')", ":hide:", name="testcode"),
        block("词 = 1", name="testcleanup"),
    ],
)
def test_hidden_chinese_is_refused_in_translation_only(book, hidden):
    text = block("print(1)", name="testcode") + block("1", name="testoutput")
    assert "hidden block" in refusals(run(book, hidden + text, {}))[0]
    assert refusals(run(book, hidden + text, {}, "zh_CN")) == []


def test_a_page_that_executes_strings_keeps_its_strings(book):
    text = block('>>> code = "词"') + block(">>> 词 = 5\n>>> eval(code)\n5")
    first = '>>> code = "词"'
    assert (
        "exec or eval"
        in refusals(
            run(
                book,
                text,
                {first: '>>> code = "exit"', ">>> 词 = 5\n>>> eval(code)\n5": ">>> 词 = 5\n>>> eval(code)\n5"},
            )
        )[0]
    )


def test_data_that_stays_chinese_is_translated_by_itself(book):
    code = '>>> len("词语")\n2'
    assert run(book, block(code), {code: code}).app.statuscode == 0


def test_english_code_needs_no_entry(book):
    built = run(book, block(">>> 1 + 1\n2\n>>> 2\n2"), {})
    assert built.app.statuscode == 0
    assert json.loads(built.read("counts.json")) == {"index": 2}


def test_examples_are_counted_page_by_page(book):
    text = block(">>> 1\n1\n>>> 2\n2")
    files = {
        "index.rst": HEAD + text,
        "a.rst": ":orphan:\n\n" + HEAD + text + block("print(3)", name="testcode") + block("3", name="testoutput"),
    }
    assert json.loads(book({**files, "z.rst": ":orphan:\n\n" + HEAD}, **CONF).read("counts.json")) == {
        "a": 3,
        "index": 2,
        "z": 0,
    }


def test_a_failing_example_fails_the_build(book):
    assert run(book, block(">>> 1 + 1\n3"), {}, "zh_CN").app.statuscode == 1
