"""Tiny random models whose weights are large enough that tokens differ, and decoding without a cache."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_study.core.config import GPT2Config, LlamaConfig, MistralConfig
from llm_study.models.gpt2 import GPT2ForCausalLM
from llm_study.models.llama import LlamaForCausalLM, MistralForCausalLM


def model(
    family: str = "llama", *, vocabulary: int = 13, layers: int = 3, seed: int = 0, scale: float = 5.0
) -> nn.Module:
    """Return a model in float64, in which a cache and no cache agree to the last digits."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made: nn.Module
    if family == "gpt2":
        own = {"vocab_size": vocabulary, "n_positions": 32, "n_embd": 16, "n_layer": layers, "n_head": 4}
        made = GPT2ForCausalLM(GPT2Config(**own, tie_word_embeddings=False))
    elif family == "mistral":
        made = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4))
    else:
        made = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return made.double().eval()


def prompts(batch: int = 2, length: int = 5, *, vocabulary: int = 13) -> Tensor:
    """Return ``(B, T)`` ids."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def without_cache(score: Callable[[Tensor], Tensor], ids: Tensor, new: int) -> Tensor:
    """Return the text that the best token of ``score(text)``, ``(B, V)``, makes; the whole text is read each time."""
    for _ in range(new):
        ids = torch.cat([ids, score(ids).argmax(-1, keepdim=True)], dim=1)
    return ids
