"""Our cache against that of transformers: the logits of each call, and what lies in the cache, past the window too."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from llm_study.nn.cache import KVCache
from tests.parity import decoders, test_gpt2
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import random_ids

FAMILIES = ["gpt2", "llama", "llama3", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3"]
PIECES = [5, 1, 1, 4, 1, 1, 1, 3, 1, 1]  # 19 tokens; windows have 8


def pair(family: str, **changes: Any) -> tuple[Any, nn.Module]:
    return test_gpt2.pair(**changes) if family == "gpt2" else decoders.pair(family, **changes)


@pytest.mark.parametrize("side", [None, "left"], ids=["no padding", "left"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_and_contents(family: str, side: str | None) -> None:
    ours, theirs = pair(family)
    ids, real = random_ids(3, sum(PIECES)), torch.ones(3, sum(PIECES), dtype=torch.bool)
    if side is not None:  # all of it in the first piece
        real[:, :4] = torch.arange(4) >= torch.tensor([[0], [2], [4]])
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    cache, other = KVCache(ours.config, 3, 24), DynamicCache(config=theirs.config)
    start = 0
    for size in PIECES:
        stop = start + size
        new = ids[:, start:stop]
        found = ours(new, mask=real[:, start:stop], positions=positions[:, start:stop], cache=cache)
        expected = theirs(
            input_ids=new,
            attention_mask=real[:, :stop].long(),
            position_ids=positions[:, start:stop],
            past_key_values=other,
        ).logits
        assert_close(found[real[:, start:stop]], expected[real[:, start:stop]])
        start = stop
    for i, layer in enumerate(other.layers):
        kept = layer.keys.shape[2]  # theirs keeps one token less than a window
        where = torch.arange(start - kept, start) % cache.keys[i].shape[2]
        shown = real[:, start - kept : start, None].expand(-1, -1, layer.keys.shape[-1])
        for mine, peer in ((cache.keys[i], layer.keys), (cache.values[i], layer.values)):
            for head in range(peer.shape[1]):
                assert_close(mine[:, head, where][shown], peer[:, head][shown])


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_both_keep_a_window_only(family: str) -> None:
    _, theirs = pair(family)
    ours = KVCache(pair(family)[0].config, 1, 24)
    other = DynamicCache(config=theirs.config)
    with torch.no_grad():
        theirs(input_ids=random_ids(1, 12), past_key_values=other)
    kept = [layer.keys.shape[2] for layer in other.layers]
    assert [x.shape[2] for x in ours.keys] == [8 if n == 7 else 24 for n in kept]
    assert 7 in kept
