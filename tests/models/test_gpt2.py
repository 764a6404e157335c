"""GPT-2's laws: no future, no padding, no neighbors; what files may hold; and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llm_study.core.config import GPT2Config
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.nn.binding import bind
from llm_study.nn.cache import KVCache
from llm_study.nn.layout import lay_out_for_decoding

SIZES: dict[str, Any] = {"vocab_size": 29, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def model(**changes: Any) -> GPT2ForCausalLM:
    torch.manual_seed(0)
    return GPT2ForCausalLM(GPT2Config(**{**SIZES, "initializer_range": 0.5, **changes})).double().eval()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(29, (batch, length), generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("laid_out", [False, True])
@torch.no_grad()
def test_a_bound_model_computes_the_same(laid_out: bool) -> None:
    lm, ids = model(), random_ids(2, 9)
    plain = lm(ids)
    if laid_out:
        lay_out_for_decoding(lm)
    function, cache = bind(lm), KVCache(lm.config, 2, 12, dtype=torch.float64)
    assert close(torch.cat([function(ids[:, i : i + 1], cache=cache) for i in range(9)], dim=1), plain)
    with pytest.raises(ValueError, match="n_positions"):
        function(random_ids(2, 13))


@torch.no_grad()
def test_logits_do_not_depend_on_what_comes_later() -> None:
    gpt2, ids = model(), random_ids(2, 10)
    before = gpt2(ids)
    for t in range(9):
        changed = ids.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 7) % 29
        after = gpt2(changed)
        assert close(after[:, : t + 1], before[:, : t + 1])
        assert not close(after[:, t + 1], before[:, t + 1])


@torch.no_grad()
def test_every_position_depends_on_all_before_it() -> None:
    gpt2, ids = model(), random_ids(1, 10)
    before = gpt2(ids)
    for t in range(10):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 7) % 29
        assert ((gpt2(changed) - before).abs().amax(-1)[0, t:] > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    gpt2, ids, padding = model(), random_ids(2, 7), random_ids(2, 4)
    real, absent = torch.ones(2, 7, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    parts = ((padding, absent), (ids, real)) if side == "left" else ((ids, real), (padding, absent))
    padded, mask = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert close(gpt2(padded, mask=mask, positions=positions)[mask], gpt2(ids).flatten(0, 1))


@torch.no_grad()
def test_texts_that_share_a_row_do_not_see_each_other() -> None:
    gpt2, ids, texts = model(), random_ids(2, 10), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    mask = ((texts[:, None] == texts) & (texts < 2)).expand(2, -1, -1)  # the last token is padding, and sees nothing
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 0])
    together = gpt2(ids, mask=mask, positions=positions)
    for text in range(2):
        assert close(together[:, texts == text], gpt2(ids[:, texts == text]))
    assert together.isfinite().all()
    assert not close(gpt2(ids, positions=positions)[:, texts == 1], together[:, texts == 1])
    assert not close(gpt2(ids, mask=mask)[:, texts == 1], together[:, texts == 1])  # positions go on


@torch.no_grad()
def test_a_mask_of_pairs_is_met_by_causality_and_refuses_a_cache() -> None:
    gpt2, ids, everything = model(), random_ids(2, 6), torch.ones(2, 6, 6, dtype=torch.bool)
    assert close(gpt2(ids, mask=everything), gpt2(ids))
    cache = KVCache(gpt2.config, 2, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 6, 6\), expected \(2, 6\).* go without it"):
        gpt2(ids, mask=everything, cache=cache)
    assert close(gpt2(ids, cache=cache), gpt2(ids))  # the cache is as it was


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    gpt2, ids = model(), random_ids(3, 8)
    assert close(gpt2(ids), torch.cat([gpt2(row[None]) for row in ids]))


@torch.no_grad()
def test_without_position_embeddings_only_the_set_before_counts() -> None:
    gpt2 = model(n_layer=1)
    gpt2.transformer.wpe.weight.zero_()
    ids = random_ids(1, 8)
    shuffled = torch.cat([ids[:, torch.randperm(7)], ids[:, 7:]], 1)
    assert close(gpt2(ids)[:, -1], gpt2(shuffled)[:, -1])
    assert not close(gpt2(ids)[:, :-1], gpt2(shuffled)[:, :-1])


@torch.no_grad()
def test_positions_are_those_of_the_learned_vectors() -> None:
    gpt2, ids = model(), random_ids(2, 5)
    assert close(gpt2(ids), gpt2(ids, positions=torch.arange(5)))
    assert close(gpt2(ids), gpt2(ids, positions=torch.arange(5).expand(2, 5)))
    assert not close(gpt2(ids), gpt2(ids, positions=torch.arange(1, 6)))


def test_the_head_shares_its_matrix_and_gradient() -> None:
    tied, free = model(), model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert free.lm_head.weight is not free.transformer.wte.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 29 * 12


def test_fresh_weights_have_the_std_of_the_config() -> None:
    gpt2 = GPT2ForCausalLM(GPT2Config(vocab_size=500, n_positions=8, n_embd=120, n_layer=8, n_head=3))
    assert gpt2.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt2.transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt2.transformer.h[7].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert not gpt2.transformer.h[0].attn.c_attn.bias.any()


@torch.no_grad()
@pytest.mark.parametrize("only", NO_DROPOUT)
def test_each_dropout_acts_in_training_only(only: str) -> None:
    gpt2, ids = model(**{**NO_DROPOUT, only: 0.5}), random_ids(2, 6)
    before = gpt2(ids)
    assert not close(gpt2.train()(ids), before)
    assert not close(gpt2(ids, mask=torch.ones(2, 6, dtype=torch.bool)), before)
    assert close(gpt2.eval()(ids), before)


@torch.no_grad()
def test_training_without_dropout_is_evaluation() -> None:
    gpt2, ids = model(**NO_DROPOUT), random_ids(2, 6)
    assert close(gpt2.train()(ids), gpt2.eval()(ids))


@torch.no_grad()
def test_dropped_weights_of_attention_keep_the_causal_order() -> None:
    gpt2, ids = model(**{**NO_DROPOUT, "attn_pdrop": 0.5}).train(), random_ids(1, 6)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 7) % 29
    for mask in (None, torch.ones(1, 6, dtype=torch.bool)):
        outcomes = []
        for x in (ids, changed):
            torch.manual_seed(3)
            outcomes.append(gpt2(x, mask=mask))
        assert close(outcomes[0][:, :-1], outcomes[1][:, :-1])


# --- files


def stored(gpt2: GPT2ForCausalLM) -> dict[str, Tensor]:
    return gpt2.to_hub({name: x.detach() for name, x in gpt2.named_parameters()})


def same(a: GPT2ForCausalLM, b: GPT2ForCausalLM) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_projections_are_stored_input_by_output() -> None:
    tensors = stored(model(n_inner=20))
    shapes = {name.removeprefix("transformer.h.0."): tuple(x.shape) for name, x in tensors.items() if ".h.0." in name}
    assert shapes["attn.c_attn.weight"] == (12, 36)
    assert shapes["mlp.c_fc.weight"] == (12, 20)
    assert shapes["mlp.c_proj.weight"] == (20, 12)


def test_names_without_the_prefix_and_with_old_constants() -> None:
    gpt2, other = model(), model(initializer_range=0.1)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored(gpt2).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    assert not same(gpt2, other)
    assert same(gpt2, other.load_hub(tensors))
    with pytest.raises(ValueError, match=r"h\.0\.attn\.other"):
        other.load_hub({**tensors, "h.0.attn.other": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("transformer.h.1.attn.c_attn.weight", None, r"lacks transformer\.h\.1\.attn\.c_attn\.weight of shape"),
        ("transformer.h.1.attn.c_attn.weight", torch.zeros(12, 35), r"c_attn\.weight has shape .*35.*36"),
        ("transformer.h.1.attn.c_proj.weight", torch.zeros(12), r"c_proj\.weight has shape \(12,\)"),
        ("transformer.h.2.ln_1.weight", torch.zeros(12), r"transformer\.h\.2\.ln_1\.weight"),
    ],
)
def test_a_wrong_tensor_is_named(name: str, tensor: Tensor | None, message: str) -> None:
    tensors = {**stored(model()), name: tensor}
    with pytest.raises(ValueError, match=message):
        model().load_hub({name: x for name, x in tensors.items() if x is not None})


# --- bad input


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.full((1, 2), 29), {}, "29"),
        (torch.zeros(1, 13, dtype=torch.long), {}, "n_positions is 12, expected at least 13"),
        (torch.zeros(1, 2, dtype=torch.long), {"positions": torch.tensor([0, 12])}, "n_positions is 12.* 13"),
        (torch.zeros(1, 2, dtype=torch.long), {"positions": torch.tensor([-1, 0])}, "smallest of positions is -1"),
        (torch.zeros(1, 2, dtype=torch.long), {"positions": torch.tensor([0, 1, 2])}, r"\(3,\).*\(1, 2\)"),
        (torch.zeros(1, 2, dtype=torch.long), {"positions": torch.tensor([0.0, 1.0])}, "torch.float32"),
        (torch.zeros(1, 2, dtype=torch.long), {"mask": torch.ones(1, 2)}, "torch.float32"),
        (torch.zeros(1, 2, dtype=torch.long), {"mask": torch.ones(1, 2, 2)}, "torch.float32"),
        (torch.zeros(1, 2, dtype=torch.long), {"mask": torch.ones(1, 3, 3, dtype=torch.bool)}, r"1, 3, 3.*1, 2, 2"),
        (torch.zeros(1, 2, dtype=torch.long), {"mask": torch.ones(1, 3, dtype=torch.bool)}, r"\(1, 3\).*\(1, 2\)"),
    ],
)
def test_bad_input_is_told_with_both_numbers(ids: Tensor, options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(ids, **options)
