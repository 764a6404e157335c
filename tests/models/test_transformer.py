"""Laws of the encoder–decoder of 2017: what it sees, what it must not see, how large it is."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llm_study.functional.attention import attention_reference
from llm_study.functional.positions import sinusoidal
from llm_study.models.transformer import Transformer, TransformerConfig

SMALL = {"vocab_size": 19, "d_model": 12, "n_heads": 3, "d_ff": 20, "n_layers": 2}


def model(**changes: float) -> Transformer:
    """Return a small model in float64, in eval mode, with every parameter random."""
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.5)
    return transformer


def ids(*shape: int) -> Tensor:
    return torch.randint(SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(sum(shape)))


def real(lengths: list[int], s: int) -> Tensor:
    return torch.arange(s) < torch.tensor(lengths)[:, None]


def test_shape_and_dtype_of_the_logits() -> None:
    logits = model()(ids(2, 7), ids(2, 5))
    assert (logits.shape, logits.dtype) == ((2, 5, 19), torch.float64)


def test_forward_is_encode_then_decode() -> None:
    transformer, source, target = model(), ids(2, 7), ids(2, 5)
    masks = {"source_mask": real([7, 4], 7), "target_mask": real([3, 5], 5)}
    memory = transformer.encode(source, source_mask=masks["source_mask"])
    assert memory.shape == (2, 7, 12)
    assert torch.equal(transformer(source, target, **masks), transformer.decode(target, memory, **masks))


def test_input_is_scaled_embedding_plus_positions_and_output_is_the_same_table() -> None:
    transformer, source = model(), ids(2, 7)
    inputs, outputs = [], []
    transformer.encoder[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    transformer.decoder[-1].register_forward_hook(lambda *args: outputs.append(args[2]))
    logits = transformer(source, ids(2, 5))
    expected = 12**0.5 * transformer.embedding.weight[source] + sinusoidal(torch.arange(7), 12).double()
    torch.testing.assert_close(inputs[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, outputs[0] @ transformer.embedding.weight.T, rtol=1e-12, atol=1e-12)


def test_decoder_is_causal() -> None:
    transformer, source, target = model(), ids(2, 7), ids(2, 6)
    before = transformer(source, target)
    target[:, 3] = (target[:, 3] + 1) % 19
    after = transformer(source, target)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(-1).any()


def test_every_target_position_sees_every_source_position() -> None:
    transformer, source, target = model(), ids(1, 5), ids(1, 3)
    before = transformer(source, target)
    for position in range(5):
        changed = source.clone()
        changed[0, position] = (source[0, position] + 1) % 19
        assert not torch.isclose(before, transformer(changed, target)).all(-1).any()


def test_padding_does_not_matter() -> None:
    transformer, source, target = model(), ids(2, 7), ids(2, 6)
    batch = transformer(source, target, source_mask=real([7, 4], 7), target_mask=real([6, 3], 6))
    alone = transformer(source[1:, :4], target[1:, :3])
    torch.testing.assert_close(batch[1:, :3], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(batch[:1], transformer(source[:1], target[:1]), rtol=1e-12, atol=1e-12)


def test_encoder_without_positions_is_permutation_equivariant(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, source, order = model(), ids(2, 5), torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(transformer.encode(source[:, order]), transformer.encode(source)[:, order])
    monkeypatch.setattr("llm_study.models.transformer.sinusoidal", lambda t, d: torch.zeros(len(t), d))
    expected = transformer.encode(source)[:, order]
    torch.testing.assert_close(transformer.encode(source[:, order]), expected, rtol=1e-12, atol=1e-12)


def test_base_and_big_model_have_the_parameters_that_the_paper_describes() -> None:
    def count(**sizes: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(TransformerConfig(vocab_size=37_000, **sizes)).parameters())

    assert count() == 63_045_632
    assert count(d_model=1024, d_ff=4096, n_heads=16) == 214_171_648


def test_embeddings_have_size_one_after_scaling() -> None:
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(vocab_size=4000, d_model=64, n_heads=1, d_ff=1, n_layers=1))
    assert (64**0.5 * transformer.embedding.weight).std().item() == pytest.approx(1, abs=0.01)


def test_dropout_in_training_only_and_on_the_embeddings_too() -> None:
    transformer, source, target = model(dropout=0.5), ids(2, 7), ids(2, 5)
    assert torch.equal(transformer(source, target), model(dropout=0.0)(source, target))
    inputs = []
    transformer.encoder[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    transformer.train()(source, target)
    assert 0.3 < (inputs[0] == 0).double().mean().item() < 0.7
    probabilities = {module.p for module in transformer.modules() if isinstance(module, nn.Dropout)}
    assert probabilities == {0.5}


def test_gradients_reach_every_parameter() -> None:
    transformer = model(n_layers=1)
    source, target = ids(1, 3), ids(1, 2)
    assert torch.autograd.gradcheck(
        lambda *_: transformer(source, target).log_softmax(-1), tuple(transformer.parameters()), fast_mode=True
    )


def test_uses_no_other_mathematics_than_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, source, target = model(), ids(2, 7), ids(2, 5)
    fast = transformer(source, target, source_mask=real([7, 4], 7))
    monkeypatch.setattr("llm_study.nn.attention.attention", attention_reference)
    slow = transformer(source, target, source_mask=real([7, 4], 7))
    torch.testing.assert_close(slow, fast, rtol=1e-12, atol=1e-12)


def test_learns_one_pair_by_heart() -> None:
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(**SMALL, dropout=0.0))
    source, target = ids(2, 7), ids(2, 6)
    optimizer = torch.optim.Adam(transformer.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(transformer(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(transformer(source, target[:, :-1]).argmax(-1), target[:, 1:])


def test_cost_is_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_study.nn.attention.attention", attention_reference)  # torch does not count the kernel
    B, S, T, (V, D, _, F_, L) = 2, 7, 5, SMALL.values()
    with FlopCounterMode(display=False) as counter:
        model()(ids(B, S), ids(B, T))
    linear = S * L * (6 * D**2 + 2 * D * F_) + T * L * (6 * D**2 + 2 * D * F_) + T * D * V
    assert counter.get_total_flops() == 2 * B * linear + 4 * B * D * L * (S**2 + T**2 + T * S)


def bad_inputs() -> Iterator[tuple[dict[str, Tensor], str]]:
    good = {"source_ids": ids(2, 7), "target_ids": ids(2, 5)}
    yield {**good, "source_ids": ids(7)}, r"source_ids has shape \(7,\), expected 2 dimensions \(B, T\)"
    yield {**good, "target_ids": ids(2, 5) + 19}, "vocab_size is 19, expected at least .*the largest of target_ids"
    yield {**good, "source_ids": ids(2, 7) - 19}, "smallest of source_ids is -.*, expected at least 0"
    yield {**good, "target_ids": ids(3, 5)}, "batch size of context is 2, batch size of x is 3"
    yield {**good, "source_mask": torch.ones(2, 6, dtype=torch.bool)}, r"shape of source_mask is \(2, 6\).*\(2, 7\)"
    yield {**good, "target_mask": torch.ones(2, 7, dtype=torch.bool)}, r"shape of target_mask is \(2, 7\).*\(2, 5\)"
    yield {**good, "source_mask": torch.ones(2, 7)}, "source_mask has dtype torch.float32, expected torch.bool"


@pytest.mark.parametrize(("inputs", "message"), list(bad_inputs()))
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(**inputs)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        ({"n_layers": 0}, "n_layers is 0, expected at least 1"),
        ({"d_ff": 0}, "d_ff is 0, expected at least 1"),
        ({"n_heads": 5}, "n_heads = 5 does not divide d_model = 12"),
        ({"d_model": 9}, "size of a pair = 2 does not divide d_model = 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**SMALL, **sizes})
