"""Greedy decoding of one sequence, ours against ``transformers.generate``: Llama, 8 layers, width 512, float32.

Both have the same weights, read the same prompt of 64 tokens, and must make the same 128 new ones. Ours are laid out in
memory for decoding, as ``python -m llm_study generate`` does with a model that it has read. Each token needs all
weights once, so the memory's bandwidth sets a limit; the share of it that we reach is printed beside the ratio. The
bandwidth is that of products of one vector with matrices that together are far larger than any cache of the processor.
"""

import copy
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM as Peer

from llm_study.core.config import LlamaConfig
from llm_study.generation import generate
from llm_study.models.llama import LlamaForCausalLM
from llm_study.nn.layout import lay_out_for_decoding
from tests.bench.timing import Row, quartile, row, show

PROMPT, NEW = 64, 128
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": PROMPT + NEW,
}


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that a token needs: all weights but the embedding, of which it reads one row."""
    return sum(weight.nbytes for name, weight in model.named_parameters() if "embed" not in name)


@torch.inference_mode()
def bandwidth() -> float:
    """Return how many bytes per second a product of a vector with large matrices reads."""
    matrices, x = [torch.randn(4096, 4096) for _ in range(8)], torch.randn(1, 4096)
    best = quartile({"read": lambda: [x @ matrix for matrix in matrices]}, rounds=10)
    return sum(matrix.nbytes for matrix in matrices) / (best["read"] / 1e3)


@torch.inference_mode()
def main() -> list[Row]:
    """Measure, print and return the row; the tokens must agree."""
    torch.manual_seed(0)
    peer = Peer(PeerConfig(**SIZES)).eval()
    ours = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    ours.load_hub(dict(peer.named_parameters()))
    plain = copy.deepcopy(ours)
    lay_out_for_decoding(ours)
    ids = torch.randint(SIZES["vocab_size"], (1, PROMPT))
    wanted = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    peer.generation_config.eos_token_id = None

    def our_text() -> torch.Tensor:
        return generate(ours, ids, max_new_tokens=NEW)

    def plain_text() -> torch.Tensor:
        return generate(plain, ids, max_new_tokens=NEW)

    def peer_text() -> torch.Tensor:
        text: torch.Tensor = peer.generate(ids, max_new_tokens=NEW, **wanted)
        return text

    if not torch.equal(our_text(), peer_text()):
        raise RuntimeError("the tokens differ from those of transformers")
    texts = {"ours": our_text, "transformers": peer_text, "plain": plain_text}
    best = quartile(texts, rounds=12, warmup=1)
    rows = [
        row(f"decoding, {PROMPT} + {NEW} tokens / transformers", best["ours"], best["transformers"], 0.667),
        row("decoding, laid out for it / as the matrices are made", best["ours"], best["plain"], 1.0),
    ]
    show(rows)
    rate, limit = NEW / (best["ours"] / 1e3), bandwidth() / weight_bytes(ours)
    print(f"  {rate:.0f} tokens per second, {rate / limit:.0%} of the limit by memory bandwidth, {limit:.0f}")
    return rows


if __name__ == "__main__":
    main()
