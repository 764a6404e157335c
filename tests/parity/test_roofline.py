"""Counts of core.roofline against PyTorch: parameters that exist, FLOPs that are run, tensors that autograd keeps."""

import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from llm_study.core import roofline as r

# --- the models, written once more in torch; LayerNorm without bias stands for RMSNorm, which has as many parameters


class Scores(nn.Module):
    """What lies between the projections of attention: ``(B, K, G * T, Dh)`` queries, G of them for each key."""

    dropout = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, dim=-1)
        return (torch.native_dropout(p, 0.1, True)[0] if self.dropout else p) @ v


class GroupedAttention(nn.Module):
    def __init__(self, c: r.Attention, D: int) -> None:
        super().__init__()
        self.H, self.K, self.Dh = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads, c.head_dim
        self.q_proj = nn.Linear(D, self.H * self.Dh, bias=c.qkv_bias)
        self.k_proj = nn.Linear(D, self.K * self.Dh, bias=c.qkv_bias)
        self.v_proj = nn.Linear(D, self.K * self.Dh, bias=c.qkv_bias)
        self.o_proj = nn.Linear(self.H * self.Dh, D, bias=c.output_bias)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.Dh, bias=False) if c.qk_norm else nn.Identity() for _ in "qk")
        widths = (self.H * self.Dh, self.K * self.Dh)
        self.wide_q_norm, self.wide_k_norm = (
            nn.LayerNorm(width, bias=False) if c.wide_qk_norm else nn.Identity() for width in widths
        )
        self.scores: Callable[..., Tensor] = Scores()

    def forward(self, x: Tensor, past: int) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.wide_q_norm(self.q_proj(x)).view(B, T, self.H, self.Dh)).transpose(1, 2)
        k = self.k_norm(self.wide_k_norm(self.k_proj(x)).view(B, T, self.K, self.Dh)).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.K, self.Dh).transpose(1, 2)
        if past:
            k, v = (torch.cat([torch.randn(B, self.K, past, self.Dh), new], dim=2) for new in (k, v))
        y = self.scores(q.reshape(B, self.K, -1, self.Dh), k, v).view(B, self.H, T, self.Dh)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Latent(nn.Module):
    def __init__(self, c: r.LatentAttention, D: int) -> None:
        super().__init__()
        self.c, H = c, c.num_attention_heads
        width = H * (c.qk_nope_head_dim + c.qk_rope_head_dim)
        low = c.q_lora_rank
        if low is None:
            self.q: nn.Module = nn.Linear(D, width, bias=False)
        else:
            down, up = nn.Linear(D, low, bias=False), nn.Linear(low, width, bias=False)
            self.q = nn.Sequential(down, nn.LayerNorm(low, bias=False), up)
        self.kv_a = nn.Linear(D, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_norm = nn.LayerNorm(c.kv_lora_rank, bias=False)
        self.kv_b = nn.Linear(c.kv_lora_rank, H * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o = nn.Linear(H * c.v_head_dim, D, bias=False)
        self.scores = Scores()

    def forward(self, x: Tensor, past: int) -> Tensor:
        c, (B, T, _), H = self.c, x.shape, self.c.num_attention_heads
        q = self.q(x).view(B, T, H, -1).transpose(1, 2)
        latent, k_rope = self.kv_a(x).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        latent = self.kv_norm(latent)
        if past:
            return self.absorbed(q, torch.cat([latent, k_rope], dim=-1), past)
        kv = self.kv_b(latent).view(B, T, H, -1).transpose(1, 2)
        k, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        k = torch.cat([k, k_rope[:, None].expand(B, H, T, -1)], dim=-1)
        return self.o(self.scores(q, k, v).transpose(1, 2).reshape(B, T, -1))

    def absorbed(self, q: Tensor, new: Tensor, past: int) -> Tensor:
        """Decode against the cached latent vectors, which are never widened."""
        c, (B, H, T, _) = self.c, q.shape
        cache = torch.cat([torch.randn(B, past, new.shape[-1]), new], dim=1)[:, None]  # (B, 1, S, latent + rope)
        widen = self.kv_b.weight.view(H, -1, c.kv_lora_rank)
        w_k, w_v = widen.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
        nope, rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        q = torch.cat([nope @ w_k, rope], dim=-1).reshape(B, 1, H * T, -1)
        y = self.scores(q, cache, cache[..., : c.kv_lora_rank]).view(B, H, T, -1) @ w_v.mT
        return self.o(y.transpose(1, 2).reshape(B, T, -1))


class Dense(nn.Module):
    def __init__(self, c: r.FeedForward, D: int) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(*s, bias=c.bias) for s in ((D, c.intermediate_size), (c.intermediate_size, D)))
        self.gate = nn.Linear(D, c.intermediate_size, bias=c.bias) if c.gated else None

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    def __init__(self, c: r.Experts, D: int) -> None:
        super().__init__()
        self.active = c.num_experts_per_tok
        self.router = nn.Linear(D, c.num_experts, bias=False)
        self.experts = nn.ModuleList(Dense(c.expert, D) for _ in range(c.num_experts))
        self.shared = Dense(c.shared, D) if c.shared else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = torch.softmax(self.router(tokens), dim=-1).topk(self.active)
        y = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            y = y.index_add(0, token, weights[token, place, None] * expert(tokens[token]))
        return y.view_as(x)


class Block(nn.Module):
    dropout = False

    def __init__(self, c: r.Layer, D: int, norm_bias: bool) -> None:
        super().__init__()
        a, f = c.attention, c.feed_forward
        self.norms = nn.ModuleList(nn.LayerNorm(D, bias=norm_bias) for _ in range(c.norms))
        self.attention = GroupedAttention(a, D) if isinstance(a, r.Attention) else Latent(a, D)
        self.feed_forward = Dense(f, D) if isinstance(f, r.FeedForward) else Mixture(f, D)

    def forward(self, x: Tensor, past: int) -> Tensor:
        drop = (lambda y: torch.native_dropout(y, 0.1, True)[0]) if self.dropout else (lambda y: y)
        before_attention, before_feed_forward, *after = self.norms
        after_attention, after_feed_forward = after or (nn.Identity(), nn.Identity())
        x = x + drop(after_attention(self.attention(before_attention(x), past)))
        return x + drop(after_feed_forward(self.feed_forward(before_feed_forward(x))))


class Model(nn.Module):
    dropout = False
    call_block = staticmethod(lambda block, x, past: block(x, past))

    def __init__(self, c: r.Transformer) -> None:
        super().__init__()
        self.embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.positions = nn.Embedding(c.learned_positions, c.hidden_size) if c.learned_positions else None
        self.blocks = nn.ModuleList(Block(layer, c.hidden_size, c.norm_bias) for layer in c.layers)
        self.norm = nn.LayerNorm(c.hidden_size, bias=c.norm_bias)
        self.head: nn.Module = nn.Linear(c.hidden_size, c.vocab_size, bias=c.head == "masked")
        if c.tie_word_embeddings:
            self.head.weight = self.embedding.weight
        if c.head == "masked":
            square, norm = nn.Linear(c.hidden_size, c.hidden_size), nn.LayerNorm(c.hidden_size, bias=c.norm_bias)
            self.head = nn.Sequential(OrderedDict(square=square, act=nn.GELU(), head_norm=norm, matrix=self.head))
        if c.head == "none":
            self.head = nn.Identity()

    def forward(self, ids: Tensor, past: int = 0) -> Tensor:
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1]))
        x = torch.native_dropout(x, 0.1, True)[0] if self.dropout else x
        for block in self.blocks:
            x = self.call_block(block, x, past)
        return self.head(self.norm(x))


def with_dropout(model: Model) -> Model:
    for module in model.modules():
        if isinstance(module, Model | Block | Scores):
            module.dropout = True
    return model


# --- small models, one for each kind of part; no two sizes are the same

heads = r.Attention(num_attention_heads=6, head_dim=5)
biased = r.Attention(num_attention_heads=4, head_dim=7, qkv_bias=True, output_bias=True)
qkv_biased = r.Attention(num_attention_heads=4, head_dim=7, num_key_value_heads=1, qkv_bias=True)
grouped = r.Attention(num_attention_heads=6, head_dim=5, num_key_value_heads=2, qk_norm=True)
wide_normed = r.Attention(num_attention_heads=6, head_dim=5, num_key_value_heads=2, wide_qk_norm=True)
latent = r.LatentAttention(
    num_attention_heads=3, kv_lora_rank=8, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7, q_lora_rank=9
)
direct = r.LatentAttention(num_attention_heads=3, kv_lora_rank=8, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7)
wide = r.FeedForward(intermediate_size=37, bias=True)
gated = r.FeedForward(intermediate_size=29, gated=True)
both = r.FeedForward(intermediate_size=29, gated=True, bias=True)
mixture = r.Experts(expert=gated, num_experts=5, num_experts_per_tok=2)
sharing = r.Experts(expert=both, num_experts=5, num_experts_per_tok=3, shared=r.FeedForward(intermediate_size=11))


def model(
    *parts: tuple[r.Attention | r.LatentAttention, r.FeedForward | r.Experts], norms: int = 2, **more: bool | int | str
) -> r.Transformer:
    layers = tuple(r.Layer(attention=a, feed_forward=f, norms=norms) for a, f in parts)
    return r.Transformer(vocab_size=53, hidden_size=24, layers=layers, **more)


SMALL = {
    "heads": model((heads, wide), (heads, wide)),
    "gpt": model((biased, wide), (biased, wide), tie_word_embeddings=True, learned_positions=31, norm_bias=True),
    "tied head": model((heads, gated), tie_word_embeddings=True),
    "qkv bias": model((qkv_biased, both)),
    "grouped heads": model((grouped, gated), (grouped, gated)),
    "norms over all heads": model((wide_normed, gated)),
    "four norms": model((grouped, gated), (heads, gated), norms=4),
    "masked head": model((biased, wide), norm_bias=True, tie_word_embeddings=True, learned_positions=31, head="masked"),
    "masked head, not tied": model((biased, wide), norm_bias=True, learned_positions=31, head="masked"),
    "no head": model((biased, wide), norm_bias=True, learned_positions=31, head="none"),
    "experts": model((grouped, mixture)),
    "shared expert": model((heads, wide), (grouped, sharing)),
    "latent": model((latent, gated), (latent, sharing)),
    "latent, direct queries": model((direct, gated)),
}
DENSE = ["heads", "gpt", "tied head", "qkv bias", "grouped heads", "norms over all heads", "four norms"]
every_model = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
every_dense_model = pytest.mark.parametrize("config", [SMALL[name] for name in DENSE], ids=DENSE)


def counted(torch_model: Model, ids: Tensor, past: int = 0) -> r.Flops:
    """Return the FLOPs of a forward pass that torch counts, by part."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch_model(ids, past)
    found = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    by_part = {
        last: sum(n for name, n in found.items() if name.split(".")[-1] == last)
        for last in ("attention", "scores", "feed_forward", "head")
    }
    by_part["attention"] -= by_part["scores"]
    result = r.Flops(**by_part)
    assert result.total == counter.get_total_flops()
    return result


# --- parameters


@every_model
def test_parameters_are_those_of_the_modules(config: r.Transformer) -> None:
    built, found = Model(config), r.parameters(config)
    sizes = {name: p.numel() for name, p in built.named_parameters()}  # a tied matrix once
    norms = sum(n for name, n in sizes.items() if "norm" in name or ".q.1." in name)
    assert found.total == sum(sizes.values())
    assert found.embedding == sum(n for name, n in sizes.items() if name.startswith(("embedding", "positions")))
    assert found.feed_forward == sum(n for name, n in sizes.items() if ".feed_forward." in name)
    assert found.norms == norms
    assert found.head == sum(n for name, n in sizes.items() if name.startswith("head.") and "norm" not in name)


@pytest.mark.parametrize("name", r.published_names())
def test_published_models_have_as_many_parameters_as_their_modules(name: str) -> None:
    config = r.published(name)
    kinds = {layer: config.layers.count(layer) for layer in set(config.layers)}  # equal layers are built once
    with torch.device("meta"):
        outside = Model(r.Transformer(**{**vars(config), "layers": config.layers[:1]}))
        blocks = {layer: Block(layer, config.hidden_size, config.norm_bias) for layer in kinds}
    size = {layer: sum(p.numel() for p in block.parameters()) for layer, block in blocks.items()}
    rest = sum(p.numel() for p in outside.parameters()) - size[config.layers[0]]
    assert r.parameters(config).total == rest + sum(size[layer] * number for layer, number in kinds.items())


# --- FLOPs


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 10)])
@every_model
def test_forward_flops_are_those_that_torch_counts(config: r.Transformer, batch: int, length: int) -> None:
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length))
    assert r.forward_flops(config, length, batch=batch) == counted(Model(config), ids)


@every_model
def test_decoding_flops_are_those_that_torch_counts(config: r.Transformer) -> None:
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (3, 1))
    found = counted(Model(config), ids, past=12)
    assert found == r.decoding_flops(config, 13, batch=3)


@every_model
def test_training_flops_are_those_that_torch_counts(config: r.Transformer) -> None:
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, 7))
    with FlopCounterMode(display=False) as counter:
        Model(config)(ids).square().sum().backward()
    assert counter.get_total_flops() == r.training_flops(config, 7, batch=2).total


@every_dense_model
def test_recomputing_costs_what_torch_counts(config: r.Transformer) -> None:
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, 7))
    again = functools.partial(checkpoint, use_reentrant=False)
    full, selective = Model(config), Model(config)
    full.call_block = again
    for block in selective.blocks:
        block.attention.scores.forward = functools.partial(again, block.attention.scores.forward)
    for recompute, built in (("full", full), ("selective", selective)):
        with FlopCounterMode(display=False) as counter, set_checkpoint_early_stop(False):
            built(ids).square().sum().backward()
        expected = r.training_flops(config, 7, batch=2, recompute=recompute)
        assert counter.get_total_flops() == expected.total


# --- activations


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@every_dense_model
def test_activations_are_the_tensors_that_autograd_keeps(
    config: r.Transformer, dtype: torch.dtype, dropout: bool
) -> None:
    torch.manual_seed(0)
    built = Model(config).to(dtype)
    if dropout:
        with_dropout(built)
    own = {p.untyped_storage().data_ptr() for p in built.parameters()}
    kept: dict[int, Tensor] = {}  # each memory once; the tensors are held, lest their memory is used again

    def keep(x: Tensor) -> Tensor:
        wide = x.ndim > 1 and x.shape[-1] > 1  # means, variances and the weight of the loss are not
        if wide and x.dtype != torch.int64:
            kept.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    ids = torch.randint(config.vocab_size, (3, 10))
    with saved_tensors_hooks(keep, lambda x: x):
        F.cross_entropy(built(ids).float().flatten(0, 1), ids.flatten())
    found = sum(x.numel() * x.element_size() for place, x in kept.items() if place not in own)
    assert found == r.activation_bytes(config, 10, batch=3, bytes_per_number=dtype.itemsize, dropout=dropout)
