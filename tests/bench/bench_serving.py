"""Tokens per second of the scheduler against one request after the other through ``generate``; greedy, on the CPU."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from llm_study.core.config import LlamaConfig
from llm_study.generation import generate
from llm_study.generation.serving import Request, Scheduler
from llm_study.models.llama import LlamaForCausalLM
from llm_study.nn.paged import BlockPool
from tests.bench.timing import Row, quartile, row, show

SIZES = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}


def requests(count: int, *, shared: int = 0) -> list[Request]:
    """Return requests of mixed lengths: prompts of 16 to 112 tokens after a common beginning, answers of 8 to 56."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def words(n: int) -> list[int]:
        return torch.randint(8192, (n,), generator=generator).tolist()

    beginning = words(shared)
    return [Request(i, beginning + words(draw(16, 112)), draw(8, 56)) for i in range(count)]


def one_after_the_other(model: LlamaForCausalLM, todo: list[Request]) -> list[list[int]]:
    """Return the answers of ``generate``."""
    answers = []
    for r in todo:
        ids = generate(model, torch.tensor([r.prompt]), max_new_tokens=r.max_new_tokens)
        answers.append(ids[0, len(r.prompt) :].tolist())
    return answers


def together(model: LlamaForCausalLM, todo: list[Request], *, reuse: bool = True) -> list[list[int]]:
    """Return the answers of a fresh scheduler with a fresh pool."""
    pool = BlockPool(model.config, 400, block_size=16)  # 16 requests of at most 25 blocks
    scheduler = Scheduler(model, pool, token_budget=128, max_running=16, reuse_prefixes=reuse)
    for r in todo:
        scheduler.add(r)
    answers = {done.request.id: done.ids for done in scheduler.run()}
    return [answers[r.id] for r in todo]


def main() -> list[Row]:
    """Measure, print and return the rows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=8, max_position_embeddings=1024)).eval()
    todo, alike = requests(24), requests(12, shared=256)
    best = quartile(
        {
            "alone": lambda: one_after_the_other(model, todo),
            "together": lambda: together(model, todo),
            "computed": lambda: together(model, alike, reuse=False),
            "shared": lambda: together(model, alike),
        },
        rounds=2,
        warmup=1,
    )
    count = sum(r.max_new_tokens for r in todo)
    for name in ("alone", "together"):
        print(f"{name}: {count} new tokens, {1e3 * count / best[name]:.0f} per second")
    rows = [
        row("scheduler / generate, 24 requests", best["together"], best["alone"], 0.6),
        row("common beginning of 256 tokens, reused / computed", best["shared"], best["computed"], 0.8),
    ]
    show(rows)
    return rows


if __name__ == "__main__":
    main()
