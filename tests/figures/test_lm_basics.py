"""The history of the first chapter rests on references that exist, and its figures show what the data say."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pybtex.database import parse_file

from llm_study.core.roofline import parameters, published
from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
ENTRIES = parse_file(str(DOCS / "references.bib")).entries
EVENTS = json.loads((DOCS / "data/timeline.json").read_text("utf-8"))["events"]
GROWTH = json.loads((DOCS / "data/model_growth.json").read_text("utf-8"))
CHAPTER = (DOCS / "general/lm_basics.rst").read_text("utf-8")
ROWS = [*EVENTS, *GROWTH["models"], *GROWTH["devices"], *GROWTH["runs"]]
FIGURES = load(DOCS / "figures/lm_basics.py")


def disagreement(row: dict, entries: dict) -> str | None:
    """Say what is wrong with the reference of a row, or with its date as the bibliography knows it."""
    reference = row.get("reference", "")
    if reference not in entries:
        return f"{reference!r} is no key of references.bib"
    fields = entries[reference].fields
    if not {"doi", "eprint", "url"} & set(fields):
        return f"{reference} has no doi, eprint or url"
    if "date" not in row:
        return None
    if not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-\d\d)?)?", row["date"]):
        return f"{row['date']!r} is no date"
    eprint = fields.get("eprint", "")
    if eprint:  # the first four digits of an arXiv number are the year and month of the first version
        first = f"20{eprint[:2]}-{eprint[2:4]}"
        return (
            None if row["date"].startswith(first) else f"{reference} was first submitted in {first}, not {row['date']}"
        )
    return None if row["date"][:4] == fields["year"] else f"{reference} is of {fields['year']}, not {row['date']}"


def in_order(dates: list[str]) -> bool:
    """Say whether dates do not go back, each compared as far as both are known."""
    return all(a[: len(b)] <= b[: len(a)] for a, b in pairwise(dates))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['name']}-{row.get('date', '')}")
def test_a_row_has_a_resolvable_reference_that_agrees_with_its_date(row):
    assert disagreement(row, ENTRIES) is None


def test_the_check_refuses_what_it_should():
    good = {"date": "2017-06", "reference": "vaswani2017attention"}
    assert disagreement(good, ENTRIES) is None
    for change in (
        {"date": "2017-07"},
        {"date": "2018"},
        {"date": "June 2017"},
        {"reference": "nobody2017"},
        {"reference": ""},
    ):
        assert disagreement(good | change, ENTRIES)
    assert disagreement({"date": "2004", "reference": "bengio2003neural"}, ENTRIES)
    entries = {"x": type(next(iter(ENTRIES.values())))("misc", {"year": "2017", "title": "x"})}
    assert disagreement({"reference": "x"}, entries)
    assert in_order(["1948-07", "2017", "2017-06", "2017-06-12"])
    assert not in_order(["2018-02", "2018-01"])
    assert not in_order(["2018", "2017-12"])


@pytest.mark.parametrize("rows", [EVENTS, GROWTH["models"]], ids=["timeline", "models"])
def test_dated_rows_stand_in_order_and_once(rows):
    assert in_order([row["date"] for row in rows])
    assert len({row["name"] for row in rows}) == len(rows)


def test_every_event_has_a_lane_and_a_name_that_readers_can_translate():
    shown = FIGURES.names(str)
    for event in EVENTS:
        assert event.keys() == {"date", "name", "kind", "reference"}
        assert event["kind"] in FIGURES.KINDS
        assert event["name"] in shown or re.match(r"[A-Z]|word2vec|seq2seq", event["name"])
    assert shown.keys() <= {event["name"] for event in EVENTS}
    assert f"共 {len(EVENTS)} 个" in CHAPTER


def test_the_chapter_cites_every_reference_of_its_data():
    cited = {key for keys in re.findall(r":cite:[pt]:`([^`]+)`", CHAPTER) for key in keys.split(",")}
    used = {row["reference"] for row in ROWS} | {
        m["flops_reference"] for m in GROWTH["models"] if "flops_reference" in m
    }
    assert used <= cited


def test_every_size_says_where_it_stands():
    for row in [*GROWTH["models"], *GROWTH["devices"], *GROWTH["runs"]]:
        assert row["where"]
    for model in GROWTH["models"]:
        if "flops_reference" in model:
            assert model["flops_reference"] in ENTRIES
            assert "flops" in model


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("GPT-2 XL", "gpt2-xl"),
        ("GPT-3", "gpt3-175b"),
        ("Llama 2 70B", "llama-2-70b"),
        ("Llama 3.1 405B", "llama-3.1-405b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("DeepSeek-V3", "deepseek-v3"),
    ],
)
def test_sizes_agree_with_those_counted_from_the_configurations(name, config):
    (model,) = [model for model in GROWTH["models"] if model["name"] == name]
    assert model["parameters"] == pytest.approx(parameters(published(config)).total, rel=1e-3)


@pytest.mark.parametrize(
    "model", [m for m in GROWTH["models"] if "flops" in m and "tokens" in m], ids=lambda m: m["name"]
)
def test_stated_compute_is_near_six_times_parameters_times_tokens(model):
    """Gopher's budget is that of the Chinchilla paper, which counts more than 6 for each parameter and token."""
    assert model["flops"] / (6 * model["parameters"] * model["tokens"]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("run", GROWTH["runs"], ids=lambda run: run["name"])
def test_a_run_uses_a_known_device_and_reaches_a_part_of_its_peak(run):
    (device,) = [device for device in GROWTH["devices"] if device["name"] == run["device"]]
    count = parameters(published(run["published"])).active if "published" in run else run["parameters"]
    utilization = 6 * count * run["tokens"] / (3600 * run["hours"] * device["peak_flops"])
    assert 0.1 < utilization < 0.6


def test_the_line_of_the_figure_is_that_of_least_squares():
    t, y = torch.tensor([2018.0, 2019, 2021, 2024]).double(), torch.tensor([1.0, 3, 2, 5]).double()
    intercept, slope = FIGURES.line(t, y)
    best = torch.linalg.lstsq(torch.stack([torch.ones(4).double(), t - 2020], 1), y[:, None]).solution
    assert slope == pytest.approx(best[1].item())
    assert intercept + 2020 * slope == pytest.approx(best[0].item())


def test_years_and_compute_as_the_chapter_reads_them():
    assert FIGURES.year("2003") == 2003.5
    assert FIGURES.year("2017-06") == pytest.approx(2017 + 5.5 / 12)
    assert FIGURES.training_compute({"flops": 5.0, "parameters": 1, "tokens": 1}) == 5
    assert FIGURES.training_compute({"parameters": 10, "active": 2, "tokens": 3}) == 36
    assert FIGURES.training_compute({"parameters": 10}) is None


def test_labels_of_the_timeline_do_not_overlap_and_stay_near_their_dates():
    heights = [FIGURES.height(event["date"]) for event in EVENTS if event["kind"] == "model"]
    placed = FIGURES.spread(heights, 0.33)
    assert all(upper - lower > 0.33 - 1e-9 for upper, lower in pairwise(placed))
    assert max(abs(a - b) for a, b in zip(sorted(heights, reverse=True), placed, strict=True)) < 0.5
    assert FIGURES.spread([3.0, 1.0], 0.5) == [3.0, 1.0]
    assert FIGURES.spread([1.0, 1.0], 0.5) == [1.25, 0.75]
    assert math.isclose(FIGURES.height("2014-01") - FIGURES.height("2015-01"), 1)
