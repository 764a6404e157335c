"""Fine-tune one small model by many methods on one instruction format, and record how each of them learns.

Run it as a script from the root of the project, with all changes committed; it writes docs/data/finetuning.json and
takes some minutes on two cores. ``--steps 4`` tries everything out; the record then says so.

The base is trained here, on plain sentences that say of forty animals what color they have, what they eat, and so on,
all of it made up by the seed. The conversations ask for the same in another wording, which the sentences never use: an
attribute and an animal, and the answer is one word. Two thirds of the facts are asked for in the conversations that are
trained on. The others are for validation and for the test: who has learned the format answers them from what the base
knows, who has learned the answers by heart does not.

Each method trains about one percent of the parameters, sees the same conversations in the same order, and takes as many
steps as the others. Of learning rates that are about three times the one before, the one counts that has the lowest
loss on the validation conversations; there are three of them at first, and more beyond the best one for as long as it
is the smallest or the largest. The curves show the test conversations, which decide nothing.
"""

import argparse
import json
import multiprocessing
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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
SEED, BASE_STEPS, STEPS, EVERY = 0, 300, 40, 5
SHORT, FIRST = 4, 3
"""Steps of the base in the short run that a test repeats, and steps of each method after it."""
ANIMALS = [
    *("ant", "bat", "bear", "bee", "bird", "cat", "cow", "crab", "crow", "deer", "dog", "duck", "eel", "elk", "emu"),
    *("fish", "fly", "fox", "frog", "goat", "hare", "hawk", "hen", "horse", "lamb", "lion", "mole", "moth", "mouse"),
    *("newt", "owl", "pig", "rat", "seal", "sheep", "slug", "snail", "swan", "toad", "wolf"),
]
ATTRIBUTES = {
    "color": ["black", "blue", "brown", "gold", "green", "grey", "pink", "red"],
    "food": ["bread", "corn", "fruit", "grass", "leaves", "nuts", "rice", "seeds"],
    "home": ["barn", "cave", "field", "hole", "lake", "nest", "river", "tree"],
    "sound": ["bark", "buzz", "click", "howl", "hum", "roar", "song", "squeak"],
    "size": ["big", "giant", "huge", "little", "long", "short", "small", "tiny"],
    "mood": ["angry", "brave", "calm", "glad", "proud", "sad", "shy", "wild"],
}


# --- texts and conversations


def facts() -> dict[tuple[str, str], str]:
    """Return what there is to know: the value of each attribute of each animal."""
    rng = random.Random(f"facts {SEED}")
    return {(animal, name): rng.choice(values) for animal in ANIMALS for name, values in ATTRIBUTES.items()}


def corpus() -> Corpus:
    """Return the texts of the base, three sentences each."""
    rng, known = random.Random(f"text {SEED}"), list(facts().items())

    def text() -> str:
        return " ".join(f"The {name} of the {animal} is {x}." for (animal, name), x in rng.sample(known, 3)) + "\n"

    return Corpus([text() for _ in range(12000)], [text() for _ in range(100)])


def chats(part: str) -> list[list[dict[str, str]]]:
    """Return the conversations of a part of the facts: ``train``, ``validation`` or ``test``, which share none."""
    known = list(facts().items())
    random.Random(f"parts {SEED}").shuffle(known)
    third = len(known) // 6
    places = {"validation": slice(0, third), "test": slice(third, 2 * third), "train": slice(2 * third, None)}
    return [
        [{"role": "user", "content": f"{name} {animal}"}, {"role": "assistant", "content": value}]
        for (animal, name), value in known[places[part]]
    ]


def base_config(steps: int = BASE_STEPS) -> PretrainConfig:
    """Return the settings of the base; the schedule of the learning rate depends on how long it is."""
    return PretrainConfig(
        steps=steps,
        seed=SEED,
        vocab_size=512,
        length=48,
        hidden_size=144,
        intermediate_size=384,
        num_hidden_layers=4,
        batch_size=16,
        learning_rate=2e-3,
        warmup=20,
        eval_every=min(50, steps),
        eval_windows=8,
        save_every=steps,
    )


def new_base(steps: int) -> Pretraining:
    """Return the base before its training; weights of this size, not as small as usual, let it learn sooner."""
    run = Pretraining(corpus(), base_config(steps))
    for name, parameter in run.model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return run


# --- methods

TARGETS = ("q_proj", "v_proj")
LORA = {"rank": 4}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "full": {},
    "dora": LORA,
    "pissa": LORA,
    "vera": {"rank": 1024},
    "loha": {"rank": 2},
    "lokr": {"rank": 18, "options": {"decompose_factor": 4}},
    "mora": LORA,
    "randlora": {"rank": 18},
    "miss": {"rank": 8},
    "fourierft": LORA,
    "adalora": {"rank": 3},
    "lora+": LORA,
    "vb_lora": {"rank": 4, "options": {"vector_length": 48, "num_vectors": 48}},
    "rslora": LORA,
    "olora": LORA,
    "lora_fa": {"rank": 8},
}
"""Sizes such that each trains about one percent of the parameters."""
CENTERS = {
    "lora": 1e-2,
    "rslora": 1e-2,
    "lora+": 3e-3,
    "lora_fa": 1e-2,
    "dora": 1e-2,
    "pissa": 3e-3,
    "olora": 3e-3,
    "adalora": 3e-2,
    "vera": 3e-2,
    "vb_lora": 3e-2,
    "randlora": 3e-3,
    "loha": 3e-2,
    "lokr": 1e-2,
    "mora": 1e-2,
    "miss": 1e-2,
    "fourierft": 3e-2,
    "full": 1e-3,
}
"""The learning rate in the middle of the first three."""
MOST = 7
"""Learning rates that are tried at most."""


def rate(method: str, place: int) -> float:
    """Return a learning rate of a method, by how many places it is above the one in the middle."""
    return float(f"{CENTERS[method] * 3.0**place:.1e}")


def config(method: str, rate: float, steps: int = STEPS) -> FinetuneConfig:
    """Return the settings of a method; the last evaluation is that on the validation conversations."""
    return FinetuneConfig(
        method=method,
        targets=TARGETS,
        chat="plain",
        learning_rate=rate,
        steps=steps,
        seed=SEED,
        save_every=steps,
        held_out=0.0,
        **METHODS[method],
    )


# --- measuring


def write_chats(file: Path) -> Path:
    """Write the conversations that are trained on."""
    lines = [json.dumps({"messages": messages}) for messages in chats("train")]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def examples(run: Finetuning, part: str) -> list[Example]:
    return [tokenize_chat(x, tokenizer=run.tokenizer, template=run.template) for x in chats(part)]


def exact(run: Finetuning, part: str) -> float:
    """Return the share of questions whose greedy answer is right, word for word, its end included."""
    asked: dict[int, list[tuple[torch.Tensor, list[int]]]] = {}
    for example in examples(run, part):
        first = int((example.targets >= 0).nonzero()[0])
        answer = example.targets[example.targets >= 0].tolist()
        asked.setdefault(first + 1, []).append((example.ids[: first + 1], answer))
    right = 0
    for length, pairs in asked.items():  # prompts of one length are answered together
        prompts, most = torch.stack([ids for ids, _ in pairs]), max(len(answer) for _, answer in pairs)
        said = generate(run.model, prompts, max_new_tokens=most, eos_id=run.end)[:, length:].tolist()
        right += sum(ids[: len(answer)] == answer for ids, (_, answer) in zip(said, pairs, strict=True))
    return round(right / len(chats(part)), 4)


def learn(base: Path, data: Path, method: str, rate: float, steps: int) -> tuple[Finetuning, dict[str, Any]]:
    """Fine-tune once; return the run, and what is to be known of it."""
    run = Finetuning(base, data, config(method, rate, steps))
    test = examples(run, "test")
    curve, start = [[0, round(run.evaluate(test), 4)]], time.perf_counter()
    while not run.trainer.finished:
        run.trainer.step()
        done = len(run.trainer.history.losses)
        if done % EVERY == 0 or done == steps:
            curve.append([done, round(run.evaluate(test), 4)])
    seconds, validation = time.perf_counter() - start, run.evaluate(examples(run, "validation"))
    last = sum(run.trainer.history.losses[-EVERY:]) / len(run.trainer.history.losses[-EVERY:])
    found = {"learning rate": rate, "train": round(last, 4), "validation": round(validation, 4), "test": curve}
    return run, {**found, "seconds": round(seconds, 1)}


def compared(base: Path, data: Path, method: str, steps: int) -> dict[str, Any]:
    """Try learning rates; the best one answers the questions of the test, and those that it was trained on."""
    tried: dict[int, tuple[Finetuning, dict[str, Any]]] = {}
    waiting = [-1, 0, 1]
    while waiting:
        tried |= {place: learn(base, data, method, rate(method, place), steps) for place in waiting}
        best = min(tried, key=lambda place: tried[place][1]["validation"])
        beyond = {min(tried): min(tried) - 1, max(tried): max(tried) + 1}
        waiting = [beyond[best]] if best in beyond and len(tried) < MOST else []
    run = tried[best][0]
    run.model.eval()
    n = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    right = {part: exact(run, part) for part in ("train", "test")}
    return {
        **METHODS[method],
        "trained": n,
        "share": round(n / run.n_base, 6),
        "runs": [tried[place][1] for place in sorted(tried)],
        "best": sorted(tried).index(best),
        "exact": right,
    }


def first_losses(folder: Path) -> dict[str, list[float]]:
    """Train a base for a few steps, then each method for a few more; return the losses, which a test repeats."""
    base = new_base(SHORT)
    found = {"base": base.trainer.run().losses}
    base.save(folder / "short")
    data = write_chats(folder / "short.jsonl")
    for method in METHODS:
        run = Finetuning(folder / "short", data, config(method, CENTERS[method], FIRST))
        found[method] = [run.trainer.step() for _ in range(FIRST)]
    return found


# --- the record


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def about() -> Iterator[tuple[str, Any]]:
    """Yield what is to be known of the script and of the machine."""
    yield "what", "a small model is fine-tuned by many methods on the same conversations"
    yield "script", f"docs/figures/{Path(__file__).name}"
    yield "seed", SEED
    versions = {"llm_study": llm_study.__version__, "torch": torch.__version__, "python": platform.python_version()}
    yield "versions", versions
    yield "commit", git("rev-parse", "HEAD").strip()
    yield "machine", {"system": platform.system(), "cpu": platform.machine(), "threads": torch.get_num_threads()}


def record(folder: Path, steps: int, base_steps: int, jobs: int) -> None:
    """Train the base and every method; write everything that is to be known of them, after each method."""
    found = {**dict(about()), "steps": steps, "planned steps": STEPS, "first losses": first_losses(folder)}
    base = new_base(base_steps)
    history = base.trainer.run()
    base.save(folder / "base")
    data = write_chats(folder / "chat.jsonl")
    untouched = Finetuning(folder / "base", data, config("full", 1e-3, 1))
    untouched.model.eval()
    found["base"] = {
        "settings": asdict(base.config),
        "parameters": untouched.n_base,
        "seconds": round(history.seconds, 1),
        "evaluations": [[step, round(loss, 4)] for step, loss in history.evaluations],
        "sentences": known_share(base),
        "exact": {part: exact(untouched, part) for part in ("train", "test")},
    }
    found["conversations"] = {part: len(chats(part)) for part in ("train", "validation", "test")}
    found["settings"] = {name: x for name, x in asdict(config("lora", 1e-2)).items() if name not in ("rank", "method")}
    found["methods"] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(compared, folder / "base", data, method, steps): method for method in METHODS}
        for done in as_completed(waiting):
            found["methods"][waiting[done]] = result = done.result()
            TARGET.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
            tried = [(run["learning rate"], run["validation"]) for run in result["runs"]]
            print(waiting[done], f"{result['share']:.2%}", tried, result["exact"], file=sys.stderr, flush=True)


def known_share(base: Pretraining) -> float:
    """Return the share of all facts that the base completes, in the wording that it was trained on."""
    base.model.eval()
    end, right = base.tokenizer.special_tokens["<|endoftext|>"], []
    for (animal, name), value in facts().items():
        ids, answer = (base.tokenizer.encode(x) for x in (f"The {name} of the {animal} is", f" {value}."))
        out = generate(base.model, torch.tensor([[end, *ids]]), max_new_tokens=len(answer))
        right.append(out[0, -len(answer) :].tolist() == answer)
    return round(sum(right) / len(right), 4)


def main() -> None:
    """Train everything and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer, to try it out (default: %(default)s)")
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS, help="the same for the base")
    parser.add_argument("--jobs", type=int, default=2, help="methods at the same time (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), arguments.steps, arguments.base_steps, arguments.jobs)


if __name__ == "__main__":
    main()
