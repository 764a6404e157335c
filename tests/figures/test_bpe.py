"""What the chapter on BPE says of this book's text is what was recorded, and the record can be made again."""

import json
from pathlib import Path

import pytest

from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
RECORD = json.loads((DOCS / "data/bpe.json").read_text("utf-8"))
CHAPTER = (DOCS / "algorithms/bpe.rst").read_text("utf-8")
SCRIPT = load(DOCS / "figures/record_bpe.py")


@pytest.mark.parametrize("part", ["zh", "en"])
def test_the_numbers_of_the_chapter(part):
    assert f"{RECORD['gpt2'][part]:,}" in CHAPTER
    assert f"{RECORD['tokens'][part][RECORD['sizes'].index(8192)]:,}" in CHAPTER
    assert f"{RECORD['bytes'][part]:_}" in CHAPTER
    for kind in ("all_bytes", "distinct_bytes"):
        assert f"{RECORD[kind][part] / 1000:.0f} kB" in CHAPTER


def test_a_quarter_of_the_corpus_is_chinese():
    assert RECORD["learned_bytes"]["zh"] / sum(RECORD["learned_bytes"].values()) == pytest.approx(0.25, abs=0.02)


def test_counts_fall_and_stay_below_their_bound():
    counts, total = RECORD["counts"], sum(RECORD["learned_bytes"].values())
    assert counts == sorted(counts, reverse=True)
    assert all(k * count < 2 * total for k, count in zip(RECORD["merges"], counts, strict=True))
    assert all(tokens == sorted(tokens, reverse=True) for tokens in RECORD["tokens"].values())


def test_the_script_counts_by_hand():
    assert SCRIPT.counts_of(["abab", "ab"], 2) == [3, 1]
    assert SCRIPT.distinct(["ab ab", "ab"]) == 5  # ab, and ab with a space
    assert (RECORD["sizes"], RECORD["merges"]) == (SCRIPT.SIZES, SCRIPT.MERGES)


def test_the_vocabulary_of_gpt2():
    assert SCRIPT.gpt2().encode("Hello world") == [15496, 995]
