"""Laws of residual connections: what the constants of DeepNorm hold fixed, and where hyper-connections start."""

import math

import pytest
import torch
from torch import Tensor

from llm_study.functional import residual as R
from llm_study.functional.norms import layer_norm, rms_norm


@pytest.mark.parametrize("n", [1, 2, 6, 100, 1000])
def test_constants_are_the_papers(n: int) -> None:
    assert R.deepnorm_constants(n) == pytest.approx(((2 * n) ** 0.25, (8 * n) ** -0.25), rel=1e-12)
    assert R.deepnorm_constants(n, sublayers=3) == pytest.approx(((3 * n) ** 0.25, (12 * n) ** -0.25), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 6, 100, 1000])
@pytest.mark.parametrize("sublayers", [2, 3])
def test_the_sum_over_sublayers_is_one(n: int, sublayers: int) -> None:
    alpha, beta = R.deepnorm_constants(n, sublayers=sublayers)
    assert n * sublayers * 2 * beta**2 / alpha**2 == pytest.approx(1, rel=1e-12)
    assert alpha * beta == pytest.approx(math.sqrt(0.5), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 6), (100, 3), (3, 100)])
def test_the_constants_of_the_encoder_follow_from_those_of_the_decoder(n: int, m: int) -> None:
    alpha, beta = R.deepnorm_encoder_constants(n, m)
    alpha_d, beta_d = R.deepnorm_constants(m, sublayers=3)
    through_cross_attention = m * beta_d**2 / alpha_d
    assert through_cross_attention * 2 * n * 2 * beta**2 / alpha**2 == pytest.approx(1, rel=0.02)  # two digits printed
    assert alpha * beta == pytest.approx(math.sqrt(0.5), rel=0.005)


def test_deepnorm_residual_is_its_definition() -> None:
    torch.manual_seed(0)
    x, branch, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 8), (3, 8), (8,), (8,)))
    expected = layer_norm(2.5 * x + branch, weight, bias, eps=0.1)
    assert torch.equal(R.deepnorm_residual(x, branch, weight, bias, alpha=2.5, eps=0.1), expected)
    assert torch.equal(R.deepnorm_residual(x, branch, alpha=1.0), layer_norm(x + branch))


def network(x: Tensor, weights: list[Tensor], n: int) -> Tensor:
    """Run sublayers with hyper-connections from their starting weights, and return the streams."""
    streams = x.unsqueeze(-2).expand(*x.shape[:-1], n, x.shape[-1])
    for k, w in enumerate(weights):
        read, write, mix = (t.to(x.dtype) for t in R.static_hyper_weights(n, k))
        streams = R.hyper_connection(
            streams, lambda h, w=w: torch.tanh(rms_norm(h) @ w), read=read, write=write, mix=mix
        )
    return streams


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hyper_connections_start_as_plain_residuals(n: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    weights = [torch.randn(8, 8, dtype=torch.float64) for _ in range(6)]
    plain = x
    for w in weights:
        plain = plain + torch.tanh(rms_norm(plain) @ w)
    streams = network(x, weights, n)
    assert streams.shape == (2, 5, n, 8)
    assert torch.allclose(streams, plain.unsqueeze(-2).expand_as(streams), atol=1e-12)


def test_hyper_connection_is_its_matrix() -> None:
    torch.manual_seed(0)
    n, D = 3, 4
    H, read, write, mix = (torch.randn(*shape, dtype=torch.float64) for shape in ((n, D), (n,), (n,), (n, n)))
    out = R.hyper_connection(H, lambda h: h.sin(), read=read, write=write, mix=mix)
    for j in range(n):
        expected = sum(mix[i, j] * H[i] for i in range(n)) + write[j] * torch.sin(sum(read[i] * H[i] for i in range(n)))
        assert torch.allclose(out[j], expected, atol=1e-12)


def test_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    H, read, write, mix = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (3,), (3,), (3, 3))
    )
    assert torch.autograd.gradcheck(
        lambda H, read, write, mix: R.hyper_connection(H, torch.tanh, read=read, write=write, mix=mix),
        (H, read, write, mix),
    )


def test_sublayers_read_in_turn() -> None:
    reads = torch.stack([R.static_hyper_weights(3, k)[0] for k in range(6)])
    assert reads.argmax(-1).tolist() == [0, 1, 2, 0, 1, 2]
    assert (reads.sum(-1) == 1).all()


def test_errors_name_both_numbers() -> None:
    for function in (
        R.deepnorm_constants,
        lambda n: R.deepnorm_encoder_constants(n, 1),
        lambda n: R.static_hyper_weights(n, 0),
    ):
        with pytest.raises(ValueError, match="is 0, expected at least 1"):
            function(0)
    with pytest.raises(ValueError, match="n_decoder_layers is 0"):
        R.deepnorm_encoder_constants(1, 0)
    with pytest.raises(ValueError, match="sublayers is 0"):
        R.deepnorm_constants(1, sublayers=0)
    with pytest.raises(ValueError, match="sublayer is -1, expected at least 0"):
        R.static_hyper_weights(2, -1)
    with pytest.raises(ValueError, match=r"shape of branch is \(4,\).*\(2, 4\)"):
        R.deepnorm_residual(torch.randn(2, 4), torch.randn(4), alpha=1.0)
    two, three, square = torch.ones(2), torch.ones(3), torch.ones(2, 2)
    with pytest.raises(ValueError, match="number of dimensions of streams is 1, expected at least 2"):
        R.hyper_connection(two, torch.tanh, read=two, write=two, mix=square)
    for name in ("read", "write", "mix"):
        weights = {"read": two, "write": two, "mix": square, name: three}
        with pytest.raises(ValueError, match=rf"shape of {name} is \(3,\).*n = 2 streams"):
            R.hyper_connection(torch.randn(2, 4), torch.tanh, **weights)
