"""What two processes do, for test_distributed.py: torchrun starts this file; the first process writes what came out.

Run as ``python -m torch.distributed.run --standalone --nproc-per-node 2 two_processes.py FOLDER``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_study.core.config import LlamaConfig
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim import first_order
from llm_study.optim.first_order import AdamW
from llm_study.training.checkpoint import model_tensors
from llm_study.training.distributed import World, connect, shard_parameters
from llm_study.training.loop import Settings, Trainer, next_token_loss

V, T, B, STEPS = 53, 12, 8, 6
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Rows with very different numbers of targets, the long ones in the first half."""
    generator = torch.Generator().manual_seed(step)
    ids = (torch.randint(V, (B, 1), generator=generator) + torch.arange(T + 1)) % 7  # something to be learned
    targets = ids[:, 1:].clone()
    for row in range(B):
        targets[row, T - row :] = -100
    return ids[:, :-1], targets


def trainer(world: World, *, fsdp: bool = False, **options: Any) -> Trainer:
    """Return a run of a tiny model; the evaluation is the loss of a batch that is not trained on."""
    torch.manual_seed(0)
    net: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=V, tie_word_embeddings=True, **SIZES)).to(world.device)
    net = shard_parameters(net, world) if fsdp else net

    def evaluate(m: nn.Module) -> float:
        total, count = next_token_loss(m, batch(99))
        return float(total / count)

    optimizer = AdamW(net.parameters(), 0.02)
    names = ("accumulate", "save_every")
    settings = Settings(
        steps=STEPS, clip=0.5, eval_every=3, **{name: options.pop(name) for name in names if name in options}
    )
    made = {"settings": settings, "evaluate": evaluate, "world": world, **options}
    return Trainer(net, next_token_loss, batch, optimizer, **made)


def scenarios(world: World, folder: Path) -> dict[str, Any]:
    """Return losses and evaluations of every way to split the work."""
    found: dict[str, Any] = {"size": world.size}
    for name, options in {
        "ddp": {},
        "ddp in pieces": {"accumulate": 2},
        "fsdp": {"fsdp": True},
        "fsdp in pieces": {"fsdp": True, "accumulate": 4},
    }.items():
        run = trainer(world, **options)
        history = run.run()
        weights = {key: x.double().sum().item() for key, x in model_tensors(run.model).items()}
        found[name] = {"losses": history.losses, "evaluations": history.evaluations, "weights": weights}
        if name in ("ddp", "fsdp"):
            first = trainer(world, **options, folder=folder / name, save_every=4)
            for _ in range(4):
                first.step()
            first.save()
            first.history.losses.clear()  # nothing of it is used again
            again = trainer(world, **options, folder=folder / name)
            found[name]["resumed"] = again.resume()
            found[name]["again"] = again.run().losses
        if name == "fsdp":
            pieces = sum(p.to_local().numel() for p in run.model.parameters())
            found["share of a process"] = pieces / sum(p.numel() for p in run.model.parameters())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    first_order.CACHED = 64  # so that the optimizer cuts up large parameters, unless they lie in pieces already
    with connect() as the_world:
        outcome = scenarios(the_world, Path(sys.argv[1]))
        if the_world.rank == 0:
            (Path(sys.argv[1]) / "outcome.json").write_text(json.dumps(outcome))
