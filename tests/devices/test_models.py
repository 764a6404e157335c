"""Every family of models on every device: logits, gradients, padding, caches, bound, and through a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import BertConfig, GPT2Config, T5Config
from llm_study.models import auto
from llm_study.models.bert import BertForMaskedLM, BertForSequenceClassification
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.t5 import T5ForConditionalGeneration
from llm_study.models.transformer import Transformer, TransformerConfig
from llm_study.nn.binding import bind
from llm_study.nn.cache import Cache, KVCache
from llm_study.nn.eviction import EvictingKVCache, HeavyHitters, ObservationWindow, SinksAndRecent
from llm_study.nn.layout import lay_out_for_decoding
from llm_study.nn.paged import BlockPool, BlockTable, PackedKVCache, PagedKVCache
from llm_study.nn.quantized_cache import QuantizedKVCache
from tests.devices.where import assert_near, every_device, moved, randint
from tests.models.test_decoder import FAMILIES, V, model_of

T = 9
IDS, TARGET = randint(V, 3, T), randint(V, 3, 6, seed=1)
REAL = torch.arange(T) >= torch.tensor([[0], [4], [1]])
"""Padding on the left."""

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2ForCausalLM(GPT2Config(vocab_size=V, n_positions=32, n_embd=12, n_layer=2, n_head=2)),
    "bert": lambda: BertForMaskedLM(_bert()),
    "bert, classifier": lambda: BertForSequenceClassification(_bert(labels=("a", "b", "c"))),
    "t5": lambda: T5ForConditionalGeneration(_t5()),
    "t5 1.1": lambda: T5ForConditionalGeneration(_t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "transformer": lambda: Transformer(TransformerConfig(vocab_size=V, d_model=12, n_heads=2, d_ff=20, n_layers=2)),
}
PAIRED = ("t5", "t5 1.1", "transformer")
DECODERS = [*FAMILIES, "gpt2"]
every_model = pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
every_decoder = pytest.mark.parametrize("family", DECODERS)


def _bert(**changes: Any) -> BertConfig:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    return BertConfig(vocab_size=V, **sizes, max_position_embeddings=16, **changes)


def _t5(**changes: Any) -> T5Config:
    sizes = {"d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6}
    return T5Config(vocab_size=V, **sizes, **buckets, **changes)


def make(family: str) -> Any:
    """Return a model in float32, which float64 holds exactly; its matrices are large, its norms and biases random."""
    if family in FAMILIES:
        return model_of(family, torch.float32).eval()
    torch.manual_seed(0)
    model = OTHERS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif not family.startswith("t5"):
                parameter.mul_(0.3 / parameter.std())
    return model


def outputs(model: nn.Module, family: str, ids: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logits of a model, at real positions of the text that it predicts."""
    if family in PAIRED:
        named = {"source_mask" if family == "transformer" else "mask": mask}
        y: Tensor = model(ids, target, **named)
        return y
    y = model(ids, mask=mask)
    y = y if isinstance(y, Tensor) else y.logits
    return y if mask is None or y.ndim == 2 else y[mask]


LOGITS, GRADIENTS = 2e-5, 1e-4
"""Largest errors in float32: of logits, and of the gradient of a parameter, as a part of the largest value in it.

They pass through a dozen products, and weights with a standard deviation of 0.3 make differences larger.
"""


@every_device
@pytest.mark.parametrize("padded", [False, True])
@every_model
def test_logits_and_gradients(family: str, padded: bool, device: str) -> None:
    model, mask = make(family), REAL if padded else None
    double, single = moved(model, "cpu"), moved(model, device, torch.float32)
    expected = outputs(double, family, IDS, TARGET, mask)
    found = outputs(single, family, IDS.to(device), TARGET.to(device), None if mask is None else mask.to(device))
    assert_near(found, expected.detach(), device, LOGITS)
    for y in (expected, found):
        y.log_softmax(-1)[..., 2].sum().backward()
    largest = max(p.grad.abs().max().item() for p in double.parameters() if p.grad is not None)
    for (name, p), (_, q) in zip(double.named_parameters(), single.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and p.grad.abs().max() > 1e-6 * largest:  # else it is 0 in theory, as of a bias of keys
            assert_near(q.grad, p.grad, device, GRADIENTS, what=name)


@every_device
def test_a_classifier_has_its_loss(device: str) -> None:
    model, labels = make("bert, classifier"), torch.tensor([0, 2, 1])
    expected = model.double().loss(model(IDS), labels)
    twin = moved(model, device, torch.float32)
    assert_near(twin.loss(twin(IDS.to(device)), labels.to(device)), expected.detach(), device, LOGITS)


def test_every_family_is_here() -> None:
    names = {make(family).hub_name for family in [*FAMILIES, *OTHERS] if family != "transformer"}
    known = {aliases[0] for *_, aliases in auto._CLASSES}
    assert names == known


# --- a text piece by piece


def paged(config: Any, dtype: torch.dtype, device: str) -> Cache:
    pool = BlockPool(config, 32, 4, dtype=dtype, device=device)
    return PagedKVCache([BlockTable(pool) for _ in IDS])


POLICIES = {
    "h2o": HeavyHitters(budget=5, recent=2),
    "sinks": SinksAndRecent(budget=5, sinks=2),
    "snapkv": ObservationWindow(budget=5, window=2, kernel=3),
}
CACHES: dict[str, Callable[[Any, torch.dtype, str], Cache]] = {
    "static": lambda config, dtype, device: KVCache(config, 3, 16, dtype=dtype, device=device),
    "paged": paged,
    "quantized": lambda config, dtype, device: QuantizedKVCache(
        config, 3, 16, bits=4, group=2, residual=4, dtype=dtype, device=device
    ),
    **{
        name: lambda config, dtype, device, policy=policy: EvictingKVCache(
            config, 3, policy, dtype=dtype, device=device
        )
        for name, policy in POLICIES.items()
    },
}
"""Ways to keep keys and values; windows make the static one a ring."""
EXACT = ("static", "paged")


def in_pieces(model: Any, cache: Cache, device: str, mask: Tensor | None) -> Tensor:
    """Return the logits of a text that comes as a prompt of 5 and 4 tokens alone."""
    found, ids = [], IDS.to(device)
    for a, b in [(0, 5), (5, 6), (6, 7), (7, 8), (8, 9)]:
        real = None if mask is None else mask[:, a:b].to(device)
        found.append(model(ids[:, a:b], mask=real, cache=cache))
    return torch.cat(found, dim=1)


@every_device
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", CACHES)
@every_decoder
@torch.no_grad()
def test_caches(family: str, kind: str, padded: bool, device: str) -> None:
    """In float64, so that quantized numbers and the tokens that stay are the same, and exact caches equal no cache."""
    model, mask = make(family).double(), REAL if padded else None
    twin = moved(model, device)
    found = in_pieces(twin, CACHES[kind](model.config, torch.float64, device), device, mask)
    if kind in EXACT:
        counted = (REAL.cumsum(1) - 1).clamp(min=0) if padded and kind == "paged" else None  # others count padding too
        expected = model(IDS, mask=mask, positions=counted)
    else:
        expected = in_pieces(model, CACHES[kind](model.config, torch.float64, "cpu"), "cpu", mask)
    real = REAL if padded else torch.ones_like(REAL)
    assert_near(found[real.to(device)], expected[real], device, 1e-10)


@every_device
@every_decoder
@torch.no_grad()
def test_texts_packed_into_a_row(family: str, device: str) -> None:
    """Texts of 6 and 3 tokens, whose last logits are those of each alone."""
    model = make(family).double()
    twin, pool = moved(model, device), BlockPool(model.config, 16, 4, dtype=torch.float64, device=device)
    cache = PackedKVCache([BlockTable(pool), BlockTable(pool)], [6, 3])
    ids = cache.pack([IDS[0, :6].tolist(), IDS[1, :3].tolist()])
    assert ids.device.type == device
    found = twin(ids, cache=cache, logits_to_keep=2)[0]
    expected = torch.stack([model(IDS[:1, :6])[0, -1], model(IDS[1:2, :3])[0, -1]])
    assert_near(found, expected, device, 1e-10)


@every_device
@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_rows_of_a_cache_change_places(kind: str, device: str) -> None:
    model, rows = make("llama").double(), torch.tensor([2, 0, 0])
    found = []
    for where in ("cpu", device):
        twin, cache = moved(model, where), CACHES[kind](model.config, torch.float64, where)
        twin(IDS[:, :6].to(where), cache=cache)
        cache.reorder(rows.to(where))
        found.append(twin(IDS[:, 6:7].to(where), cache=cache))
    if kind in EXACT:
        found[0] = model(torch.cat([IDS[rows, :6], IDS[:, 6:7]], dim=1))[:, -1:]
    assert_near(found[1], found[0], device, 1e-10)


@every_device
@torch.no_grad()
def test_t5_writes_piece_by_piece(device: str) -> None:
    model = make("t5").double()
    twin = moved(model, device)
    given = twin.given(IDS.to(device), mask=REAL.to(device))
    cache = KVCache(model.config, 3, 8, dtype=torch.float64, device=device)
    parts = [given(TARGET[:, a:b].to(device), cache=cache) for a, b in [(0, 3), (3, 4), (4, 6)]]
    assert_near(torch.cat(parts, dim=1), model(IDS, TARGET, mask=REAL), device, 1e-10)


# --- bound, laid out, in half precision, saved


@every_device
@pytest.mark.parametrize("laid_out", [False, True])
@every_decoder
@torch.no_grad()
def test_a_bound_model_writes_the_same(family: str, laid_out: bool, device: str) -> None:
    model = make(family).double()
    twin = moved(model, device)
    if laid_out:
        lay_out_for_decoding(twin)
    found = in_pieces(bind(twin), KVCache(model.config, 3, 16, dtype=torch.float64, device=device), device, None)
    assert_near(found, model(IDS), device, 1e-10)


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_model
@torch.no_grad()
def test_half_precision(family: str, dtype: torch.dtype, device: str) -> None:
    """Two layers round about thirty times, with errors that add up like the steps of a random walk."""
    model = make(family).to(dtype)
    expected = outputs(moved(model, "cpu"), family, IDS, TARGET, REAL)
    found = outputs(moved(model, device, dtype), family, IDS.to(device), TARGET.to(device), REAL.to(device))
    assert found.dtype == dtype
    assert_near(found, expected, device, 16 * torch.finfo(dtype).eps)


@every_device
@pytest.mark.parametrize("family", [*FAMILIES, *(name for name in OTHERS if name != "transformer")])
@torch.no_grad()
def test_a_folder_written_from_the_device_is_read_on_the_cpu(family: str, device: str, tmp_path: Path) -> None:
    model = make(family)
    moved(model, device, torch.float32).save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    before, after = dict(model.named_parameters()), dict(again.named_parameters())
    assert before.keys() == after.keys()
    assert {p.device.type for p in after.values()} == {"cpu"}
    assert all(torch.equal(p, after[name]) for name, p in before.items())
