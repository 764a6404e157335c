"""Laws of adapters: the identity at the start, merged or not the same, taken out without a trace; and bad input."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import GPT2Config, LlamaConfig
from llm_study.models.auto import model_class
from llm_study.peft.auto import load_adapter, method_from_config
from llm_study.peft.base import (
    Adapter,
    Method,
    adapter_state_dict,
    adapters,
    disabled,
    inject,
    load_adapter_state_dict,
    merge,
    save_adapter,
    trainable,
    unload,
    unmerge,
)
from llm_study.peft.lora import LoRA, LoRAFA, RSLoRA

METHODS = [LoRA(rank=3, alpha=5), RSLoRA(rank=3, alpha=5), LoRAFA(rank=3, alpha=5)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Sequential(nn.Linear(12, 6, bias=False), nn.LayerNorm(6))
    ).double()


def llama(**options: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=31, max_position_embeddings=32, **sizes, **options)
    return model_class(config)(config).double().eval()


def adapted(method: Method, model: nn.Module | None = None, targets: tuple[str, ...] = ("0", "2.0")) -> nn.Module:
    """Return a model whose adapters do something: no tensor of them is 0."""
    model = inject(network() if model is None else model, method, targets=targets)
    with torch.no_grad():
        for i, x in enumerate(adapter_state_dict(model).values()):
            x.copy_(random(*x.shape, seed=i + 1))
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


# --- laws


@every_method
def test_a_fresh_adapter_is_the_identity(method: Method) -> None:
    base, x = network(), random(5, 8)
    expected = base(x)
    assert method.identity
    assert torch.equal(inject(base, method, targets=["0", "2.0"])(x), expected)


@every_method
def test_only_the_adapter_is_trained(method: Method) -> None:
    model, x = adapted(method), random(5, 8)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == set(trainable(model))
    assert all(".lora_" in name for name in names)
    before = state(model)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == names


@every_method
def test_merged_is_unmerged_and_unmerging_restores_every_bit(method: Method) -> None:
    model, x = adapted(method), random(5, 8)
    y, before = model(x), state(model)
    assert (merge(model)(x) - y).abs().max() <= 1e-12 * y.abs().max()
    assert not same(model, before)
    assert same(unmerge(model), before)
    assert torch.equal(model(x), y)


@every_method
def test_disabled_is_the_base_and_comes_back(method: Method) -> None:
    base, x = network(), random(5, 8)
    model = adapted(method)
    y = model(x)
    with disabled(model):
        assert torch.equal(model(x), base(x))
        with disabled(model):
            assert torch.equal(model(x), base(x))
        assert torch.equal(model(x), base(x))
    assert torch.equal(model(x), y)
    merge(model)
    with disabled(model):
        assert torch.equal(model(x), base(x))
    assert (model(x) - y).abs().max() <= 1e-12
    assert all(adapter.merged for adapter in adapters(model).values())


def test_an_error_within_disabled_switches_the_adapter_on_again() -> None:
    model, x = adapted(LoRA(rank=3)), random(5, 8)
    y = model(x)
    with pytest.raises(RuntimeError, match="stop"), disabled(model):
        raise RuntimeError("stop")
    assert torch.equal(model(x), y)


@every_method
def test_taken_out_unmerged_nothing_is_left(method: Method) -> None:
    base, before = network(), state(network())
    base[0].bias.requires_grad_(False)
    model = unload(adapted(method, base))
    assert same(model, before)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.bias"]  # as it was before


@every_method
def test_taken_out_merged_a_plain_model_computes_the_same(method: Method) -> None:
    model, x = adapted(method), random(5, 8)
    y = model(x)
    unload(merge(model))
    assert model.state_dict().keys() == network().state_dict().keys()
    assert (model(x) - y).abs().max() <= 1e-12 * y.abs().max()


@every_method
def test_saved_and_loaded_equal(method: Method, tmp_path: Path) -> None:
    model, x = adapted(method), random(5, 8)
    save_adapter(model, tmp_path)
    loaded = load_adapter(network(), tmp_path)
    assert torch.equal(loaded(x), model(x))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    ours, theirs = adapter_state_dict(loaded), adapter_state_dict(model)
    assert ours.keys() == theirs.keys()


def test_a_merged_model_saves_its_adapter_not_its_weights(tmp_path: Path) -> None:
    model, x = adapted(LoRA(rank=3)), random(5, 8)
    y = model(x)
    save_adapter(merge(model), tmp_path)
    assert torch.equal(load_adapter(network(), tmp_path)(x), y)


def test_a_whole_model_generates_merged_as_unmerged() -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    model = adapted(LoRA(rank=2, alpha=1), llama(), targets)
    ids = torch.arange(12).reshape(2, 6)
    y = model(ids)
    assert (merge(model)(ids) - y).abs().max() <= 1e-11 * y.abs().max()
    assert len(adapters(model)) == 15


def test_deep_copies_and_moves_keep_what_is_merged() -> None:
    model, x = adapted(LoRA(rank=3)), random(5, 8)
    twin = copy.deepcopy(merge(model))
    unmerge(model)
    assert torch.equal(unmerge(twin)(x), model(x))
    moved = unmerge(merge(model).float())  # what was kept aside was in float64
    assert {p.dtype for p in moved.parameters()} == {torch.float32}
    assert (moved(x.float()) - twin(x)).abs().max() <= 1e-4


def test_the_mode_of_a_layer_is_that_of_its_adapter() -> None:
    assert not any(module.training for module in inject(network().eval(), LoRA(rank=2), targets=["0"]).modules())


def test_facts_of_the_layer_can_be_asked_its_tensors_not() -> None:
    adapter = adapted(LoRA(rank=3))[0]
    assert (adapter.in_features, adapter.out_features) == (8, 12)
    for name in ("weight", "bias", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(adapter, name)


def test_half_precision_trains_in_float32_and_gives_half_precision() -> None:
    model = inject(network().bfloat16(), LoRA(rank=2), targets=["0"])
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    nn.init.normal_(model[0].lora_B)
    x = random(5, 8).bfloat16()
    assert model(x).dtype == torch.bfloat16
    y = model[0](x).float()
    merge(model)
    assert model[0].base_layer.weight.dtype == torch.bfloat16
    assert (model[0](x).float() - y).abs().max() <= 2**-6 * y.abs().max()


# --- targets


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj"], ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        (["layers.1.mlp.up_proj"], ["model.layers.1.mlp.up_proj"]),
        (["*.0.self_attn.[qk]_proj"], ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]),
        (["*_head", "lm_head"], ["lm_head"]),
    ],
    ids=str,
)
def test_targets(targets: list[str], names: list[str]) -> None:
    assert list(adapters(inject(llama(), LoRA(rank=2), targets=targets))) == names


def test_a_pattern_passes_over_what_cannot_be_adapted() -> None:
    assert list(adapters(inject(network(), LoRA(rank=2), targets=["*"]))) == ["0", "2.0"]


# --- bad input: a clear error, and nothing has changed


class Unmergeable(LoRA):
    mergeable = False


def shared_module() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, layer)


BAD: list[tuple[Callable[[], nn.Module], Method, list[str] | str, str]] = [
    (network, LoRA(rank=2), ["q_proj"], "target 'q_proj' matches no module that can be adapted: LoRA adapts 0"),
    (network, LoRA(rank=2), ["0", "x.*"], "target 'x.*' matches no module"),
    (network, LoRA(rank=2), ["1*"], "target '1*' matches no module that can be adapted"),
    (network, LoRA(rank=2), ["0", "2.1"], "target '2.1' matches 2.1, a LayerNorm, which LoRA does not adapt"),
    (network, LoRA(rank=2), ["2"], "target '2' matches 2, a Sequential, which LoRA does not adapt"),
    (network, LoRA(rank=2), [], "number of targets is 0, expected at least 1"),
    (network, LoRA(rank=2), "0", "targets is the string '0', expected a list: write ['0']"),
    (network, LoRA(rank=7), ["0", "2.0"], "2.0: rank is 7, expected at most 6, the smaller side of a weight of shape"),
    (shared_module, LoRA(rank=2), ["0"], "0 and 1 are one module: adapting it at one place would change the other"),
    (lambda: nn.Sequential(nn.Embedding(5, 4)), LoRAFA(rank=2), ["0"], "a Embedding, which LoRAFA does not adapt"),
]


@pytest.mark.parametrize(("make", "method", "targets", "message"), BAD, ids=[case[-1][:40] for case in BAD])
def test_a_bad_injection_changes_nothing(
    make: Callable[[], nn.Module], method: Method, targets: list[str], message: str
) -> None:
    model = make()
    before = state(model)
    with pytest.raises(ValueError) as caught:
        inject(model, method, targets=targets)
    assert message in str(caught.value)
    assert same(model, before)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, Adapter) for module in model.modules())


def test_a_second_adapter_and_a_missing_one_are_refused() -> None:
    model = adapted(LoRA(rank=3))
    with pytest.raises(ValueError, match="has an adapter already, 0"):
        inject(model, LoRA(rank=2), targets=["2.0"])
    for function in (merge, unmerge, unload, adapter_state_dict, trainable):
        with pytest.raises(ValueError, match="has 0 adapters"):
            function(network())


def test_merging_twice_unmerging_twice_and_loading_when_merged_are_refused() -> None:
    model = adapted(LoRA(rank=3))
    with pytest.raises(ValueError, match="not merged"):
        unmerge(model)
    tensors = adapter_state_dict(merge(model))
    before = state(model)
    with pytest.raises(ValueError, match="merged already"):
        merge(model)
    with pytest.raises(ValueError, match="call unmerge first"):
        load_adapter_state_dict(model, tensors)
    assert same(model, before)


def test_a_method_that_cannot_be_merged_is_refused() -> None:
    model = adapted(Unmergeable(rank=3))
    before = state(model)
    with pytest.raises(ValueError, match="Unmergeable cannot be merged"):
        merge(model)
    assert same(model, before)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_embeddings_are_adapted_but_not_merged(target: str) -> None:
    model = adapted(LoRA(rank=2), llama(tie_word_embeddings=True), (target, "q_proj"))
    before, ids = state(model), torch.arange(6)[None]
    y = model(ids)
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight and lm_head.weight are one tensor"):
        merge(model)
    assert same(model, before)
    assert torch.equal(model(ids), y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("base_model.model.0.lora_B.weight"),
            "lacks base_model.model.0.lora_B.weight of shape (12, 3)",
        ),
        (lambda t: t.update({"base_model.model.0.lora_C": torch.ones(1)}), "has, beyond what the adapters have, base"),
        (
            lambda t: t.update({"base_model.model.2.0.lora_A.weight": torch.ones(3, 13)}),
            "has shape (3, 13), expected (3, 12)",
        ),
        (
            lambda t: t.update({"base_model.model.0.base_layer.weight": torch.ones(12, 8)}),
            "is not the weight of this model",
        ),
    ],
    ids=["missing", "superfluous", "shape", "base"],
)
def test_tensors_that_do_not_fit_change_nothing(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    model = adapted(LoRA(rank=3))
    tensors, before = {name: x + 1 for name, x in adapter_state_dict(model).items()}, state(model)
    change(tensors)
    with pytest.raises(ValueError) as caught:
        load_adapter_state_dict(model, tensors)
    assert message in str(caught.value)
    assert same(model, before)


@pytest.mark.parametrize("other", ["narrow", "short", "adapted"])
def test_an_adapter_of_another_base_changes_nothing(other: str, tmp_path: Path) -> None:
    save_adapter(adapted(LoRA(rank=3)), tmp_path)
    narrow = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Sequential(nn.Linear(12, 5, bias=False)))
    model = {"narrow": narrow, "short": nn.Sequential(nn.Linear(8, 12)), "adapted": adapted(LoRA(rank=2))}[other]
    before, training = state(model), [p.requires_grad for p in model.parameters()]
    message = {"narrow": "expected \\(5, 3\\)", "short": "of another model", "adapted": "has an adapter already"}[other]
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert same(model, before)
    assert [p.requires_grad for p in model.parameters()] == training


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json: there is no such file"):
        load_adapter(network(), tmp_path)
    save_adapter(adapted(LoRA(rank=3)), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for content, message in ((whole[:-1], "cut off"), (b"", "cut off or damaged")):
        weights.write_bytes(content)
        model = network()
        with pytest.raises(ValueError, match=message):
            load_adapter(model, tmp_path)
        assert not any(isinstance(module, Adapter) for module in model.modules())
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors: there is no such file"):
        load_adapter(network(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "NEW"}, "expected a method that is known here"),
        ({"bias": "all"}, "asks for bias = 'all'"),
        ({"rank_pattern": {"0": 4}}, "asks for rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "asks for modules_to_save"),
        ({"r": 0}, "rank is 0, expected at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0, expected a probability below 1"),
    ],
    ids=str,
)
def test_settings_that_are_not_supported(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_from_config({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **change})


def test_gpt2_is_adapted_by_the_names_of_its_layers() -> None:
    config = GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = inject(model_class(config)(config).eval(), LoRA(rank=2), targets=["c_attn", "wpe"])
    assert model.transformer.wpe.num_embeddings == 16
    assert model(torch.arange(5)[None]).shape == (1, 5, 31)
