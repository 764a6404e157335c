"""Blocks and the whole model of 2017 against PyTorch's layers, with large weights, random norms and every mask."""

import pytest
import torch
from torch import Tensor, nn

from llm_study.functional.attention import causal_mask
from llm_study.functional.positions import sinusoidal
from llm_study.models.transformer import Transformer, TransformerConfig
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import FeedForward, LayerNorm
from llm_study.nn.block import DecoderBlock, EncoderBlock, PostNormResidual, PreNormResidual
from tests.parity.closeness import assert_close

B, T, S, D, H, F = 3, 5, 8, 24, 4, 40
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
both_orders = pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])


def scramble(module: nn.Module) -> None:
    """Make the weights five times as large, and norms and biases random."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.normal_()


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Copy the three projections, which PyTorch keeps in one matrix, and the output projection."""
    projections = (ours.q_proj, ours.k_proj, ours.v_proj, ours.o_proj)
    weights = (*theirs.in_proj_weight.chunk(3), theirs.out_proj.weight)
    biases = (*theirs.in_proj_bias.chunk(3), theirs.out_proj.bias)
    for layer, weight, bias in zip(projections, weights, biases, strict=True):
        layer.load_state_dict({"weight": weight} if layer.bias is None else {"weight": weight, "bias": bias})


def copy_block(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy an encoder or a decoder layer of PyTorch."""
    names = {"attention": "self_attn", "cross_attention": "multihead_attn"}
    parts = [name for name in ("attention", "cross_attention", "feed_forward") if hasattr(ours, name)]
    for number, name in enumerate(parts, start=1):
        part = getattr(ours, name)
        part.norm.load_state_dict(getattr(theirs, f"norm{number}").state_dict())
        if name in names:
            copy_attention(part.sublayer, getattr(theirs, names[name]))
    ours.feed_forward.sublayer.up_proj.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.sublayer.down_proj.load_state_dict(theirs.linear2.state_dict())


def pair(kind: type[EncoderBlock] | type[DecoderBlock], norm_first: bool, dtype: torch.dtype) -> tuple[nn.Module, ...]:
    """Return our block and PyTorch's layer with the same parameters."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer if kind is EncoderBlock else nn.TransformerDecoderLayer
    theirs = layer(D, H, F, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=dtype)
    scramble(theirs)
    residual = PreNormResidual if norm_first else PostNormResidual
    attentions = [MultiHeadAttention(D, H, bias=True) for _ in range(1 if kind is EncoderBlock else 2)]
    feed_forward = FeedForward(D, F, activation=torch.relu)
    ours = kind(*attentions, feed_forward, wrap=lambda f: residual(f, LayerNorm(D, eps=1e-5))).to(dtype)
    copy_block(ours, theirs)
    return ours, theirs


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed random functional of ``y``."""
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    return torch.autograd.grad(y, inputs, direction)


@both_dtypes
@both_orders
def test_encoder_block_matches_torch(norm_first: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair(EncoderBlock, norm_first, dtype)
    x = torch.randn(B, S, D, dtype=dtype, requires_grad=True)
    real = torch.arange(S) < torch.tensor([8, 5, 1])[:, None]
    y = ours(x, mask=real[:, None, None])
    expected = theirs(x, src_key_padding_mask=~real)  # there True forbids
    assert_close(y, expected)
    assert_close(*gradients(y, x), *gradients(expected, x))


@both_dtypes
@both_orders
def test_decoder_block_matches_torch(norm_first: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair(DecoderBlock, norm_first, dtype)
    x = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    memory = torch.randn(B, S, D, dtype=dtype, requires_grad=True)
    real = torch.arange(S) < torch.tensor([8, 5, 1])[:, None]
    y = ours(x, memory, mask=causal_mask(T), memory_mask=real[:, None, None])
    expected = theirs(x, memory, tgt_mask=~causal_mask(T), memory_key_padding_mask=~real)
    assert_close(y, expected)
    for mine, other in zip(gradients(y, x, memory), gradients(expected, x, memory), strict=True):
        assert_close(mine, other)


@both_dtypes
@both_orders
def test_parameter_gradients_of_the_decoder_block_match_torch(norm_first: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair(DecoderBlock, norm_first, dtype)
    x, memory = torch.randn(B, T, D, dtype=dtype), torch.randn(B, S, D, dtype=dtype)
    y, expected = ours(x, memory, mask=causal_mask(T)), theirs(x, memory, tgt_mask=~causal_mask(T))
    parts = (ours.attention, ours.cross_attention, ours.feed_forward)
    mine = gradients(y, *(p for part in parts for p in part.norm.parameters()), *parts[2].sublayer.parameters())
    norms = (theirs.norm1, theirs.norm2, theirs.norm3)
    linears = (*theirs.linear1.parameters(), *theirs.linear2.parameters())
    others = gradients(expected, *(p for norm in norms for p in norm.parameters()), *linears)
    for own, other in zip(mine, others, strict=True):
        assert_close(own, other)


def whole_pair(dtype: torch.dtype) -> tuple[Transformer, nn.Transformer]:
    """Return our model and the two stacks of PyTorch's with the same parameters, and no bias in the attention."""
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=37, d_model=D, n_heads=H, d_ff=F, n_layers=2, dropout=0.0)
    ours = Transformer(config).to(dtype)
    theirs = nn.Transformer(D, H, 2, 2, F, dropout=0.0, batch_first=True, dtype=dtype)
    theirs.encoder.norm = theirs.decoder.norm = None  # the paper has no norm behind the last layer
    scramble(theirs)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_bias.zero_()
                module.out_proj.bias.zero_()
    for blocks, layers in ((ours.encoder, theirs.encoder.layers), (ours.decoder, theirs.decoder.layers)):
        for block, layer in zip(blocks, layers, strict=True):
            copy_block(block, layer)
    return ours, theirs


@both_dtypes
def test_whole_model_matches_torch(dtype: torch.dtype) -> None:
    ours, theirs = whole_pair(dtype)
    source, target = torch.randint(37, (B, S)), torch.randint(37, (B, T))
    source_mask = torch.arange(S) < torch.tensor([8, 5, 2])[:, None]
    target_mask = torch.arange(T) < torch.tensor([4, 5, 3])[:, None]
    table = ours.embedding.weight
    logits = ours(source, target, source_mask=source_mask, target_mask=target_mask)

    def embedded(ids: Tensor) -> Tensor:
        return D**0.5 * table[ids] + sinusoidal(torch.arange(ids.shape[1]), D).to(dtype)

    hidden = theirs(
        embedded(source),
        embedded(target),
        tgt_mask=~causal_mask(T),
        src_key_padding_mask=~source_mask,
        tgt_key_padding_mask=~target_mask,
        memory_key_padding_mask=~source_mask,
    )
    expected = hidden @ table.T
    assert_close(logits, expected)
    assert_close(*gradients(logits, table), *gradients(expected, table))
