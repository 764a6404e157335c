"""Supervised fine-tuning: what is read, what counts, that rows can be shared, and how the noise is spread."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_study.alignment import sft
from llm_study.alignment.sft import Example
from llm_study.core.config import GPT2Config, LlamaConfig
from llm_study.data.packing import unpack
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.peft.base import inject
from llm_study.peft.lora import LoRA
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.chat import TEMPLATES
from llm_study.training.loop import Settings, Trainer
from tests.parity.closeness import assert_close

CHATML = TEMPLATES["chatml"]
CONTROL = list(dict.fromkeys(token for template in TEMPLATES.values() for token in template.control))
TOKENIZER = ByteLevelBPE.train(
    ["the assistant answers the user, who asks it"], vocab_size=270 + len(CONTROL), special_tokens=CONTROL
)
V = TOKENIZER.vocab_size


def said(*turns: str) -> list[dict[str, str]]:
    """Return messages from lines such as ``"user: Hi"``."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


TALK = said("system: Be brief.", "user: Hi", "assistant: Hello.", "user: 1+1?", "assistant: 2")


def example(messages: Any = TALK, *, template: str = "chatml", max_length: int | None = None) -> Example:
    return sft.tokenize_chat(messages, tokenizer=TOKENIZER, template=TEMPLATES[template], max_length=max_length)


def written(x: Example) -> list[str | None]:
    """Return each target as text, None where there is none."""
    return [None if i < 0 else TOKENIZER.decode([i]) for i in x.targets.tolist()]


# --- a file


def lines(*values: Any) -> str:
    return "".join(
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) + "\n" for value in values
    )


def chat(*turns: str) -> dict[str, Any]:
    return {"messages": said(*turns)}


GOOD = chat("user: a", "assistant: b")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a BOM"])
def test_a_file_of_conversations(tmp_path: Path, start: bytes, end: str) -> None:
    other = {**chat("system: 简短。", "user: 🙂\u2028", "assistant: ok"), "source": "elsewhere"}
    file = tmp_path / "chats.jsonl"
    file.write_bytes(start + lines(GOOD, "", other).replace("\n", end).encode())
    assert sft.read_chats(file) == [GOOD["messages"], other["messages"]]
    assert sft.read_chats(str(file), template=CHATML) == sft.read_chats(file)


BAD_LINES = {
    "is no JSON: Expecting value at column 1": "user: a",
    "is no JSON: Expecting ',' delimiter at column 16": '{"messages": []',
    "is of type list, expected {": [GOOD],
    "is an object without a list of messages: ['text'], expected {": {"text": "a"},
    "is an object without a list of messages: ['messages'], expected {": {"messages": "a"},
    "message 1 is of type str, expected an object with role and content": {"messages": [GOOD["messages"][0], "b"]},
    "there are 0 messages, expected at least 1": {"messages": []},
    "message 1 is a system message, expected at most 1, as message 0": chat("system: a", "system: b", "assistant: c"),
    "message 0 is of role 'robot', expected one of system, user, assistant": chat("robot: a", "assistant: b"),
    "message 0 is of role None, expected one of": {"messages": [{"content": "a"}]},
    "message 1, of the assistant, has no words: leave it out": chat("user: a", "assistant:  \n"),
    "message 1 has content of type NoneType, expected a string": {
        "messages": [said("user: a")[0], {"role": "assistant"}]
    },
    "none of the 2 messages is of the assistant: nothing is to be learned from it": chat("system: a", "user: b"),
    "text has a lone surrogate U+D83D at index 1": '{"messages": [{"role": "assistant", "content": "a\\ud83d"}]}',
}


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, message: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(lines(GOOD, "", BAD_LINES[message], GOOD), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:3: {message}')}"):
        sft.read_chats(file)


def test_a_line_that_is_no_utf8(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(lines(GOOD).encode() + b'{"messages": "\xe9"}')
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}:2: byte 0xE9 at 14 is no UTF-8: convert it"):
        sft.read_chats(file)


def test_what_the_template_does_not_take_is_named_too(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(lines(GOOD, chat("user: a", "user: b", "assistant: c")), encoding="utf-8")
    assert len(sft.read_chats(file)) == 2
    with pytest.raises(ValueError, match=":2: message 1 is of role user, expected assistant"):
        sft.read_chats(file, template=TEMPLATES["gemma"])
    file.write_text(lines(chat("user: <|im_end|>", "assistant: c")), encoding="utf-8")
    assert len(sft.read_chats(file)) == 1
    with pytest.raises(ValueError, match=r":1: message 0 spells the control token <\|im_end\|>"):
        sft.read_chats(file, template=CHATML)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_conversations(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"chats\.jsonl: number of conversations is 0, expected at least 1"):
        sft.read_chats(file)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            sft.read_chats(path)


# --- ids and targets


def test_the_words_of_the_assistant_and_its_end_tokens_count() -> None:
    x = example()
    assert TOKENIZER.decode(x.ids.tolist()) == CHATML.render(TALK)
    assert "".join(text for text in written(x) if text) == "Hello.<|im_end|>2<|im_end|>"
    assert x.n_targets == sum(text is not None for text in written(x))
    assert written(x)[-1] is None


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "mistral"])
def test_each_target_is_the_id_that_follows(template: str) -> None:
    x = example(template=template)
    counted = x.targets >= 0
    assert torch.equal(x.targets[counted], x.ids[1:][counted[:-1]])
    assert not counted[-1]
    assert len(x) == len(x.ids) == len(x.targets)
    end = TEMPLATES[template].answer[1].strip()
    assert written(x).count(end) == 2  # without it a model never stops


def test_a_cut_keeps_the_beginning_and_the_target_after_the_last_id() -> None:
    whole = example()
    for length in range(1, len(whole) + 3):
        if not (whole.targets[:length] >= 0).any():
            continue
        part = example(max_length=length)
        assert torch.equal(part.ids, whole.ids[:length])
        assert torch.equal(part.targets, whole.targets[:length])
    first = int((whole.targets >= 0).nonzero()[0])
    assert example(max_length=first + 1).n_targets == 1


def test_nothing_left_of_the_assistant() -> None:
    whole = example()
    first = int((whole.targets >= 0).nonzero()[0])
    text = f"the first {first} of {len(whole)} tokens of a conversation have 0 that the assistant writes, expected"
    with pytest.raises(ValueError, match=f"^{re.escape(text)} at least 1: raise max_length"):
        example(max_length=first)
    with pytest.raises(ValueError, match=r"^the \d+ tokens of a conversation have 0 .*: leave it out"):
        example(said("user: a"))
    with pytest.raises(ValueError, match="max_length is 0, expected at least 1"):
        example(max_length=0)


def test_a_tokenizer_that_lacks_the_control_tokens() -> None:
    plain = ByteLevelBPE.train(["a b"], vocab_size=257)
    with pytest.raises(ValueError, match=r"'<\|im_start\|>' is no special token"):
        sft.tokenize_chat(TALK, tokenizer=plain, template=CHATML)


def test_an_example_of_unequal_parts() -> None:
    with pytest.raises(ValueError, match=r"shape of targets is \(2,\), shape of ids is \(3,\)"):
        Example(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"ids has shape \(1, 3\), expected 1 dimensions"):
        Example(torch.zeros(1, 3), torch.zeros(1, 3))


# --- rows


def examples_of(lengths: list[int], *, seed: int = 0, vocabulary: int = V) -> list[Example]:
    """Return random conversations, about half of whose tokens are the assistant's."""
    generator, found = torch.Generator().manual_seed(seed), []
    for n in lengths:
        ids = torch.randint(vocabulary, (n,), generator=generator)
        own = torch.rand(n, generator=generator) < 0.5
        own[min(1, n - 1)] = True
        found.append(Example(ids, torch.where(own, ids, -100).roll(-1).index_fill(0, torch.tensor(n - 1), -100)))
    return found


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), length=st.integers(12, 20), pad_id=st.integers(0, 3)
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_rows_hold_every_conversation_once(lengths: list[int], length: int, pad_id: int) -> None:
    examples = examples_of(lengths)
    for rows in (sft.pack_examples(examples, length, pad_id=pad_id), sft.pad_examples(examples, pad_id=pad_id)):
        ids, targets, positions, segments = rows
        for i, x in enumerate(examples):
            assert torch.equal(unpack(ids, segments)[i], x.ids)
            assert torch.equal(unpack(targets, segments)[i], x.targets)
            assert unpack(positions, segments)[i].tolist() == list(range(len(x)))
        padding = segments < 0
        assert (ids[padding] == pad_id).all()
        assert (targets[padding] == -100).all()
    assert len(ids) == len(examples)
    assert ids.shape[1] == max(lengths)


def test_rows_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="document 1 has 9 tokens, expected 1 to 8: cut it"):
        sft.pack_examples(examples_of([3, 9]), 8)
    for call in (lambda: sft.pack_examples([], 8), lambda: sft.pad_examples([])):
        with pytest.raises(ValueError, match="number of documents is 0, expected at least 1"):
            call()


@given(n=st.integers(1, 9), batch_size=st.integers(1, 11), seed=st.integers(0, 3))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_every_pass_reads_every_row_once(n: int, batch_size: int, seed: int) -> None:
    rows = (torch.arange(n), torch.arange(n) * 10)
    steps = [sft.draw_rows(rows, batch_size=batch_size, seed=seed, step=step) for step in range(2 * n)]
    first, second = (torch.cat(part) for part in zip(*steps, strict=True))
    assert torch.equal(second, 10 * first)
    assert {len(part[0]) for part in steps} == {batch_size}
    passes = first[: len(first) // n * n].view(-1, n)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(n).expand_as(passes))
    again = sft.draw_rows(rows, batch_size=batch_size, seed=seed, step=n)
    assert torch.equal(again[0], steps[n][0])


def test_orders_differ_between_passes_and_seeds() -> None:
    rows = (torch.arange(50),)
    orders = [sft.draw_rows(rows, batch_size=50, seed=s, step=t)[0].tolist() for s in (0, 1) for t in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    for bad, message in (({"batch_size": 0}, "batch_size is 0"), ({"step": -1}, "step is -1")):
        with pytest.raises(ValueError, match=message):
            sft.draw_rows(rows, **{"batch_size": 1, "seed": 0, "step": 0, **bad})
    with pytest.raises(ValueError, match="number of rows is 0"):
        sft.draw_rows((torch.empty(0, 3),), batch_size=1, seed=0, step=0)


# --- losses

SIZES: dict[str, Any] = {"vocab_size": V, "num_hidden_layers": 2, "initializer_range": 0.3}
NO_DROPOUT: dict[str, Any] = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=4
        )
    ),
    "gpt2": lambda: GPT2ForCausalLM(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **NO_DROPOUT)
    ),
}
every_model = pytest.mark.parametrize("family", MODELS)
CHATS = [
    TALK,
    said("user: What is it?", "assistant: It is the answer to the user, who asks it."),
    said("user: a", "assistant: b", "user: c", "assistant: d", "user: e", "assistant: f"),
    said("assistant: Good day."),
]


def model_of(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[family]().to(dtype).eval()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


def alone(model: nn.Module, x: Example) -> Tensor:
    """Return the losses of a conversation's targets, written out: no rows, no mask, no positions."""
    logp = model(x.ids[None])[0].log_softmax(-1)
    counted = x.targets >= 0
    return -logp[counted].gather(-1, x.targets[counted][:, None])[:, 0]


def rows_of(name: str, examples: list[Example]) -> tuple[Tensor, ...]:
    return sft.pad_examples(examples) if name == "padded" else sft.pack_examples(examples, int(name))


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * max(1.0, expected.abs().max().item())


@every_model
@pytest.mark.parametrize("rows", ["padded", "70", "130"])
def test_packed_equals_unpacked(family: str, rows: str) -> None:
    """Losses and the gradients of all parameters are those of the conversations alone, in both weightings."""
    model, examples = model_of(family), [example(messages) for messages in CHATS]
    batch = rows_of(rows, examples)
    assert len(batch[0]) == {"padded": 4, "70": 3, "130": 2}[rows]
    losses = [alone(model, x) for x in examples]
    tokens, conversations = torch.cat(losses).sum(), torch.stack([x.mean() for x in losses]).sum()
    for loss, expected, n in (
        (sft.sft_loss, tokens, sum(x.n_targets for x in examples)),
        (sft.conversation_loss, conversations, len(examples)),
    ):
        found, count = loss(model, batch)
        assert (count.item(), found.shape, found.dtype) == (n, (), torch.float64)
        assert_near(found, expected)
        ours, theirs = gradients(model, found), gradients(model, expected)
        for name, gradient in theirs.items():
            assert_near(ours[name], gradient)
            assert gradient.abs().max() > 1e-6 or "attn.c_attn.bias" in name
    assert (tokens / sum(x.n_targets for x in examples) - conversations / len(examples)).abs() > 1e-3


@every_model
def test_without_the_mask_or_the_positions_it_is_another_loss(family: str) -> None:
    model = model_of(family)
    batch = sft.pack_examples([example(messages) for messages in CHATS[1:]], 128)
    assert len(batch[0]) == 1
    right, count = sft.sft_loss(model, batch)
    ids, targets, positions, segments = batch
    careless = F.cross_entropy(model(ids, positions=positions).flatten(0, 1), targets.flatten(), reduction="sum")
    assert (careless - right).abs() / count > 1e-3  # contamination: they see what stood before
    running, _ = sft.sft_loss(model, (ids, targets, torch.arange(128).expand_as(ids), segments))
    off = (running - right).abs() / count
    assert off > 1e-3 if family == "gpt2" else off < 1e-12  # rotations know differences only


def test_masked_tokens_have_exactly_no_gradient() -> None:
    model, kept = model_of("llama"), []

    class Watched(nn.Module):
        def forward(self, ids: Tensor, **options: Any) -> Tensor:
            logits: Tensor = model(ids, **options)
            logits.retain_grad()
            kept.append(logits)
            return logits

    batch = sft.pack_examples([example(messages) for messages in CHATS], 128)
    for loss in (sft.sft_loss, sft.conversation_loss):
        loss(Watched(), batch)[0].backward()
        gradient, counted = kept.pop().grad, batch[1] >= 0
        assert gradient is not None
        assert (gradient[~counted] == 0).all()
        assert (gradient[counted].abs().amax(-1) > 1e-6).all()


def test_a_token_that_is_ruled_out_does_no_harm_where_nothing_counts() -> None:
    """The loss of id 0, which stands in for targets that do not count, may be infinite."""
    model = model_of("llama")

    class Ruled(nn.Module):
        def forward(self, ids: Tensor, **options: Any) -> Tensor:
            logits: Tensor = model(ids, **options)
            return logits.index_fill(-1, torch.tensor([0]), -math.inf)

    total, _ = sft.sft_loss(Ruled(), sft.pad_examples([example()]))
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, total).values())


def test_weights_of_a_conversation_add_up_to_one() -> None:
    targets = torch.tensor([[1, -100, 1, 1, -100], [-100, 7, -100, 8, -100], [1, -100, 1, 1, -100]])
    segments = torch.tensor([[3, 3, 3, 0, 0], [1, 1, 5, 5, 2], [3, 3, 3, 0, 0]])  # nothing counts in conversation 2
    weights = sft.conversation_weights(targets, segments)
    assert weights.tolist() == [[0.5, 0, 0.5, 1, 0], [0, 1, 0, 1, 0], [0.5, 0, 0.5, 1, 0]]  # a row may be there twice
    nothing = torch.full_like(targets, -100)
    assert (sft.conversation_weights(nothing, segments) == 0).all()
    with pytest.raises(ValueError, match=r"shape of targets is \(3, 5\), shape of segments is \(1, 5\)"):
        sft.conversation_weights(targets, segments[:1])
    with pytest.raises(ValueError, match=r"segments has shape \(5,\), expected 2 dimensions"):
        sft.conversation_weights(targets[0], segments[0])


@pytest.mark.parametrize("loss", [sft.sft_loss, sft.conversation_loss])
def test_nothing_that_counts_is_no_loss_and_no_gradient(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    model, (ids, targets, positions, segments) = model_of("gpt2"), sft.pad_examples([example()])
    total, count = loss(model, (ids, torch.full_like(targets, -100), positions, segments))
    assert (total.item(), count.item()) == (0, 0)
    assert all((gradient == 0).all() for gradient in gradients(model, total).values())


def test_half_precision_adds_up_in_float32() -> None:
    batch = sft.pad_examples([example()])
    single, _ = sft.sft_loss(model_of("llama", torch.float32), batch)
    half, _ = sft.sft_loss(model_of("llama", torch.bfloat16), batch)
    assert half.dtype == single.dtype == torch.float32
    assert (half - single).abs() < 0.02 * single


@pytest.mark.parametrize("loss", [sft.sft_loss, sft.conversation_loss])
def test_pieces_of_a_step_make_the_same_step(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Accumulation, through the trainer: it does not matter in how many pieces a batch is computed."""
    rows = sft.pack_examples([example(messages) for messages in CHATS], 70)
    rows = tuple(torch.cat([x, x[:1]]) for x in rows)  # 4 rows

    def train(accumulate: int) -> tuple[list[float], Tensor]:
        model = model_of("llama")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run = Settings(steps=3, accumulate=accumulate, clip=None)
        losses = Trainer(model, loss, lambda _: rows, optimizer, settings=run).run().losses
        return losses, torch.cat([p.detach().flatten() for p in model.parameters()])

    (whole, after), (pieces, then) = train(1), train(4)
    assert pieces == pytest.approx(whole, rel=1e-12)
    assert_close(then, after)


# --- noise


def test_noise_is_uniform_and_its_length_does_not_depend_on_the_text() -> None:
    for shape in ((4000, 1, 8), (500, 16, 4), (300, 64, 32)):
        generator = torch.Generator().manual_seed(0)
        noise = sft.embedding_noise(torch.zeros(shape, dtype=torch.float64), 5.0, generator=generator)
        edge = 5 / math.sqrt(shape[1] * shape[2])
        assert noise.abs().max() <= edge
        assert min(noise.max(), -noise.min()) > 0.98 * edge
        squares = noise.square().sum(dim=(1, 2))
        error = squares.std() / shape[0] ** 0.5
        assert (squares.mean() - 25 / 3).abs() < 4 * error
        spread = 25 / 3 * math.sqrt(4 / (5 * shape[1] * shape[2]))  # Var u² = 1/5 − 1/9 = 4/45, and (1/3)² = 5/45
        assert squares.std().item() == pytest.approx(spread, rel=0.2)


def test_noise_of_each_texts_own_length() -> None:
    x, lengths = torch.zeros(300, 6, 4, dtype=torch.float64), torch.tensor([[2, 2, 4, 4, 4, 4]])
    noise = sft.embedding_noise(x, 3.0, lengths=lengths, generator=torch.Generator().manual_seed(0))
    for part, n in ((noise[:, :2], 2), (noise[:, 2:], 4)):
        assert part.abs().max().item() == pytest.approx(3 / math.sqrt(4 * n), rel=0.01)
        assert part.square().sum(dim=(1, 2)).mean().item() == pytest.approx(3, rel=0.1)


def test_noise_keeps_the_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert sft.embedding_noise(torch.zeros(1, 2, 3, dtype=dtype), 1.0).dtype == dtype
    assert (sft.embedding_noise(torch.zeros(1, 2, 3), 0.0) == 0).all()


@every_model
def test_noise_is_there_in_training_only_and_goes_away(family: str) -> None:
    model, ids = model_of(family), torch.arange(6)[None]
    plain = model(ids)
    with sft.neftune(model, 5.0, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(model(ids), plain)
        model.train()
        first, second = model(ids), model(ids)
        assert (first - plain).abs().max() > 1e-3
        assert (first - second).abs().max() > 1e-3
    assert torch.equal(model(ids), plain)
    with pytest.raises(RuntimeError, match="stop"), sft.neftune(model, 5.0):
        raise RuntimeError("stop")
    assert torch.equal(model(ids), plain)


def test_noise_with_a_seed_is_repeated() -> None:
    model, ids = model_of("llama").train(), torch.arange(6)[None]
    runs = []
    for _ in range(2):
        with sft.neftune(model, 5.0, generator=torch.Generator().manual_seed(3)):
            runs.append(model(ids))
    assert torch.equal(*runs)


def test_noise_comes_after_an_adapter_of_the_embedding() -> None:
    model, ids = model_of("llama").train(), torch.arange(6)[None]
    inject(model, LoRA(rank=2, alpha=2), targets=["embed_tokens"])
    adapted = model.get_submodule("model.embed_tokens")
    clean = adapted(ids)
    with sft.neftune(model, 5.0):
        noisy = adapted(ids)
    assert ((noisy - clean).abs().max() <= 5 / math.sqrt(6 * 16)) & ((noisy - clean).abs().max() > 0.1)


def test_bad_noise() -> None:
    with pytest.raises(ValueError, match=r"alpha is -1.0, expected at least 0"), sft.neftune(model_of("gpt2"), -1.0):
        pass
    with pytest.raises(ValueError, match=r"the Linear has 0 embeddings"), sft.neftune(nn.Linear(1, 1), 1.0):
        pass
    with pytest.raises(ValueError, match=r"alpha is -1.0"):
        sft.embedding_noise(torch.zeros(1, 1, 1), -1.0)
    with pytest.raises(ValueError, match=r"x has shape \(1, 1\), expected 3 dimensions"):
        sft.embedding_noise(torch.zeros(1, 1), 1.0)
