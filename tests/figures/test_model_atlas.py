"""The models of the atlas: chapter and figures have the same, and each is as large as it is published to be."""

import doctest
import json
from pathlib import Path

import pytest
import torch

from llm_study.core.config import config_from_dict
from llm_study.models.auto import model_class
from tests.scripts import load

DOCS = Path(__file__).parents[2] / "docs"
MODELS = json.loads((DOCS / "data/model_atlas.json").read_text("utf-8"))["models"]
PUBLISHED = {
    "GPT-2": 124_439_808,
    "BERT base": 109_482_240 - (768**2 + 768) + (768**2 + 3 * 768 + 30522),  # with its head instead of the pooler
    "Llama 2 7B": 6_738_415_616,
    "Llama 3.1 8B": 8_030_261_248,
    "Mistral 7B": 7_241_732_096,
    "Qwen2.5 7B": 7_615_616_512,
    "Qwen3 8B": 8_190_735_360,
    "OLMo 2 7B": 7_298_617_344,
    "Gemma 2 2B": 2_614_341_888,
    "Gemma 3 1B": 999_885_952,
}
figures = load(DOCS / "figures/model_atlas.py")


def test_the_chapter_and_its_figures_have_the_same_models():
    page = (DOCS / "algorithms/model_atlas.rst").read_text("utf-8")
    names: dict = {}
    for example in doctest.DocTestParser().get_examples(page):
        exec(example.source, names)
        if example.source.startswith("atlas = "):
            break
    assert names["atlas"] == {model["name"]: model["config"] for model in MODELS}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_models_have_the_published_size(model):
    assert model["source"]
    config = config_from_dict(model["config"])
    with torch.device("meta"):
        built = model_class(config)(config)
    assert sum(p.numel() for p in built.parameters()) == PUBLISHED[model["name"]]


def test_what_the_figure_of_shares_leaves_out_is_less_than_it_says():
    for config in figures.configs().values():
        assert 0 < 1 - sum(figures.shares_of(config.transformer())) < 0.002
