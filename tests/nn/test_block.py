"""A sublayer in its residual and norm, and the layers that are built of them."""

import pytest
import torch
from torch import Tensor, nn

from llm_study.functional.attention import causal_mask, padding_mask
from llm_study.nn.attention import MultiHeadAttention
from llm_study.nn.basic import FeedForward, LayerNorm
from llm_study.nn.block import DecoderBlock, EncoderBlock, PostNormResidual, PreNormResidual

D, H = 12, 3
both_residuals = pytest.mark.parametrize("residual", [PreNormResidual, PostNormResidual])
Residual = type[PreNormResidual] | type[PostNormResidual]


def scrambled(module: nn.Module) -> nn.Module:
    """Return the module in float64 with parameters large enough that a forgotten one shows."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def encoder(residual: Residual) -> EncoderBlock:
    torch.manual_seed(0)
    parts = MultiHeadAttention(D, H), FeedForward(D, 20, activation=torch.relu)
    return scrambled(EncoderBlock(*parts, wrap=lambda f: residual(f, LayerNorm(D, eps=1e-5))))


def decoder(residual: Residual) -> DecoderBlock:
    torch.manual_seed(0)
    parts = MultiHeadAttention(D, H), MultiHeadAttention(D, H), FeedForward(D, 20, activation=torch.relu)
    return scrambled(DecoderBlock(*parts, wrap=lambda f: residual(f, LayerNorm(D, eps=1e-5))))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_pre_norm_is_its_equation() -> None:
    sublayer, norm = scrambled(nn.Linear(D, D)), scrambled(nn.LayerNorm(D))
    x = randn(2, 5, D)
    assert torch.equal(PreNormResidual(sublayer, norm)(x), x + sublayer(norm(x)))


def test_post_norm_is_its_equation() -> None:
    sublayer, norm = scrambled(nn.Linear(D, D)), scrambled(nn.LayerNorm(D))
    x = randn(2, 5, D)
    assert torch.equal(PostNormResidual(sublayer, norm)(x), norm(x + sublayer(x)))


@both_residuals
def test_further_arguments_go_to_the_sublayer_as_they_are(residual: Residual) -> None:
    class Sublayer(nn.Module):
        def forward(self, x: Tensor, context: Tensor, *, factor: float) -> Tensor:
            self.seen = context
            return factor * (x + context.sum(1, keepdim=True))

    block, context = residual(Sublayer(), nn.Identity()), randn(2, 3, D)
    x = randn(2, 5, D)
    torch.testing.assert_close(block(x, context, factor=2.0), 3 * x + 2 * context.sum(1, keepdim=True))
    assert block.sublayer.seen is context  # not normalized, not copied


@both_residuals
def test_dropout_falls_on_the_sublayer_and_never_on_the_way_around_it(residual: Residual) -> None:
    torch.manual_seed(0)
    block = residual(nn.Identity(), nn.Identity(), dropout=0.25)
    x = torch.ones(100, 100)
    added = block(x) - x
    values = added.unique()
    assert len(values) == 2
    torch.testing.assert_close(values, torch.tensor([0, 1 / 0.75]))
    assert abs((added == 0).float().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 100**2) ** 0.5
    assert torch.equal(block.eval()(x), 2 * x)


def test_gradient_reaches_the_input_of_pre_norm_even_where_the_sublayer_is_dead() -> None:
    dead = nn.Linear(D, D)
    nn.init.zeros_(dead.weight)
    x = torch.randn(2, 5, D, requires_grad=True)
    direction = torch.randn(2, 5, D)
    (grad,) = torch.autograd.grad(PreNormResidual(dead, nn.LayerNorm(D))(x), x, direction)
    assert torch.equal(grad, direction)


@both_residuals
def test_encoder_block_is_attention_then_feed_forward(residual: Residual) -> None:
    block = encoder(residual)
    x, mask = randn(2, 5, D), padding_mask(torch.tensor([5, 3]), 5)
    assert torch.equal(block(x, mask=mask), block.feed_forward(block.attention(x, mask=mask)))
    assert not torch.allclose(block(x), block(x, mask=mask))


@both_residuals
def test_encoder_block_is_permutation_equivariant(residual: Residual) -> None:
    block, x, order = encoder(residual), randn(2, 5, D), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-12, atol=1e-12)


@both_residuals
def test_decoder_block_looks_at_itself_then_at_the_memory(residual: Residual) -> None:
    block, x, memory = decoder(residual), randn(2, 4, D), randn(2, 7, D)
    mask, memory_mask = causal_mask(4), padding_mask(torch.tensor([7, 2]), 7)
    y = block.cross_attention(block.attention(x, mask=mask), memory, mask=memory_mask)
    assert torch.equal(block(x, memory, mask=mask, memory_mask=memory_mask), block.feed_forward(y))


@both_residuals
def test_decoder_block_with_a_causal_mask_is_causal(residual: Residual) -> None:
    block, x, memory = decoder(residual), randn(2, 6, D), randn(2, 3, D)
    before = block(x, memory, mask=causal_mask(6))
    x[:, 4:] = 100 * randn(2, 2, D)
    after = block(x, memory, mask=causal_mask(6))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).any()


@both_residuals
def test_the_memory_is_a_set(residual: Residual) -> None:
    """Without positions the decoder sees the same, in whatever order the encoder's output stands."""
    block, x, memory, order = decoder(residual), randn(2, 4, D), randn(2, 5, D), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x, memory), block(x, memory[:, order]), rtol=1e-12, atol=1e-12)


@both_residuals
def test_hidden_memory_does_not_matter(residual: Residual) -> None:
    block, x, memory = decoder(residual), randn(2, 4, D), randn(2, 5, D)
    mask = padding_mask(torch.tensor([3, 3]), 5)
    longer = block(x, memory, memory_mask=mask)
    torch.testing.assert_close(longer, block(x, memory[:, :3]), rtol=1e-12, atol=1e-12)


@both_residuals
def test_gradients_reach_every_parameter(residual: Residual) -> None:
    block = decoder(residual)
    x, memory = randn(1, 2, D).requires_grad_(), randn(1, 3, D).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, memory, *_: block(x, memory, mask=causal_mask(2)), (x, memory, *block.parameters()), fast_mode=True
    )


def test_each_sublayer_has_its_own_norm() -> None:
    block = decoder(PreNormResidual)
    norms = [name for name, module in block.named_modules() if isinstance(module, LayerNorm)]
    assert norms == ["attention.norm", "cross_attention.norm", "feed_forward.norm"]
