"""A training step of GPT-2, ours against that of transformers: 6 layers, width 384, batch 4, length 128, float32.

Both start from the same weights, see the same ids, have the same loss, that of the next token, and take a step of fused
AdamW; there is no dropout. Transformers uses its default attention (SDPA) and gets labels that are shifted already, so
that it need not copy them. Ours hands the hidden states and the matrix of the head to PyTorch's linear_cross_entropy,
which makes the gradient of the logits where the logits were, instead of beside them. The ratio is that of the fastest
steps out of many that take turns.
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
from llm_study.models.gpt2 import GPT2ForCausalLM
from tests.bench.timing import Row, fastest, row, show

BATCH, LENGTH, VOCABULARY = 4, 128, 8192


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


def main() -> list[Row]:
    """Measure, print and return the row; the first losses must agree."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 384, "n_layer": 6, "n_head": 6}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    peer = GPT2LMHeadModel(PeerConfig(**sizes, **dropout)).train()
    ours = GPT2ForCausalLM(GPT2Config(**sizes, **dropout)).train()
    ours.load_hub(dict(peer.named_parameters()))
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    in_one_piece = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=BATCH * LENGTH, chunking_method=None, acc_policy="accurate"
    )

    def our_loss() -> torch.Tensor:
        hidden = ours.transformer(inputs).flatten(0, 1)
        return F.linear_cross_entropy(hidden, ours.lm_head.weight, targets, options=in_one_piece)

    def peer_loss() -> torch.Tensor:
        loss: torch.Tensor = peer(inputs, labels=inputs, shift_labels=targets.view_as(inputs)).loss
        return loss

    torch.testing.assert_close(our_loss(), peer_loss(), rtol=1e-5, atol=0)
    best = fastest({"ours": stepper(ours, our_loss), "transformers": stepper(peer, peer_loss)}, rounds=100)
    rows = [row("training step of GPT-2 / transformers", best["ours"], best["transformers"], 0.9)]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
