"""What one process does that torchrun starts, for test_commands.py: DDP and FSDP2 with nothing to exchange.

The wrappers are put on here, for the package leaves a model alone where there is one process. On a GPU the process
talks through NCCL, else through gloo.

Run as ``python -m torch.distributed.run --standalone --nproc-per-node 1 one_process.py FOLDER``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from llm_study.core.config import LlamaConfig
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW
from llm_study.training.checkpoint import model_tensors
from llm_study.training.distributed import World, connect, gather, in_pieces, sums, whole
from llm_study.training.loop import Settings, Trainer, next_token_loss
from tests.devices.test_training import V, batch

STEPS = 6


def trainer(world: World, how: str, **options: Any) -> Trainer:
    """Return a run of a tiny model, alone or as one of several processes would train it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    net: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=V, tie_word_embeddings=True, **sizes)).to(world.device)
    if how == "fsdp":
        mesh = init_device_mesh(world.device.type, (1,))
        for layer in net.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    settings = Settings(steps=STEPS, accumulate=2, clip=0.5, save_every=3, precision="float32")
    made = Trainer(
        net, next_token_loss, batch, AdamW(net.parameters(), 0.02), settings=settings, world=world, **options
    )
    if how == "ddp":
        made._loss = DistributedDataParallel(made._loss)
    return made


def outcome(world: World, folder: Path) -> dict[str, Any]:
    """Return losses and the sums of weights, of each way to train, also of a run that goes on."""
    found: dict[str, Any] = {"device": world.device.type, "backend": dist.get_backend()}
    for how in ("alone", "ddp", "fsdp"):
        run = trainer(world, how)
        losses = run.run().losses
        weights = {name: x.double().sum().item() for name, x in model_tensors(run.model).items()}
        first = trainer(world, how, folder=folder / how)
        for _ in range(3):
            first.step()
        first.save()
        again = trainer(world, how, folder=folder / how)
        resumed = again.resume()
        found[how] = {"losses": losses, "weights": weights, "resumed": resumed, "again": again.run().losses}
        if how == "fsdp":
            pieces = [p.detach() for p in run.model.parameters()]
            assert all(torch.equal(whole(in_pieces(whole(p), p)), whole(p)) for p in pieces)
    assert sums([1.5], world) == [1.5]
    assert torch.equal(gather(torch.ones(2), world)[0], torch.ones(2))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect() as the_world:
        dist.init_process_group("nccl" if the_world.device.type == "cuda" else "gloo")
        Path(sys.argv[1], "outcome.json").write_text(json.dumps(outcome(the_world, Path(sys.argv[1]))))
        dist.destroy_process_group()
