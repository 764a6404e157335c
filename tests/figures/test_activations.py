"""The recorded comparison of plain and gated networks can be repeated from its beginning, and is fair."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
RECORD = json.loads((DOCS / "data/gated_ffn.json").read_text("utf-8"))
SPEC = importlib.util.spec_from_file_location("record_gated_ffn", DOCS.parent / RECORD["script"])
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
NAMES = [*SCRIPT.PLAIN, *SCRIPT.GATED]


def test_the_record_is_that_of_the_script_of_today():
    assert RECORD["sizes"] == SCRIPT.SIZES
    assert RECORD["rates"] == SCRIPT.RATES
    assert list(RECORD["results"]) == SCRIPT.TARGETS
    for rows in RECORD["results"].values():
        assert list(rows) == NAMES
        for row in rows.values():
            assert row["rate"] in RECORD["rates"]
            assert len(row["errors"]) == RECORD["sizes"]["seeds"]
            assert all(0 <= error < 1 for error in row["errors"])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_can_be_repeated(name):
    error = SCRIPT.fit(name, "sine", 1e-2, steps=5).mean().item()
    assert error == pytest.approx(RECORD["beginning"][name], rel=1e-3)


def test_all_networks_have_the_same_number_of_weights():
    counts = {sum(w.numel() for w in SCRIPT.student(name)[0]) for name in NAMES}
    assert len(counts) == 1


@pytest.mark.parametrize("kind", SCRIPT.TARGETS)
def test_seeds_have_targets_of_their_own(kind):
    x = SCRIPT.inputs(torch.Generator().manual_seed(0), 50)
    assert (x[..., -1] == 1).all()
    y = SCRIPT.teacher(kind)(x[:1].expand_as(x))
    assert (y[0] - y[1]).abs().max() > 0.1
