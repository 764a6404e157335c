"""Laying matrices out for decoding changes where numbers lie, and nothing else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

from llm_study.core.config import GPT2Config, LlamaConfig, Qwen2Config
from llm_study.generation import generate
from llm_study.models.auto import from_pretrained
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM, Qwen2ForCausalLM
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import GatedFeedForward, RMSNorm
from llm_study.nn.layout import lay_out_for_decoding
from llm_study.peft.base import inject, merge, trainable, unload, unmerge
from llm_study.peft.lora import LoRA

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def scattered(model: nn.Module) -> nn.Module:
    """Return the model in float64 with weights and biases that are all different."""
    torch.manual_seed(0)
    for p in model.double().parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def models() -> list[nn.Module]:
    gpt2 = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return [
        LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
        LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)),
        Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)),
        GPT2ForCausalLM(gpt2),
    ]


@pytest.mark.parametrize("which", range(4))
def test_parameters_logits_and_gradients_stay(which: int) -> None:
    plain = scattered(models()[which])
    laid = copy.deepcopy(plain)
    lay_out_for_decoding(laid)
    ids = torch.randint(97, (2, 9))
    before, after = dict(plain.named_parameters()), dict(laid.named_parameters())
    assert list(before) == list(after)
    for name, p in before.items():
        assert torch.equal(p, after[name]), name
    with torch.no_grad():
        assert torch.allclose(laid(ids), plain(ids), rtol=0, atol=1e-12)
    for model in (plain, laid):
        model(ids).square().mean().backward()
    for name, p in before.items():
        assert torch.allclose(after[name].grad, p.grad, rtol=1e-9, atol=1e-12), name
    assert torch.equal(generate(laid, ids, max_new_tokens=8), generate(plain, ids, max_new_tokens=8))


def test_layers_that_widen_lie_column_by_column_and_those_of_one_input_side_by_side() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    lay_out_for_decoding(model)
    layer = model.model.layers[0]
    q, k, v = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv")
    assert q.stride() == k.stride() == v.stride() == (1, 32 + 16 + 16)
    assert [x.data_ptr() - q.data_ptr() for x in (k, v)] == [4 * 32, 4 * 48]
    assert layer.self_attn.o_proj.weight.stride() == (1, 32)  # a square
    gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
    assert gate.stride() == up.stride() == (1, 2 * 64)
    assert up.data_ptr() - gate.data_ptr() == 4 * 64
    assert layer.mlp.down_proj.weight.stride() == (64, 1)  # it narrows
    assert model.lm_head.weight.stride() == (1, 97)
    before = [p.data_ptr() for p in model.parameters()]
    lay_out_for_decoding(model)
    assert [p.data_ptr() for p in model.parameters()] == before  # nothing is copied that lies right already


def attention(**options: object) -> tuple[MultiHeadAttention, Tensor]:
    layer = scattered(MultiHeadAttention(8, 4, n_kv_heads=2, **options))
    lay_out_for_decoding(layer)
    return layer, torch.randn(2, 5, 8, dtype=torch.float64)


class Products(TorchFunctionMode):
    """Counts the calls of F.linear."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.linear
        return func(*args, **(kwargs or {}))


def products(layer: nn.Module, *inputs: Tensor) -> int:
    """Return how many products with a matrix a module makes when it is called."""
    with Products() as counted:
        layer(*inputs)
    return counted.count


def test_one_product_stands_for_three_only_where_nothing_is_trained() -> None:
    layer, x = attention()
    assert products(layer, x) == 4
    with torch.no_grad():
        assert products(layer, x) == 2  # the other is the output projection
        assert products(layer, x, x.clone()) == 4  # keys and values of another sequence
    with torch.inference_mode():
        assert products(layer, x) == 2


def test_one_product_stands_for_gates_and_what_they_gate() -> None:
    layer = scattered(GatedFeedForward(8, 12, activation=F.silu, bias=True))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = layer(x)
    lay_out_for_decoding(layer)
    assert products(layer, x) == 3
    with torch.no_grad():
        assert products(layer, x) == 2
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
        layer.up_proj.weight.mul_(2)
        layer.gate_proj.bias = nn.Parameter(torch.randn_like(layer.gate_proj.bias))
        assert products(layer, x) == 3
        twin = copy.deepcopy(layer)
        lay_out_for_decoding(twin)
        assert (products(twin, x), products(copy.deepcopy(twin), x)) == (2, 3)
        assert torch.allclose(twin(x), layer(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_hooks_are_called() -> None:
    layer, x = attention()
    seen: list[Tensor] = []
    hook = layer.k_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    layer(x)
    assert torch.allclose(seen[0], x @ layer.k_proj.weight.T)
    hook.remove()
    assert products(layer, x) == 2
    prune.custom_from_mask(
        layer.v_proj, "weight", torch.eye(4, 8)
    )  # a hook makes the weight, which is no parameter any more
    pruned = layer.v_proj.weight
    found = layer(x)
    prune.remove(layer.v_proj, "weight")
    assert torch.equal(layer.v_proj.weight, pruned)
    assert torch.allclose(layer(x), found)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_before_or_after(dtype: torch.dtype) -> None:
    plain = scattered(MultiHeadAttention(8, 4, n_kv_heads=2, bias=True)).to(dtype)
    before, after = copy.deepcopy(plain), copy.deepcopy(plain).double()
    lay_out_for_decoding(before)
    lay_out_for_decoding(after)
    after.to(dtype)
    x = torch.randn(2, 5, 8).to(dtype)
    assert (products(before, x), products(after, x)) == (2, 4)
    lay_out_for_decoding(after)
    assert products(after, x) == 2
    for layer in (before, after):
        assert {p.dtype for p in layer.parameters()} == {dtype}
        for name, p in plain.named_parameters():
            assert torch.equal(p, layer.get_parameter(name)), name
        assert torch.allclose(layer(x), plain(x), rtol=0.02, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_is_loaded_from_what_was_laid_out_and_into_it(assign: bool) -> None:
    laid, x = attention(bias=True)
    other = MultiHeadAttention(8, 4, n_kv_heads=2, bias=True).double()
    state = {name: p.clone() for name, p in other.state_dict().items()}
    other.load_state_dict(laid.state_dict())
    assert torch.allclose(other(x), laid(x))
    laid.load_state_dict(state, assign=assign)
    assert products(laid, x) == (4 if assign else 2)  # new tensors lie where they were made
    other.load_state_dict(state)
    assert torch.allclose(laid(x), other(x))


@torch.no_grad()
def test_weights_that_layers_share_stay_shared() -> None:
    first, second = (scattered(MultiHeadAttention(8, 4)) for _ in range(2))
    second.q_proj.weight = first.q_proj.weight  # in two modules
    second.v_proj.weight = second.k_proj.weight  # twice in one
    plain, x = copy.deepcopy(nn.ModuleList([first, second])), torch.randn(2, 5, 8, dtype=torch.float64)
    both = nn.ModuleList([first, second])
    lay_out_for_decoding(both)
    assert second.q_proj.weight is first.q_proj.weight
    assert second.v_proj.weight is second.k_proj.weight
    for model in (plain, both):
        model[1].q_proj.weight.mul_(2)
        model[1].k_proj.weight.add_(1)
    for a, b in zip(both, plain, strict=True):
        assert torch.allclose(a(x), b(x))


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "k_proj", "v_proj", "up_proj"]])
def test_adapters_go_in_merge_and_come_out_after_laying_out(targets: list[str]) -> None:
    plain = scattered(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)))
    laid = copy.deepcopy(plain)
    lay_out_for_decoding(laid)
    ids = torch.randint(97, (2, 9))
    with torch.no_grad():
        before = plain(ids)
        for model in (plain, laid):
            inject(model, LoRA(rank=2), targets)
            for i, p in enumerate(trainable(model).values()):
                nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(i))
        adapted = plain(ids)
        assert not torch.allclose(adapted, before)
        assert torch.allclose(laid(ids), adapted)
        lay_out_for_decoding(laid)  # around the adapters
        assert torch.allclose(laid(ids), adapted)
        assert torch.allclose(merge(laid)(ids), adapted)
        assert torch.allclose(unmerge(laid)(ids), adapted)
        assert torch.allclose(unload(merge(laid))(ids), adapted)
        attend = [module for module in laid.modules() if isinstance(module, MultiHeadAttention)]
        x = torch.randn(1, 3, 32, dtype=torch.float64)
        assert [products(module, x) for module in attend] == [4, 4]  # merged weights are new tensors
        lay_out_for_decoding(laid)
        assert [products(module, x) for module in attend] == [2, 2]
        assert torch.allclose(laid(ids), adapted)


@torch.no_grad()
def test_an_adapter_that_is_taken_out_unmerged_leaves_one_product() -> None:
    model = nn.Sequential(attention()[0])
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    before = model(x)
    inject(model, LoRA(rank=2), ["q_proj"])
    assert products(model, x) > 4
    assert torch.allclose(model(x), before)  # the identity
    assert torch.equal(unload(unmerge(merge(model)))(x), before)
    assert products(model, x) == 2


@pytest.mark.parametrize("bias", [False, True])
def test_values_follow_the_parameters_whatever_is_done_to_them(bias: bool) -> None:
    layer, x = attention(bias=bias, q_norm=RMSNorm(2).double(), k_norm=RMSNorm(2).double())

    def expected() -> Tensor:
        with torch.enable_grad():  # the three products
            return layer(x).detach()

    with torch.no_grad():
        before = layer(x)
        assert torch.allclose(before, expected(), rtol=0, atol=1e-12)
        layer.v_proj.weight.mul_(2)  # in place, as an optimizer does
        if bias:
            layer.v_proj.bias.add_(1)
        assert torch.allclose(layer(x), expected(), rtol=0, atol=1e-12)
        assert not torch.allclose(layer(x), before)
        layer.load_state_dict({name: x + 0.1 for name, x in layer.state_dict().items()})
        assert torch.allclose(layer(x), expected(), rtol=0, atol=1e-12)
        layer.q_proj.weight = nn.Parameter(torch.randn_like(layer.q_proj.weight))  # no longer in the one matrix
        assert torch.allclose(layer(x), expected(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_a_new_tensor_in_any_of_the_three_is_seen(name: str) -> None:
    layer, x = attention(bias=True)
    getattr(layer, name).weight = nn.Parameter(torch.randn_like(getattr(layer, name).weight))
    with torch.no_grad():
        one = layer(x)
    assert torch.allclose(one, layer(x), rtol=0, atol=1e-12)
    layer, x = attention(bias=True)
    getattr(layer, name).bias.data = torch.randn_like(getattr(layer, name).bias)
    with torch.no_grad():
        one = layer(x)
    assert torch.allclose(one, layer(x), rtol=0, atol=1e-12)


def test_another_dtype_a_copy_and_a_replaced_layer_are_honored() -> None:
    layer, x = attention()
    with torch.no_grad():
        twin = copy.deepcopy(layer)
        twin.q_proj.weight.zero_()
        assert torch.equal(twin.q_proj.weight, torch.zeros_like(twin.q_proj.weight))
        assert not torch.allclose(twin(x), layer(x))
        layer.v_proj = nn.Sequential(layer.v_proj, nn.ReLU())
        one = layer(x)
    assert torch.allclose(one, layer(x), rtol=0, atol=1e-12)
    single, x = attention()
    with torch.no_grad():
        assert single.float()(x.float()).dtype == torch.float32


def test_a_folder_saved_afterwards_holds_the_same(tmp_path: Path) -> None:
    model = scattered(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))).float()
    lay_out_for_decoding(model)
    model.save_pretrained(tmp_path)
    read = from_pretrained(tmp_path)
    for name, x in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], x), name
    stored, held = (tmp_path / "model.safetensors").stat().st_size, sum(x.nbytes for x in model.parameters())
    assert held < stored < held + 10_000  # each part once, without the rest of the matrix that it lies in
