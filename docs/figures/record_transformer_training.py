"""Record how the model of 2017 learns to copy and to reverse, in docs/data/transformer_training.json.

Run it as a script from the root of the project. Sequences whose sum is divisible by four are never trained on; accuracy
is that of greedy decoding on these, and a sequence counts only if every token of it is right.
"""

import json
import platform
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import llm_study
from llm_study.models.transformer import Transformer, TransformerConfig

TARGET = Path(__file__).parents[1] / "data" / "transformer_training.json"
SEED, STEPS, EVERY, BATCH, HELD_OUT = 0, 300, 25, 64, 500
PAD, BEGIN, END, FIRST, LONGEST = 0, 1, 2, 3, 5
SIZES = {"vocab_size": 13, "d_model": 24, "n_heads": 2, "d_ff": 48, "n_layers": 2, "dropout": 0.0}
RATE, WARMUP = 1e-2, 30
TASKS = ("copy", "reverse")


def batch(task: str, n: int, generator: torch.Generator, *, held_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources, where they are real, and the targets with their end."""
    lengths = torch.randint(2, LONGEST + 1, (8 * n, 1), generator=generator)
    real = torch.arange(LONGEST) < lengths
    source = torch.randint(FIRST, SIZES["vocab_size"], real.shape, generator=generator) * real
    chosen = ((source.sum(-1) % 4 == 0) == held_out).nonzero()[:n, 0]
    source, real, lengths = source[chosen], real[chosen], lengths[chosen]
    order = torch.arange(LONGEST) if task == "copy" else (lengths - 1 - torch.arange(LONGEST)).clamp_min(0)
    answer = source.gather(1, order.expand_as(source)) * real
    return source, real, F.pad(answer, (0, 1)).scatter(1, lengths, END)


@torch.no_grad()
def accuracy(model: Transformer, task: str) -> float:
    """Return the share of held-out sequences that greedy decoding gets wholly right."""
    source, real, target = batch(task, HELD_OUT, torch.Generator().manual_seed(SEED + 1), held_out=True)
    memory, written = model.encode(source, source_mask=real), torch.full((len(source), 1), BEGIN)
    for _ in range(target.shape[1]):
        best = model.decode(written, memory, source_mask=real)[:, -1].argmax(-1, keepdim=True)
        written = torch.cat([written, best], dim=1)
    right = (written[:, 1:] == target) | (target == PAD)  # what follows the end does not count
    return right.all(-1).double().mean().item()


def rate(step: int) -> float:
    """Return the learning rate of a step: up in a straight line, then down to zero."""
    return RATE * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def train(task: str, steps: int) -> tuple[list[float], list[float]]:
    """Return the loss of every step, and the accuracy after every ``EVERY`` steps."""
    torch.manual_seed(SEED)
    model, generator = Transformer(TransformerConfig(**SIZES)), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    losses, accuracies = [], []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        source, real, target = batch(task, BATCH, generator, held_out=False)
        logits = model(source, F.pad(target, (1, -1), value=BEGIN), source_mask=real)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 4))
        if (step + 1) % EVERY == 0:
            accuracies.append(accuracy(model, task))
    return losses, accuracies


def main() -> None:
    """Train on both tasks and write the record."""
    torch.set_num_threads(1)
    runs = {task: dict(zip(("loss", "accuracy"), train(task, STEPS), strict=True)) for task in TASKS}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "what": "the encoder–decoder of 2017, trained to copy and to reverse 2 to 5 digits",
        "script": f"docs/figures/{Path(__file__).name}",
        "seed": SEED,
        "sizes": SIZES,
        "steps": STEPS,
        "every": EVERY,
        "batch": BATCH,
        "held_out": HELD_OUT,
        "versions": {
            "llm_study": llm_study.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
        "machine": {"system": platform.system(), "cpu": platform.machine(), "threads": torch.get_num_threads()},
        "runs": runs,
    }
    TARGET.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
