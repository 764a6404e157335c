"""The record of times can be repeated, and the table of published models has the numbers of transformers."""

import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3NextConfig,
)

from tests.scripts import load

ROOT = Path(__file__).parents[2]


def figures(name: str) -> ModuleType:
    return load(ROOT / "docs/figures" / f"{name}.py")


def test_window_time_was_measured_on_the_functions_of_today() -> None:
    record = json.loads((ROOT / "docs/data/window_time.json").read_text("utf-8"))
    script = figures("record_window_time")
    assert (record["sizes"], record["lengths"]) == (script.SIZES, script.LENGTHS)
    for length, checksums in record["checksums"].items():
        outputs = script.outputs(int(length))
        assert outputs.keys() == checksums.keys() == record["milliseconds"].keys()
        for name, output in outputs.items():
            assert output.abs().sum().item() == pytest.approx(checksums[name], rel=1e-5)
        torch.testing.assert_close(outputs["sliding_window_attention"], outputs["attention"], rtol=1e-5, atol=1e-5)


def test_measuring_times_every_function() -> None:
    script = figures("record_window_time")
    times = script.measure(16)
    assert times.keys() == script.functions(16).keys()
    assert all(milliseconds >= 0 for milliseconds in times.values())


def layers(config: PretrainedConfig) -> list[tuple[int, float]]:
    """Return for each layer with a cache the numbers for each token, and the window, from a config of transformers."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head
    if isinstance(config, DeepseekV3Config):
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    if isinstance(config, FalconConfig):
        assert config.multi_query
        numbers = 2 * head
    everywhere = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or config.num_hidden_layers * [everywhere]
    kinds = kinds[: config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)]
    windows = {"sliding_attention": getattr(config, "sliding_window", None), "full_attention": math.inf}
    return [(numbers, windows[kind]) for kind in kinds if kind in windows]


CONFIGS = {
    "Llama 2 7B": LlamaConfig(),
    "Falcon 7B": FalconConfig(),
    "Llama 3 8B": LlamaConfig(num_key_value_heads=8),
    "Mistral 7B": MistralConfig(),
    "Gemma 2 2B": Gemma2Config(),
    "GPT-OSS 120B": GptOssConfig(),
    "DeepSeek-V3": DeepseekV3Config(),
    "Gemma 3n": Gemma3nTextConfig(),
    "Qwen3-Next 80B": Qwen3NextConfig(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_the_table_are_the_configurations_of_transformers(name: str) -> None:
    expected = layers(CONFIGS[name])
    drawn = figures("attention_variants").MODELS
    assert name not in drawn or sorted(drawn[name]) == sorted(expected)
    size = 2 * sum(n * min(32768, window) for n, window in expected) / 2**30
    page = (ROOT / "docs/algorithms/attention_variants.rst").read_text("utf-8")
    rows = re.findall(r"\* - (.+)\n     - (.+)\n     - (\d+)\n     - ([\d.]+) GiB\n", page)
    (row,) = (row for row in rows if row[0] == name)
    assert int(row[2]) == expected[0][0]
    assert float(row[3]) == round(size, 2)
    assert f"   {name:<15}{size:>6.2f} GiB\n" in page  # the output of the snippet


def test_the_table_has_no_other_rows() -> None:
    page = (ROOT / "docs/algorithms/attention_variants.rst").read_text("utf-8")
    assert re.findall(r"\* - (.+)\n     - .+\n     - \d+\n     - [\d.]+ GiB\n", page) == list(CONFIGS)
    assert figures("attention_variants").MODELS.keys() <= CONFIGS.keys()
