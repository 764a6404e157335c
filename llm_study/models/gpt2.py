"""GPT-2: a decoder with learned positions, layer normalization before each sublayer, and biases everywhere.

Parameters have the names of Hugging Face's ``GPT2LMHeadModel``. The matrices of the four projections of a layer are
stored in files as input × output; in memory they are ordinary ``nn.Linear`` layers, and they are transposed when a
folder is read or written.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_study.core.config import GPT2Config
from llm_study.functional.activations import activation
from llm_study.functional.attention import attention, causal_attention, causal_mask, merge_heads, split_heads
from llm_study.models._common import check_indices, check_mask, draw, seen
from llm_study.models.base import CausalLM
from llm_study.nn.basic import LayerNorm
from llm_study.nn.cache import Cache

__all__ = ["GPT2ForCausalLM"]

TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


class GPT2ForCausalLM(CausalLM):
    """GPT-2 with its language-model head.

    Fresh matrices are normal with standard deviation ``config.initializer_range``, those that add to the residual
    stream by ``sqrt(2 * L)`` smaller, and fresh biases are 0.

    Args:
        config: sizes, activation, ε of the norms and probabilities of dropout.

    Attributes:
        transformer: embeddings, blocks and the last norm.
        lm_head: ``(D → V)`` makes the logits; it shares its matrix with the token embeddings where
            ``config.tie_word_embeddings`` says so.

    Cost: ``L * (8 * D**2 + 4 * D * F + 4 * T * D) + 2 * V * D`` FLOPs for each token, without biases and norms.

    References:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.3.

    Example:
        >>> config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        >>> model = GPT2ForCausalLM(config).eval()
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> model(ids).shape
        torch.Size([1, 3, 97])
        >>> torch.allclose(model(ids)[:, :2], model(ids[:, :2]), atol=1e-6)  # what comes later changes nothing
        True
    """

    tied: ClassVar[Mapping[str, str]] = {"lm_head.weight": "transformer.wte.weight"}
    unused: ClassVar[tuple[str, ...]] = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)  # old files: causal mask

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = _Body(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(partial(draw, std=config.initializer_range))
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2 * L of them add to the residual stream
                nn.init.normal_(weight, std=config.initializer_range / (2 * config.n_layer) ** 0.5)
        self.tie()

    @property
    def hub_name(self) -> str:
        """Name of the class by which transformers knows the model; written into ``config.json``."""
        return "GPT2LMHeadModel"

    @property
    def body(self) -> nn.Module:
        """Embeddings, blocks and the last norm."""
        return self.transformer

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.transformer.h

    @property
    def norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.transformer.ln_f

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change names and shapes of a file into ours.

        Args:
            tensors: ``(…)`` tensors by their names in the file, with the prefix ``transformer.`` or without it.

        Returns:
            ``(…)`` tensors by the names of our parameters; matrices of projections are transposed.
        """
        return _transposed({_with_prefix(name): tensor for name, tensor in tensors.items()})

    @classmethod
    def to_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change our tensors into those of a file.

        Args:
            tensors: ``(…)`` tensors by the names of our parameters.

        Returns:
            ``(…)`` tensors by the same names; matrices of projections are transposed.
        """
        return _transposed(tensors)


class _Body(nn.Module):
    """Embeddings, blocks and the last norm."""

    bindable = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe, self.n_positions = nn.Embedding(config.n_positions, config.n_embd), config.n_positions
        self.drop, self.dropout = nn.Dropout(config.embd_pdrop), config.attn_pdrop
        self.h = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return ``(B, T, D)`` hidden states, normalized."""
        length = ids.shape[1]
        if mask is not None:
            check_mask(mask, ids, cached=cache is not None)
        counted = torch.arange(length, device=ids.device) if cache is None else cache.begin(ids, mask)
        positions = counted if positions is None else positions
        check_indices("positions", positions, ids, "n_positions", self.n_positions)
        if mask is not None:
            mask = causal_mask(length, device=ids.device) & seen(mask)  # (B, 1, T, T)
        x = self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, D)
        meet = partial(_meet, dropout=self.dropout if self.training else 0.0)
        for i, block in enumerate(self.h):
            x = block(x, partial(meet, mask=mask) if cache is None else partial(cache.attend, i, how=meet))
        if cache is not None:
            cache.end()
        y: Tensor = self.ln_f(x)
        return y


class _Block(nn.Module):
    """Attention and a feed-forward part, each with a norm before it and a residual sum after it."""

    bindable = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = _Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = _FeedForward(config)

    def forward(self, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        x = x + self.attn(self.ln_1(x), attend)
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class _Attention(nn.Module):
    """Multi-head causal attention whose queries, keys and values come from one projection."""

    bindable = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_heads = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        q, k, v = (split_heads(part, self.n_heads) for part in self.c_attn(x).chunk(3, dim=-1))  # (B, H, T, Dh)
        y: Tensor = self.drop(self.c_proj(merge_heads(attend(q, k, v))))
        return y


class _FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    bindable = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)
        self.activation = activation(config.activation_function)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.c_proj(self.activation(self.c_fc(x))))
        return y


def _meet(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Let queries meet keys under a mask, causally without one; dropout acts on the weights of attention."""
    causal = mask is None and q.shape[2] > 1  # a single query sees every key
    if dropout:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal, scale=scale)
    return causal_attention(q, k, v, scale=scale) if causal else attention(q, k, v, mask=mask, scale=scale)


def _transposed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, the matrices of projections transposed; one that is no matrix stays, to be refused later."""
    return {
        name: tensor.mT if TRANSPOSED.search(name) and tensor.ndim == 2 else tensor for name, tensor in tensors.items()
    }


def _with_prefix(name: str) -> str:
    """Return the name of a tensor in the whole model; files of the body alone lack the prefix."""
    return f"transformer.{name}" if re.match(r"(wte|wpe|h|ln_f)\.", name) else name
