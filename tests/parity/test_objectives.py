"""Masking against the collator of transformers, draw by draw; spans against the law of T5's code, written again."""

from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from llm_study.data.objectives import corrupt_spans, mask_tokens, random_spans, span_counts, span_lengths

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]


def collator(rate: float, keep: float, swap: float) -> DataCollatorForLanguageModeling:
    """Return transformers' collator for a vocabulary of 64 words; ``[CLS]`` and ``[SEP]`` are special."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    shares = {"mask_replace_prob": 1 - keep - swap, "random_replace_prob": swap}
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=rate, **shares)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("rate", "keep", "swap"), [(0.15, 0.1, 0.1), (0.4, 0.0, 0.0), (0.3, 0.2, 0.3), (0.5, 0.5, 0.0)]
)
def test_matches_the_masking_of_transformers(seed: int, rate: float, keep: float, swap: float) -> None:
    theirs = collator(rate, keep, swap)
    ids = torch.randint(4, 64, (4, 30), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = 1, 2  # [CLS] … [SEP]
    special = (ids == 1) | (ids == 2)
    theirs.generator = torch.Generator().manual_seed(seed)
    their_ids, their_labels = theirs.torch_mask_tokens(ids.clone(), special_tokens_mask=special)
    generator = torch.Generator().manual_seed(seed)
    ours = mask_tokens(
        ids, mask_id=3, vocab_size=64, rate=rate, keep=keep, swap=swap, special=special, generator=generator
    )
    assert torch.equal(ours.ids, their_ids)
    assert torch.equal(ours.targets, their_labels)


def noise_mask(length: int, rate: float, mean_length: float, rng: np.random.Generator) -> np.ndarray:
    """Law of ``random_spans_noise_mask`` of T5's code: the lengths of the pieces are from a shuffled row of 0 and 1."""
    noise = int(np.clip(np.round(length * rate), 1, length - 1))
    spans = min(max(int(np.round(noise / mean_length)), 1), length - noise)

    def pieces(total: int) -> np.ndarray:
        begins = np.concatenate([[0], rng.permutation(np.arange(total - 1) < spans - 1)])  # 1 where a piece begins
        return np.bincount(np.cumsum(begins), minlength=spans)

    starts = np.cumsum(np.stack([pieces(length - noise), pieces(noise)], axis=1).ravel())[:-1]
    flips = np.zeros(length, dtype=int)
    flips[starts] = 1
    return np.cumsum(flips) % 2 == 1


@pytest.mark.parametrize(("rate", "mean_length"), [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 64.0), (0.9, 1.0)])
def test_spans_have_the_numbers_of_t5(rate: float, mean_length: float) -> None:
    rng = np.random.default_rng(0)
    for length in range(2, 600):
        theirs = noise_mask(length, rate, mean_length, rng)
        counts = (int(theirs.sum()), int((theirs[1:] & ~theirs[:-1]).sum()))
        assert span_counts(length, rate=rate, mean_length=mean_length) == counts
        assert not theirs[0]
        assert theirs[-1]


def test_spans_have_the_distribution_of_t5() -> None:
    rng, generator, n = np.random.default_rng(0), torch.Generator().manual_seed(0), 8_000
    theirs = Counter(tuple(noise_mask(10, 0.4, 2.0, rng).tolist()) for _ in range(n))
    ours = Counter(tuple(random_spans(10, rate=0.4, mean_length=2.0, generator=generator).tolist()) for _ in range(n))
    assert set(ours) == set(theirs)
    for mask in theirs:
        p = (ours[mask] + theirs[mask]) / (2 * n)
        assert abs(ours[mask] - theirs[mask]) / n < 4 * (2 * p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("seed", range(20))
def test_sentinels_stand_where_t5_puts_them(seed: int) -> None:
    """T5 turns each run of noise in the input, and each run of the rest in the target, into the next sentinel."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 80))
    ids = rng.integers(5, 50, length)
    cut = noise_mask(length, 0.3, 2.0, rng)
    sentinels = list(range(999, 959, -1))

    def runs_to_sentinels(noise: np.ndarray) -> list[int]:
        out: list[int] = []
        marks = iter(sentinels)
        for i, token in enumerate(ids.tolist()):
            if not noise[i]:
                out.append(token)
            elif i == 0 or not noise[i - 1]:
                out.append(next(marks))
        return [*out, 1]

    ours = corrupt_spans(torch.tensor(ids), torch.tensor(cut), sentinels=sentinels, eos_id=1)
    assert ours.ids.tolist() == runs_to_sentinels(cut)
    assert ours.targets.tolist() == runs_to_sentinels(~cut)
    assert (len(ours.ids), len(ours.targets)) == span_lengths(length, rate=0.3, mean_length=2.0)
