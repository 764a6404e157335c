"""Fine-tuning against transformers: targets, losses of padded and of shared rows with all gradients, and NEFTune."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerFast
from transformers.integrations.neftune import neftune_post_forward_hook

from llm_study.alignment import sft
from llm_study.core.config import config_from_dict
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.chat import TEMPLATES
from tests.parity.closeness import assert_close
from tests.parity.decoders import pair
from tests.parity.tiny_models import oracle, tensors_of

CONTROL = list(dict.fromkeys(token for template in TEMPLATES.values() for token in template.control))
TOKENIZER = ByteLevelBPE.train(
    ["the assistant answers the user, who asks it; 文🙂"], vocab_size=272 + len(CONTROL), special_tokens=CONTROL
)
V = TOKENIZER.vocab_size
CHATS = [
    [
        ("user", "Who asks it? 文"),
        ("assistant", "The user.🙂"),
        ("user", " and\nwho answers"),
        ("assistant", "the assistant"),
    ],
    [("user", "2"), ("assistant", "3")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": words} for role, words in turns]


@pytest.fixture(params=TEMPLATES)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[sft.Example], list[dict[str, Any]]]:
    """Our examples, and what transformers makes of the same conversations: ``input_ids`` and ``labels``."""
    template = TEMPLATES[request.param]
    TOKENIZER.save(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=template.jinja())
    examples, features = [], []
    for turns in CHATS:
        examples.append(sft.tokenize_chat(messages(turns), tokenizer=TOKENIZER, template=template))
        found = theirs.apply_chat_template(messages(turns), return_dict=True, return_assistant_tokens_mask=True)
        pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
        features.append({"input_ids": found["input_ids"], "labels": [id if own else -100 for id, own in pairs]})
    return examples, features


def test_ids_and_targets(both: tuple[list[sft.Example], list[dict[str, Any]]]) -> None:
    """Theirs are labels, which the model shifts itself."""
    for ours, theirs in zip(*both, strict=True):
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ours.targets.tolist() == [*theirs["labels"][1:], -100]


def models(family: str) -> tuple[nn.Module, nn.Module]:
    if family != "gpt2":
        return pair(family, vocab_size=V, max_position_embeddings=256)
    theirs = oracle(family, vocab_size=V, n_positions=256)
    return GPT2ForCausalLM(config_from_dict(theirs.config.to_dict())).load_hub(tensors_of(theirs)).eval(), theirs


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("both", ["chatml"], indirect=True)
def test_a_shared_row_has_their_loss(both: tuple[list[sft.Example], list[dict[str, Any]]], family: str) -> None:
    """Their collator strings conversations together; positions that begin anew tell their models where one ends."""
    examples, features = both
    flat = DataCollatorWithFlattening(return_tensors="pt")(features)
    ours, theirs = models(family)
    rows = sft.pack_examples(examples, flat["input_ids"].shape[1], fit=lambda lengths, _: [list(range(len(lengths)))])
    assert torch.equal(rows[0], flat["input_ids"])
    assert torch.equal(rows[2], flat["position_ids"])
    total, count = sft.sft_loss(ours, rows)
    expected = theirs(**flat, use_cache=False).loss
    assert_close(total / count, expected)
    found, wanted = gradients(ours, total / count), gradients(theirs, expected)
    if isinstance(ours, GPT2ForCausalLM):
        found = ours.to_hub(found)
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("both", ["llama3"], indirect=True)
def test_conversations_one_by_one_have_their_loss(
    both: tuple[list[sft.Example], list[dict[str, Any]]], family: str
) -> None:
    examples, features = both
    ours, theirs = models(family)
    for loss, n in ((sft.sft_loss, [x.n_targets for x in examples]), (sft.conversation_loss, [1] * len(examples))):
        total, count = loss(ours, sft.pad_examples(examples))
        each = [theirs(**{name: torch.tensor([x]) for name, x in row.items()}).loss for row in features]
        assert count == sum(n)
        assert_close(total, sum(k * x for k, x in zip(n, each, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_noise_of_neftune(dtype: torch.dtype) -> None:
    embedding, ids = nn.Embedding(11, 8, dtype=dtype).train(), torch.arange(10).view(2, 5)
    with sft.neftune(nn.Sequential(embedding), 5.0):
        torch.manual_seed(0)
        ours = embedding(ids)
    clean = embedding(ids)
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(0)
    theirs = embedding(ids)
    assert (theirs - clean).abs().max() > 0.5
    limit = 1e-6 if dtype == torch.float32 else 2**-6
    assert (ours - theirs).abs().max() <= limit * theirs.abs().max()
    assert torch.equal(embedding.eval()(ids), clean)
