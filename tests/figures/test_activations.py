"""The recorded comparison of plain and gated networks can be repeated from its beginning, and is fair."""

import json
from pathlib import Path

import pytest
import torch

from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
RECORD = json.loads((DOCS / "data/gated_ffn.json").read_text("utf-8"))
SCRIPT = load(DOCS.parent / RECORD["script"])
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


def test_the_record_says_what_the_chapter_says():
    means = {
        kind: {name: sum(row["errors"]) / len(row["errors"]) for name, row in rows.items()}
        for kind, rows in RECORD["results"].items()
    }
    product, relu, sine = (sorted(means[kind], key=means[kind].get) for kind in ("product", "relu", "sine"))
    assert product[0] == "bilinear"
    assert set(product[:5]) == set(SCRIPT.GATED)
    assert product[5] == "ReLU²"
    assert (relu[0], relu[-1]) == ("ReLU", "bilinear")
    assert relu.index("GELU") < relu.index("SwiGLU")
    assert (*sine[:2], sine[-1]) == ("GeGLU", "SwiGLU", "bilinear")
