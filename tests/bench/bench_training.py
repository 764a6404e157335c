"""Training steps. GPT-2, ours against that of transformers: 6 layers, width 384, batch 4, length 128, float32.

Both start from the same weights, see the same ids, have the same loss, that of the next token, and take a step of fused
AdamW; there is no dropout. Transformers uses its default attention (SDPA) and gets labels that are shifted already, so
that it need not copy them. Ours hands the hidden states and the matrix of the head to our linear_cross_entropy,
which makes the gradient of the logits where the logits were, instead of beside them. The ratio is that of the lower
quartiles of many steps that take turns. Both share a process, and with it the memory that was given back: transformers,
whose logits exist three times, meets many page faults there, and few in a process of its own. A ratio near the budget
is to be measured again with a process for each.

Most of a step are the same products of matrices on both sides, so the ratio hangs on how fast these are. On two cores
of a Xeon with AVX-512 it was 0.84 in three runs, with a process for each 0.82 to 0.85; on two of an EPYC of the third
generation, which computes products at half that rate, 0.88 to 0.93, with a process for each up to 0.96.

The second part is a step of our loop on the model that ``python -m llm_study train`` makes by default: against the same
step without the loop, and against the time that its FLOPs would take if all of them were products of large square
matrices, which is the arithmetic limit of the machine. The share of this limit and the tokens per second are printed.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from llm_study.core.config import GPT2Config
from llm_study.core.roofline import training_flops
from llm_study.functional.losses import linear_cross_entropy
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM
from llm_study.optim.first_order import AdamW
from llm_study.training.loop import Settings, Trainer, next_token_loss
from llm_study.training.pretrain import PretrainConfig
from tests.bench.timing import Row, quartile, row, show

BATCH, LENGTH, VOCABULARY = 4, 128, 8192
SQUARE = 1024  # side of the matrices that tell the arithmetic limit


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], float]:
    """Return a function that takes one training step and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def loop() -> list[Row]:
    """Measure a step of the loop, the same step by hand, and products of square matrices."""
    config = PretrainConfig(batch_size=4)
    sizes = config.model(config.vocab_size)
    ids = torch.randint(config.vocab_size, (config.batch_size, config.length + 1))
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    model, bare = LlamaForCausalLM(sizes).train(), LlamaForCausalLM(sizes).train()
    bare.load_state_dict(model.state_dict())
    trainer = Trainer(
        model, next_token_loss, lambda step: batch, AdamW(model.parameters(), 1e-4), settings=Settings(steps=10**6)
    )
    optimizer = AdamW(bare.parameters(), 1e-4)

    def by_hand() -> float:
        loss = F.cross_entropy(bare(batch[0]).flatten(0, 1), batch[1].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    torch.testing.assert_close(trainer.step(), by_hand(), rtol=1e-5, atol=0.0)
    a, b = torch.randn(2, SQUARE, SQUARE)
    best = quartile({"loop": trainer.step, "by hand": by_hand, "product": lambda: a @ b}, rounds=20)
    flops = training_flops(sizes.transformer(), config.length, batch=config.batch_size, causal=True).total
    limit = best["product"] * flops / (2 * SQUARE**3)
    tokens = config.batch_size * config.length
    print(f"our loop: {1e3 * tokens / best['loop']:,.0f} tokens/s, {limit / best['loop']:.0%} of the arithmetic limit")
    return [
        row("training step of our loop / by hand", best["loop"], best["by hand"], 1.05),
        row("training step of our loop / arithmetic limit", best["loop"], limit, 4.0),
    ]


def main() -> list[Row]:
    """Measure, print and return the rows; the first losses must agree."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 384, "n_layer": 6, "n_head": 6}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    peer = GPT2LMHeadModel(PeerConfig(**sizes, **dropout)).train()
    ours = GPT2ForCausalLM(GPT2Config(**sizes, **dropout)).train()
    ours.load_hub(dict(peer.named_parameters()))
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def our_loss() -> torch.Tensor:
        hidden = ours.transformer(inputs).flatten(0, 1)
        return linear_cross_entropy(hidden, ours.lm_head.weight, targets, chunk=BATCH * LENGTH)

    def peer_loss() -> torch.Tensor:
        loss: torch.Tensor = peer(inputs, labels=inputs, shift_labels=targets.view_as(inputs)).loss
        return loss

    torch.testing.assert_close(our_loss(), peer_loss(), rtol=1e-5, atol=0)
    best = quartile({"ours": stepper(ours, our_loss), "transformers": stepper(peer, peer_loss)}, rounds=100)
    rows = [row("training step of GPT-2 / transformers", best["ours"], best["transformers"], 0.9), *loop()]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
