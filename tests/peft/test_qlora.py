"""QLoRA and LoftQ: gradients, the contract of adapters, bytes, files, and errors. In float64 unless otherwise said."""

import copy
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.config import LlamaConfig
from llm_study.functional.codebooks import dequantize_blockwise, double_quantize, nf4_codebook, quantize_blockwise
from llm_study.functional.lowrank import loftq_factors
from llm_study.models.llama import LlamaForCausalLM
from llm_study.peft.auto import load_adapter
from llm_study.peft.base import (
    Method,
    adapter_state_dict,
    adapters,
    disabled,
    inject,
    merge,
    save_adapter,
    trainable,
    unload,
    unmerge,
)
from llm_study.peft.lora import LoRA, LoRALinear, RSLoRA
from llm_study.peft.lowrank import MiSS
from llm_study.peft.qlora import LoftQ, QLoRA, quantize_base, stored_bytes
from llm_study.peft.quantized import QuantizedLinear, quantize_weight

METHODS: list[Method] = [
    QLoRA(rank=3, alpha=5),
    QLoRA(rank=3, alpha=5, block=16, double_quant=False),
    QLoRA(rank=3, alpha=5, quant_type="fp4"),
    LoftQ(rank=3, alpha=5),
    LoftQ(rank=3, alpha=5, loftq_iter=3, double_quant=True, block=32),
]
every = pytest.mark.parametrize("method", METHODS, ids=str)
TARGETS = ["0", "2"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12, bias=False), nn.LayerNorm(12)
    return nn.Sequential(*layers).to(dtype)


X = random(7, 8, seed=1)


def quantized_net(method: Method) -> nn.Sequential:
    """Return the network with plain layers whose weights are what the quantization of a method leaves."""
    model = net()
    assert isinstance(method, QLoRA)
    for name in TARGETS:
        layer = model.get_submodule(name)
        layer.weight.data = method.quantized(layer, name).weight
    return model


def adapted(method: Method) -> nn.Module:
    model = inject(net(), method, TARGETS)
    with torch.no_grad():
        for i, x in enumerate(adapter_state_dict(model).values()):
            x.copy_(random(*x.shape, seed=i + 1))
    return model


# --- the layer


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_a_linear_layer_with_the_weight_that_is_left(double: bool, bias: bool) -> None:
    linear = nn.Linear(24, 10, bias=bias).double()
    layer = QuantizedLinear.of(linear, block=16, double_quant=double)
    quantized = quantize_blockwise(linear.weight.detach(), codebook=nf4_codebook(), block=16)
    expected = dequantize_blockwise(double_quantize(quantized) if double else quantized)
    assert torch.equal(layer.weight, expected)
    x = random(2, 5, 24)
    assert torch.allclose(layer(x), F.linear(x, expected, linear.bias), rtol=1e-14, atol=1e-14)
    assert layer.bias is linear.bias
    assert not isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize("double", [False, True])
def test_the_input_and_the_bias_get_gradients_and_no_weight_is_kept(double: bool) -> None:
    layer = QuantizedLinear.of(nn.Linear(6, 5).double(), block=8, double_quant=double)
    x = random(3, 6).requires_grad_()
    bias = layer.bias
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda b: torch.func.functional_call(layer, {"bias": b}, (x.detach(),)), (bias,))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert kept == []
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.allclose(grad, 2 * y @ layer.weight)


def test_another_dtype_changes_the_weight_and_not_the_factors() -> None:
    layer = QuantizedLinear.of(nn.Linear(64, 64))
    before, nbytes = layer.weight, layer.nbytes
    half = copy.deepcopy(layer).bfloat16()
    assert half.weight.dtype == half(torch.ones(1, 64).bfloat16()).dtype == torch.bfloat16
    assert torch.equal(half.weight, before.bfloat16())
    assert torch.equal(half.float().weight, before)  # nothing was rounded on the way
    assert half.quantized.nbytes == layer.quantized.nbytes
    assert nbytes == 64 * 64 // 2 + 64 + 4 + 4 + 4 * 64
    again = QuantizedLinear.of(nn.Linear(64, 64))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight, before)


# --- the contract


@every
def test_a_fresh_adapter_leaves_the_quantized_model_as_it_is(method: Method) -> None:
    model = inject(net(), method, TARGETS)
    assert not method.identity
    assert (model(X) - net()(X)).abs().max() > 1e-3
    with disabled(model):
        base = model(X)
    assert torch.equal(base, model(X))
    if isinstance(method, LoftQ):
        assert all(adapter.delta().norm() > 0 for adapter in adapters(model).values())
        assert (base - net()(X)).norm() < (quantized_net(method)(X) - net()(X)).norm()
    else:
        assert torch.allclose(base, quantized_net(method)(X), rtol=1e-13, atol=1e-13)


@every
def test_only_the_adapter_is_trained_and_the_weight_is_gone(method: Method) -> None:
    base = net()
    weight = weakref.ref(base[0].weight)
    model = inject(base, method, TARGETS)
    gc.collect()
    assert weight() is None  # nothing holds the memory of the numbers
    names = [f"{layer}.lora_{x}" for layer in TARGETS for x in "AB"]
    assert list(trainable(model)) == names
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(names)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(X) - 1).square().sum().backward()
        optimizer.step()
    assert {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])} == set(names)


@every
def test_gradients_are_those_of_lora_on_the_weight_that_is_left(method: Method) -> None:
    model = adapted(method)
    plain = net()
    for name, adapter in adapters(model).items():
        plain.get_submodule(name).weight.data = adapter.base_layer.weight
    plain = inject(plain, LoRA(rank=3, alpha=5), TARGETS)
    for mine, other in zip(adapter_state_dict(model).values(), adapter_state_dict(plain).values(), strict=True):
        other.copy_(mine)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    assert torch.allclose(model(x), plain(y), rtol=1e-13, atol=1e-13)
    model(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-12, atol=1e-12)
    for mine, other in zip(trainable(model).values(), trainable(plain).values(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


@every
def test_merged_is_unmerged_and_unmerging_restores_every_bit(method: Method) -> None:
    model = adapted(method)
    y, before = model(X), {name: x.clone() for name, x in model.state_dict().items()}
    assert (merge(model)(X) - y).abs().max() <= 1e-12 * y.abs().max()
    assert type(model[0].base_layer) is nn.Linear
    with disabled(model):
        base = model(X)
    assert (base - y).abs().max() > 1e-2
    assert (model(X) - y).abs().max() <= 1e-12 * y.abs().max()
    after = unmerge(model).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(X), y)
    with disabled(model):
        assert torch.equal(model(X), base)


@every
def test_the_mode_of_the_layer_is_kept_and_moving_while_merged_too(method: Method) -> None:
    model = inject(net().eval(), method, TARGETS)
    assert not any(module.training for module in model.modules() if type(module) is QuantizedLinear)
    assert not any(adapter.base_layer.training for adapter in adapters(merge(model)).values())
    unmerge(merge(unmerge(model)).float())
    assert {adapter.base_layer.weight.dtype for adapter in adapters(model).values()} == {torch.float32}
    assert model(X.float()).dtype == torch.float32


@every
def test_unloading_leaves_plain_layers_when_merged(method: Method) -> None:
    model = adapted(method)
    y = model(X)
    model = unload(merge(model))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear, nn.LayerNorm]
    assert (model(X) - y).abs().max() <= 1e-12 * y.abs().max()
    assert all(p.requires_grad for p in model.parameters())
    assert len(model.state_dict()) == len(net().state_dict())


@every
def test_unloading_unmerged_leaves_what_disabled_computes(method: Method) -> None:
    model = adapted(method)
    with disabled(model):
        base = model(X)
    model = unload(model)
    assert torch.allclose(model(X), base, rtol=1e-12, atol=1e-12)
    assert type(model[0]) is (nn.Linear if isinstance(method, LoftQ) else QuantizedLinear)
    assert all(p.requires_grad for p in model.parameters())


def test_rounding_the_merged_weight_again_loses_a_small_adapter() -> None:
    model = inject(nn.Sequential(nn.Linear(128, 128)), QLoRA(rank=4), ["0"])
    nn.init.normal_(model[0].lora_B, std=1e-3)
    delta, weight = model[0].delta(), model[0].base_layer.weight
    again = dequantize_blockwise(quantize_weight(weight + delta))
    lost = (again - weight - delta).norm() / delta.norm()
    kept = (model[0].merged_weight() - weight - delta).norm() / delta.norm()
    assert lost > 0.9
    assert kept < 1e-5


# --- files


@every
def test_saved_and_loaded_is_equal(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    again = net() if isinstance(method, LoftQ) else quantize_base(net(), TARGETS, method=method)
    again = load_adapter(again, tmp_path)
    assert torch.equal(again(X), model(X))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("cls", [QLoRA, LoftQ])
def test_dropout_is_that_of_the_method_and_of_its_file(cls: type[QLoRA], tmp_path: Path) -> None:
    model = adapted(cls(rank=3, lora_dropout=0.25))
    assert [adapter.dropout for adapter in adapters(model).values()] == [0.25, 0.25]
    save_adapter(model, tmp_path)
    again = load_adapter(net(), tmp_path)
    assert [adapter.dropout for adapter in adapters(again).values()] == [0.25, 0.25]


def test_a_file_of_qlora_is_one_of_lora_and_loads_onto_any_base(tmp_path: Path) -> None:
    model = adapted(QLoRA(rank=3, alpha=5))
    save_adapter(model, tmp_path)
    plain = load_adapter(net(), tmp_path)
    assert type(plain[0]) is LoRALinear
    assert all(torch.equal(x, adapter_state_dict(plain)[name]) for name, x in adapter_state_dict(model).items())


@pytest.mark.parametrize("method", [LoRA(rank=3), RSLoRA(rank=3)], ids=str)
def test_lora_adapts_a_quantized_layer(method: Method) -> None:
    torch.manual_seed(5)
    model = inject(quantize_base(net(), TARGETS), method, TARGETS)
    assert torch.equal(model(X), unload(copy.deepcopy(model))(X))
    assert type(unload(merge(model))[0]) is nn.Linear


# --- LoftQ


@pytest.mark.parametrize("steps", range(1, 6))
def test_loftq_is_better_than_quantizing_alone_and_each_half_step_is_the_best(steps: int) -> None:
    weight = random(48, 64)

    def quantize(x: Tensor) -> Tensor:
        return dequantize_blockwise(quantize_blockwise(x, codebook=nf4_codebook()))

    q, a, b = loftq_factors(weight, 8, quantize=quantize, scale=2.0, steps=steps)
    error, alone = (weight - q - 2 * b @ a).norm(), (weight - quantize(weight)).norm()
    assert error < alone
    singular = torch.linalg.svdvals(weight - q)
    assert torch.allclose(error, singular[8:].norm())  # no factors of rank 8 do better
    if steps == 1:
        assert torch.equal(q, quantize(weight))
        assert torch.allclose(error.square(), alone.square() - singular[:8].square().sum())
    else:
        _, a, b = loftq_factors(weight, 8, quantize=quantize, scale=2.0, steps=steps - 1)
        assert torch.allclose(q, quantize(weight - 2 * b @ a))


def test_loftq_starts_the_same_for_every_scale() -> None:
    one, two = (inject(net(), LoftQ(rank=3, alpha=alpha, loftq_iter=2), TARGETS) for alpha in (3, 12))
    assert torch.allclose(one(X), two(X), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(one[0].lora_A, two[0].lora_A)


# --- bytes


def test_stored_bytes_are_counted_once_and_by_kind() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and "layers" in name]
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    before = stored_bytes(model)
    assert before.quantized == before.frozen - sum(b.nbytes for b in model.buffers()) == 0
    assert before.trained == 4 * sum(p.numel() for p in model.parameters())
    model = inject(model, QLoRA(rank=4), ["*.layers.*"])
    after = stored_bytes(model)
    blocks = weights // 64
    seconds = sum(-(-model.get_submodule(name).base_layer.codes.numel() * 2 // 64 // 256) for name in names)
    assert after.quantized == weights // 2 + blocks + 4 * seconds + 4 * len(names)
    assert after.trained == sum(p.nbytes for p in trainable(model).values())
    assert after.frozen == before.frozen + before.trained - 4 * weights


# --- errors: nothing is half injected


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (QLoRA(rank=9), "0: rank is 9, expected at most 8"),
        (LoftQ(rank=9), "0: rank is 9, expected at most 8"),
        (QLoRA(rank=2), "2: x has 1 numbers that are not finite"),
        (LoftQ(rank=2), "2: x has 1 numbers that are not finite"),
    ],
    ids=str,
)
def test_nothing_is_half_injected(method: Method, message: str) -> None:
    model = net()
    model[2].weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match=message):
        inject(model, method, TARGETS)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear, nn.LayerNorm]
    assert all(p.requires_grad for p in model.parameters())


def test_bad_settings_and_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        QLoRA(rank=0)
    with pytest.raises(ValueError, match="block is 0, expected at least 1"):
        QLoRA(block=0)
    for make in (lambda: QLoRA(quant_type="int4"), lambda: quantize_weight(torch.ones(8, 8), quant_type="int4")):
        with pytest.raises(ValueError, match="quant_type is 'int4', expected one of nf4, fp4"):
            make()
    with pytest.raises(ValueError, match="loftq_iter is 0, expected at least 1"):
        LoftQ(loftq_iter=0)
    with pytest.raises(ValueError, match="matches 1, a Tanh, which QLoRA does not adapt"):
        inject(net(), QLoRA(), ["1"])
    with pytest.raises(ValueError, match="target 'q_proj' matches no module that can be adapted: QLoRA adapts 0, 2"):
        quantize_base(net(), ["q_proj"])
    with pytest.raises(ValueError, match="matches 0, a QuantizedLinear, which LoftQ does not adapt"):
        inject(quantize_base(net(), ["0"]), LoftQ(), ["0"])
    with pytest.raises(ValueError, match="matches 0, a QuantizedLinear, which MiSS does not adapt"):
        inject(quantize_base(net(), ["0"]), MiSS(rank=2), ["0"])
    with pytest.raises(ValueError, match="the model has an adapter already, 0"):
        quantize_base(inject(net(), QLoRA(rank=2), ["0"]), ["2"])
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    for quantize in (
        lambda model: inject(model, QLoRA(rank=2), ["lm_head"]),
        lambda model: quantize_base(model, ["lm_head"]),
    ):
        model = LlamaForCausalLM(config)
        with pytest.raises(ValueError, match=r"embed_tokens\.weight and lm_head\.weight are one tensor: replacing one"):
            quantize(model)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert all(p.requires_grad for p in model.parameters())
    save_adapter(adapted(LoftQ(rank=3)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["loftq_config"]["loftq_bits"] = 8
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="asks for loftq_bits = 8, expected 4"):
        load_adapter(net(), tmp_path)


@pytest.mark.parametrize("method", [QLoRA(rank=2), LoftQ(rank=2)], ids=str)
def test_a_layer_in_half_precision_makes_weights_of_its_own_dtype(method: Method) -> None:
    model = inject(nn.Sequential(nn.Linear(64, 64)).bfloat16(), method, ["0"])
    assert model[0].base_layer.weight.dtype == torch.bfloat16
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert model(torch.ones(1, 64).bfloat16()).dtype == torch.bfloat16
    assert merge(model)[0].base_layer.weight.dtype == torch.bfloat16
