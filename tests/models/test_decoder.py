"""The laws of decoders, for every family: no future, no padding, no neighbors in the batch; and their cost."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_study.core.config import (
    DecoderConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Rope,
)
from llm_study.models.decoder import DecoderForCausalLM, rotary_frequencies
from llm_study.models.gemma import Gemma2ForCausalLM, Gemma3ForCausalLM
from llm_study.models.llama import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from llm_study.nn.basic import GemmaRMSNorm, RMSNorm
from llm_study.nn.binding import bind
from llm_study.nn.cache import KVCache
from llm_study.nn.layout import lay_out_for_decoding

V, W = 29, 4
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "initializer_range": 0.3,
}
LLAMA3 = Rope(
    rope_theta=50.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=40,
)
WINDOWED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1}
GEMMA: dict[str, Any] = {**SIZES, "sliding_window": W, "query_pre_attn_scalar": 3}
FAMILIES: dict[str, tuple[Callable[..., DecoderForCausalLM], DecoderConfig]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=W)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, **WINDOWED)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SIZES)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **GEMMA, layer_types=("sliding_attention", "full_attention"), rope_sliding=Rope(rope_theta=9.0)
        ),
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, dtype: torch.dtype = torch.float64) -> DecoderForCausalLM:
    """Return a fresh model whose norms and biases are random too."""
    torch.manual_seed(0)
    kind, config = FAMILIES[family]
    model = kind(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * b.abs().max().item())


# --- laws


@every_family
@pytest.mark.parametrize("laid_out", [False, True])
@torch.no_grad()
def test_a_bound_model_computes_the_same(family: str, laid_out: bool) -> None:
    model, ids = model_of(family).eval(), random_ids(2, 9)
    plain = model(ids)
    if laid_out:
        lay_out_for_decoding(model)
    function, real = bind(model), torch.ones(2, 9, dtype=torch.bool)
    real[0, :3] = False
    assert near(function(ids), plain)
    assert near(function(ids, mask=real, logits_to_keep=2), model(ids, mask=real)[:, -2:])
    cache = KVCache(model.config, 2, 9, dtype=torch.float64)
    steps = [function(ids[:, i : i + 1], cache=cache) for i in range(9)]
    assert near(torch.cat(steps, dim=1), plain)
    with pytest.raises(ValueError, match="ids has 99"):
        function(torch.tensor([[99]]))


@every_family
@pytest.mark.parametrize("padded", [False, True], ids=["no mask", "mask"])
def test_the_future_changes_nothing(family: str, padded: bool) -> None:
    model, ids, now = model_of(family), random_ids(2, 9), 5
    mask = torch.ones(2, 9, dtype=torch.bool) if padded else None
    other = torch.cat([ids[:, : now + 1], (ids[:, now + 1 :] + 7) % V], dim=1)
    before, after = model(ids, mask=mask), model(other, mask=mask)
    assert near(after[:, : now + 1], before[:, : now + 1], 1e-13)
    assert not near(after[:, now + 1 :], before[:, now + 1 :], 1e-3)

    embedded: list[Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda *x: embedded.append(x[2]))
    y = model(ids, mask=mask)[:, now].square().sum()
    (gradient,) = torch.autograd.grad(y, embedded)
    assert (gradient[:, now + 1 :] == 0).all()
    assert (gradient[:, now].abs().amax(-1) > 0).all()


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    model, ids, junk = model_of(family), random_ids(2, 7), random_ids(2, 4, seed=5)
    alone = model(ids)
    parts = (junk, ids) if side == "left" else (ids, junk)
    real = torch.cat([torch.full_like(x, x is ids, dtype=torch.bool) for x in parts], dim=1)
    found = model(torch.cat(parts, dim=1), mask=real)[real].view(2, 7, V)
    assert near(found, alone, 2e-7)  # left padding shifts positions, and angles carry the rounding of frequencies
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    exact = model(torch.cat(parts, dim=1), mask=real, positions=positions)[real].view(2, 7, V)
    assert near(exact, alone)
    if side == "left":
        seen = model(torch.cat(parts, dim=1))[real].view(2, 7, V)
        assert not near(seen, alone, 1e-3)  # without the mask the padding is read


@every_family
def test_texts_that_share_a_row_do_not_see_each_other(family: str) -> None:
    model, lengths = model_of(family), (2 * W + 1, W, 3)  # longer than the window, as long, and padding
    ids, texts = random_ids(2, sum(lengths)), torch.arange(3).repeat_interleave(torch.tensor(lengths))
    mask = (texts[:, None] == texts).expand(2, -1, -1)
    mask = mask & (texts[:, None] < 2)  # padding sees nothing
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    together = model(ids, mask=mask, positions=positions)
    for text in range(2):
        assert near(together[:, texts == text], model(ids[:, texts == text]), 1e-12)
    assert together.isfinite().all()
    assert not near(model(ids, positions=positions)[:, texts == 1], together[:, texts == 1], 1e-3)


@every_family
def test_a_mask_of_pairs_is_met_by_causality_and_windows(family: str) -> None:
    model, ids, now = model_of(family), random_ids(2, 3 * W), 2 * W
    everything = torch.ones(2, 3 * W, 3 * W, dtype=torch.bool)
    assert near(model(ids, mask=everything), model(ids), 1e-13)
    hidden = everything.clone()
    hidden[1, now, now - 1] = False  # one token of one row does not see the one before it
    changed = (model(ids, mask=hidden) - model(ids)).abs().amax(-1)
    assert (changed[0] == 0).all()
    assert (changed[1, :now] == 0).all()
    assert changed[1, now] > 1e-6


@every_family
def test_a_mask_of_pairs_and_a_cache_do_not_go_together(family: str) -> None:
    model, ids = model_of(family), random_ids(2, 3)
    cache = KVCache(FAMILIES[family][1], 2, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3, 3\), expected \(2, 3\).* go without it"):
        model(ids, mask=torch.ones(2, 3, 3, dtype=torch.bool), cache=cache)
    assert near(model(ids, cache=cache), model(ids), 1e-12)  # the cache is as it was


@every_family
def test_neighbors_in_the_batch_change_nothing(family: str) -> None:
    model, ids = model_of(family), random_ids(4, 9)
    mask = torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]
    positions = torch.arange(9) * torch.tensor([1, 2, 1, 7])[:, None]  # a mere shift of a row would not be seen
    for options in ({}, {"mask": mask}, {"positions": positions}):
        together = model(ids, **options)
        for b in range(4):
            alone = model(ids[b : b + 1], **{name: x[b : b + 1] for name, x in options.items()})
            assert near(alone[0], together[b], 1e-12)


@every_family
def test_only_differences_of_positions_count(family: str) -> None:
    model, ids = model_of(family), random_ids(1, 9)
    positions = torch.arange(9)[None]
    assert near(model(ids, positions=positions), model(ids), 1e-13)
    assert near(model(ids, positions=positions + 1000), model(ids))
    assert not near(model(ids, positions=2 * positions), model(ids), 1e-3)


@every_family
def test_a_mask_that_hides_nothing_changes_nothing(family: str) -> None:
    model = model_of(family)
    for length in (1, W, W + 1, 11):
        ids = random_ids(2, length)
        assert near(model(ids, mask=torch.ones_like(ids, dtype=torch.bool)), model(ids), 1e-13)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3"])
def test_a_token_beyond_the_windows_of_all_layers_changes_nothing(family: str, layers: int) -> None:
    kind, config = FAMILIES[family]
    more = {"num_hidden_layers": layers}
    if family != "mistral":
        more["layer_types"] = ("sliding_attention",) * layers
    torch.manual_seed(0)
    model = kind(type(config)(**{**vars(config), **more})).double()
    reach = layers * (W - 1)  # each layer sees its own position and W - 1 before it
    ids = random_ids(1, reach + 3)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % V
    changed = (model(other) - model(ids)).abs().amax(-1)[0]
    assert (changed[reach + 1 :] == 0).all()
    assert (changed[: reach + 1] > 0).all()


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3"])
def test_one_layer_without_a_window_sees_everything(family: str) -> None:
    model, ids = model_of(family), random_ids(1, 16)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % V
    assert ((model(other) - model(ids)).abs().amax(-1) > 0).all()


# --- how they are computed


class Watch(TorchDispatchMode):
    """Count operations, and note the largest number of entries of a boolean tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest_mask = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, Tensor) and x.dtype == torch.bool:
                self.largest_mask = max(self.largest_mask, x.numel())
        return out


def watched(model: DecoderForCausalLM, ids: Tensor, **options: Tensor) -> Watch:
    with Watch() as watch, torch.no_grad():
        model.model(ids, **options)
    return watch


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_no_mask_is_built_where_none_is_needed(family: str) -> None:
    assert watched(model_of(family), random_ids(2, 50)).largest_mask == 0


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3"])
def test_no_window_is_built_for_a_text_within_it(family: str) -> None:
    assert watched(model_of(family), random_ids(2, W)).largest_mask == 0
    assert watched(model_of(family), random_ids(2, W + 1)).largest_mask == (W + 1) ** 2


@pytest.mark.parametrize(
    ("family", "tables", "masks"),
    [("llama", 1, 0), ("mistral", 1, 1), ("qwen2", 1, 1), ("olmo2", 1, 0), ("gemma2", 1, 2), ("gemma3", 2, 1)],
)
def test_rotations_and_masks_are_made_once_for_all_layers(family: str, tables: int, masks: int) -> None:
    kind, config = FAMILIES[family]
    more: dict[str, Any] = {"num_hidden_layers": 4}
    if "layer_types" in vars(config):
        more["layer_types"] = ("sliding_attention", "full_attention") * 2
    model = kind(type(config)(**{**vars(config), **more}))
    for options in ({}, {"positions": torch.arange(50).expand(2, 50)}):
        watch = watched(model, random_ids(2, 50), **options)
        assert (watch.calls["cos"], watch.calls["sin"]) == (tables, tables)
        assert watch.calls["tril"] == masks


@every_family
def test_everything_is_made_where_the_ids_are(family: str) -> None:
    kind, config = FAMILIES[family]
    with torch.device("meta"):  # a tensor on another device would not meet those here
        model = kind(config)
    ids = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    for options in ({}, {"mask": ids == 0}, {"mask": (ids == 0)[:, None].expand(2, 9, 9)}, {"positions": ids}):
        y = model.model(ids, **options)
        assert (y.shape, y.device.type) == ((2, 9, 12), "meta")


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_stays_and_is_near(family: str, dtype: torch.dtype) -> None:
    ids, exact = random_ids(2, 9), model_of(family)
    found = model_of(family, dtype)
    found.load_hub(exact.state_dict())
    y = found(ids)
    assert y.dtype == dtype
    assert near(y.double(), exact(ids), {torch.bfloat16: 0.2, torch.float32: 1e-5}[dtype])


@every_family
def test_fresh_weights(family: str) -> None:
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(type(config)(**{**vars(config), "vocab_size": 200, "hidden_size": 64, "initializer_range": 0.7}))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert abs(parameter.std() / 0.7 - 1) < 0.1, name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
    for module in model.modules():
        if isinstance(module, RMSNorm):
            assert (module.weight == (0 if isinstance(module, GemmaRMSNorm) else 1)).all()


@pytest.mark.parametrize("tied", [True, False])
@every_family
def test_head_and_embedding_share_a_matrix_if_the_config_says_so(family: str, tied: bool) -> None:
    kind, config = FAMILIES[family]
    model = kind(type(config)(**{**vars(config), "tie_word_embeddings": tied}))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_frequencies_are_those_the_config_asks_for() -> None:
    plain = rotary_frequencies(Rope(rope_theta=100.0), 4)
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.1]))
    linear = rotary_frequencies(Rope(rope_theta=100.0, rope_type="linear", factor=5.0), 4)
    torch.testing.assert_close(linear, torch.tensor([0.2, 0.02]))
    scaled = rotary_frequencies(LLAMA3, 6)  # waves of 6.3, 23.1 and 85.3 positions in a context of 40
    turns = 40 / (2 * math.pi) * 50.0 ** (-1 / 3)
    middle = (turns - 1) / 3
    expected = [1.0, (middle + (1 - middle) / 8) * 50.0 ** (-1 / 3), 50.0 ** (-2 / 3) / 8]
    torch.testing.assert_close(scaled, torch.tensor(expected))


@every_family
def test_frequencies_that_old_files_hold_are_not_read(family: str) -> None:
    model = model_of(family)
    tensors = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(3) for i in range(2)}
    assert torch.equal(model.load_hub({**model.state_dict(), **tensors})(random_ids(1, 3)), model(random_ids(1, 3)))
    with pytest.raises(ValueError, match="rotary_emb"):
        model.load_hub({**model.state_dict(), "model.rotary_emb.other": torch.zeros(3)})


# --- bad input


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([[0, V]], {}, f"ids.*{V}"),
        ([[0, -1]], {}, "ids.*-1"),
        ([[0, 1]], {"mask": torch.ones(1, 2)}, r"mask has dtype torch.float32, expected torch.bool"),
        ([[0, 1]], {"mask": torch.ones(1, 3, dtype=torch.bool)}, r"mask is \(1, 3\), shape of ids is \(1, 2\)"),
        ([[0, 1]], {"mask": torch.ones(2, dtype=torch.bool)}, r"mask is \(2,\), shape of ids is \(1, 2\)"),
        ([[0, 1]], {"mask": torch.ones(1, 2, 2)}, r"mask has dtype torch.float32, expected torch.bool"),
        ([[0, 1]], {"mask": torch.ones(1, 2, 3, dtype=torch.bool)}, r"mask is \(1, 2, 3\), .* is \(1, 2, 2\)"),
        ([[0, 1]], {"mask": torch.ones(1, 1, 2, 2, dtype=torch.bool)}, r"mask is \(1, 1, 2, 2\), .* is \(1, 2\)"),
        ([[0, 1]], {"positions": torch.arange(3)[None]}, r"positions is \(1, 3\), shape of ids is \(1, 2\)"),
    ],
)
def test_bad_input_is_refused(ids: list[list[int]], options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of("llama")(torch.tensor(ids), **options)
