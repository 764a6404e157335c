"""The tables of terms, of allowed Chinese and of waivers: how they are read, and what the real ones hold."""

import re
from pathlib import Path

import pytest
from catalogs.finding import Finding
from catalogs.rules_terms import occurring, spelled
from catalogs.tables import TableError, Tables, Waiver, load

LOCALE = Path(__file__).parents[2] / "locale"
WAIVERS = 2
"""How many findings of wording are waived; the number only falls."""
WAIVER = '[[waiver]]\ncatalog = "en/a"\ncode = "po-term"\nmessage = "一段"\nwhat = "键"\nreason = "as it is"\n'


def test_the_number_of_waivers_only_falls():
    assert len(load(LOCALE).waivers) <= WAIVERS


def test_the_termbase_has_enough_terms_in_one_form():
    head, *rows = (LOCALE / "terms.tsv").read_text("utf-8").rstrip("\n").split("\n")
    assert head == "zh\ten\tnote"
    cells = [row.split("\t") for row in rows]
    assert len(cells) >= 250
    assert {len(row) for row in cells} == {3}
    assert len({zh for zh, *_ in cells}) == len(cells)
    for zh, en, _ in cells:
        assert re.fullmatch(r"([A-Za-z]+ )?[\u4e00-\u9fffA-Za-z–-]+", zh)
        forms = en.split(";")
        assert len(set(map(str.lower, forms))) == len(forms), en
        assert all(re.fullmatch(r"[A-Za-z][A-Za-z\d/'–-]*( [A-Za-z\d/–-]+)*", form) for form in forms), en


def test_ordinary_words_hide_a_term_and_are_none():
    tables = load(LOCALE)
    assert not tables.words & tables.terms.keys()
    for word in tables.words:
        overlaps = any(set(word) & {term[0], term[-1]} for term in tables.terms)
        assert overlaps, f"{word} hides no term: remove it from locale/allowed.toml"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("关键在于数值", set()),
        ("自注意力的键与值", {"自注意力", "键", "值"}),
        ("最大值与特征值", {"最大值", "特征值"}),
        ("来自编码器", {"编码器"}),
        ("低秩与秩", {"低秩", "秩"}),
        ("开头的注意力头", {"注意力头"}),
    ],
)
def test_the_longest_term_counts(text, found):
    tables = load(LOCALE)
    assert occurring(text, frozenset(tables.terms), tables.words) == found


@pytest.mark.parametrize(
    ("form", "text", "matches"),
    [
        ("key", "Keys", True), ("key", "keyboard", False), ("key", "monkey", False), ("entropy", "entropies", True),
        ("matrix", "matrices", True), ("basis", "bases", True), ("loss", "losses", True), ("mask", "masked", False),
        ("batch size", "batch-size", True), ("fine-tuning", "fine tuning", False), ("token", "token_id", True),
    ],
)  # fmt: skip
def test_an_english_form_is_found_in_the_singular_and_the_plural(form, text, matches):
    assert bool(spelled(form).search(text)) is matches


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder


def test_a_project_without_tables_has_empty_ones(tmp_path):
    assert load(tmp_path) == Tables(path=tmp_path / "waivers.toml")


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        (f"\n{WAIVER}".replace('reason = "as it is"\n', ""), 2, "reason"),
        (WAIVER.replace("as it is", " "), 1, "none empty"),
        (WAIVER.replace("po-term", "po-code"), 1, "'po-code'"),
        (WAIVER + "x\n", 7, "TOML"),
    ],
)
def test_a_table_that_cannot_be_read_is_reported_with_its_line(tmp_path, text, line, found):
    with pytest.raises(TableError, match=rf"waivers\.toml:{line}: expected .*{found}.*; "):
        load(write(tmp_path, "waivers.toml", text))


def test_allowed_chinese_needs_a_reason(tmp_path):
    row = '[[allowed]]\ncatalog = "en/a"\ntext = "小猫"\nreason = "data"\n'
    assert load(write(tmp_path, "allowed.toml", row * 2)).allowed == {"en/a": ("小猫", "小猫")}
    with pytest.raises(TableError, match="reason"):
        load(write(tmp_path, "allowed.toml", row.replace('"data"', '""')))


FINDING = Finding(Path("a.po"), 9, "po-term", "'key' for '键'", "x", "y")


@pytest.mark.parametrize(
    ("catalog", "change", "waived"),
    [("en/a", {}, True), ("en/b", {}, False), ("en/a", {"code": "po-number"}, False), ("en/a", {"what": "值"}, False),
     ("en/a", {"message": "另一段"}, False)],
)  # fmt: skip
def test_a_waiver_covers_one_finding_of_one_message(catalog, change, waived):
    waiver = Waiver(**{"catalog": "en/a", "code": "po-term", "message": "一段", "what": "键", "reason": "r", **change})
    tables = Tables(waivers=(waiver,))
    left, used = tables.judge(catalog, [FINDING], {9: "这一段话"})
    assert (left, used) == (([], {waiver}) if waived else ([FINDING], set()))


def test_a_waiver_without_a_finding_is_one(tmp_path):
    tables = load(write(tmp_path, "waivers.toml", f"# top\n{WAIVER}"))
    (idle,) = tables.idle(set(), ["en"])
    assert (idle.path, idle.line, idle.code) == (tmp_path / "waivers.toml", 2, "po-waiver")
    assert tables.idle(set(tables.waivers), ["en"]) == tables.idle(set(), ["zh_CN"]) == []
