"""Laying matrices out for decoding changes where numbers lie, and nothing else."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llm_study.core.config import GPT2Config, LlamaConfig, Qwen2Config
from llm_study.generation import generate
from llm_study.models.auto import from_pretrained
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM, Qwen2ForCausalLM
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import RMSNorm
from llm_study.nn.layout import lay_out_for_decoding

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


def test_layers_that_widen_lie_column_by_column_and_the_three_side_by_side() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    lay_out_for_decoding(model)
    layer = model.model.layers[0]
    q, k, v = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv")
    assert q.stride() == k.stride() == v.stride() == (1, 32 + 16 + 16)
    assert [x.data_ptr() - q.data_ptr() for x in (k, v)] == [4 * 32, 4 * 48]
    assert layer.mlp.up_proj.weight.stride() == (1, 64)
    assert layer.mlp.down_proj.weight.stride() == (64, 1)  # it narrows
    assert model.lm_head.weight.stride() == (1, 97)
    before = [p.data_ptr() for p in model.parameters()]
    lay_out_for_decoding(model)
    assert [p.data_ptr() for p in model.parameters()] == before  # nothing is copied that lies right already


def attention(**options: object) -> tuple[MultiHeadAttention, Tensor]:
    layer = scattered(MultiHeadAttention(8, 4, n_kv_heads=2, **options))
    lay_out_for_decoding(layer)
    return layer, torch.randn(2, 5, 8, dtype=torch.float64)


def products(layer: nn.Module, *inputs: Tensor) -> int:
    """Return how many linear layers of a module run when it is called."""
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in layer.modules() if type(m) is nn.Linear]
    layer(*inputs)
    for hook in hooks:
        hook.remove()
    return len(called)


def test_one_product_stands_for_three_only_where_nothing_is_trained() -> None:
    layer, x = attention()
    assert products(layer, x) == 4
    with torch.no_grad():
        assert products(layer, x) == 1  # the output projection
        assert products(layer, x, x.clone()) == 4  # keys and values of another sequence
    with torch.inference_mode():
        assert products(layer, x) == 1


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
