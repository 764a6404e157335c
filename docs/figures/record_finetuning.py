"""Fine-tune one small model by many methods on one instruction format, and record how each of them learns.

Run it as a script from the root of the project, with all changes committed; it writes docs/data/finetuning.json and
takes about a quarter of an hour on two cores. ``--steps 4`` tries everything out; the record then says so.

The base is trained here, on plain sentences about short lists of words: which one is at the beginning, what the list is
from the last to the first, and so on. The conversations ask for the same in words that the sentences never use. Each
method trains about one percent of the parameters, sees the same conversations in the same order, and takes as many
steps as the others; of three learning rates, a third of a decade apart, the one counts that has the lowest loss on
validation conversations. The curves show other conversations, which decide nothing.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import llm_study
from llm_study.alignment.finetune import FinetuneConfig, Finetuning
from llm_study.alignment.sft import Example, tokenize_chat
from llm_study.data.texts import Corpus
from llm_study.generation import generate
from llm_study.training.pretrain import PretrainConfig, Pretraining

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs/data/finetuning.json"
SEED, BASE_STEPS, STEPS, EVERY = 0, 800, 120, 10
SHORT, FIRST = 4, 3
"""Steps of the base in the short run that a test repeats, and steps of each method after it."""
WORDS = (
    "bird boat book cat chair cup dog egg fish hat house jar key lamp milk moon oak pen queen rain ship sun tree wolf"
).split()
SKILLS: dict[str, tuple[str, str, Callable[[list[str]], list[str]]]] = {
    "reverse": ("From the last to the first, they are", "Reverse", lambda words: words[::-1]),
    "first": ("The one at the beginning is", "First", lambda words: words[:1]),
    "last": ("The one at the end is", "Last", lambda words: words[-1:]),
    "sort": ("As in a dictionary, they are", "Sort", sorted),
    "copy": ("Once more, they are", "Copy", lambda words: words),
}
"""Name of a skill → how a sentence of the base says it, how a question of the conversations asks for it, and the answer."""


# --- texts and conversations


def text(rng: random.Random) -> str:
    """Return a paragraph that the base learns from: a list of words, and what can be said of it."""
    words = rng.sample(WORDS, rng.randint(3, 4))
    said = [f"{sentence}: {' '.join(answer(words))}." for sentence, _, answer in SKILLS.values()]
    rng.shuffle(said)
    return f"These are the words: {' '.join(words)}. {' '.join(said)}\n"


def corpus() -> Corpus:
    """Return the texts of the base."""
    rng = random.Random(f"text {SEED}")
    return Corpus([text(rng) for _ in range(20000)], [text(rng) for _ in range(100)])


def chat(rng: random.Random, skill: str) -> list[dict[str, str]]:
    """Return a question and its answer."""
    words = rng.sample(WORDS, rng.randint(3, 4))
    _, question, answer = SKILLS[skill]
    return [
        {"role": "user", "content": f"{question}: {' '.join(words)}"},
        {"role": "assistant", "content": " ".join(answer(words))},
    ]


def chats(name: str, n: int) -> list[list[dict[str, str]]]:
    """Return ``n`` conversations, as many of each skill; those of another name are others."""
    rng, skills = random.Random(f"{name} {SEED}"), list(SKILLS)
    return [chat(rng, skills[i % len(skills)]) for i in range(n)]
