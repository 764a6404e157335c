"""From a model to text: the loops that read logits, choose tokens and go on.

Example:
    >>> import torch
    >>> from llm_study.core.config import LlamaConfig
    >>> from llm_study.models.llama import LlamaForCausalLM
    >>> config = LlamaConfig(
    ...     vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ... )
    >>> generate(LlamaForCausalLM(config), torch.tensor([[5, 6, 7]]), max_new_tokens=4).shape
    torch.Size([1, 7])
"""

from llm_study.generation.decode import generate, stream

__all__ = ["generate", "stream"]
