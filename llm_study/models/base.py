"""What all models share: their configuration, strict loading of a folder's tensors, saving, and the check of ids.

What all decoders share comes on top: from ids, with a cache or without, to logits of the next token.
"""

import os
import re
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from llm_study.core.config import ModelConfig
from llm_study.core.hub import save_folder
from llm_study.models._common import check_kept
from llm_study.nn.cache import Cache

__all__ = ["PretrainedModel", "CausalLM"]

SHOWN = 5  # how many problems of a kind a message lists


class PretrainedModel(nn.Module):
    """A model with a configuration, whose tensors are those of a Hugging Face folder.

    A family derives from it, names its parameters as Hugging Face does, and says in ``tied`` and ``unused`` what is
    particular about its files; where a tensor is stored under another name or transposed it overrides :meth:`from_hub`
    and :meth:`to_hub`.

    Args:
        config: what ``config.json`` says; kept as ``self.config``.

    Attributes:
        tied: name of a parameter → name of that whose tensor it shares, where ``config.tie_word_embeddings`` is true.
        unused: regular expressions of names that may stand in a file and are not read, such as buffers of old versions.

    Example:
        >>> class Lookup(PretrainedModel):
        ...     def __init__(self, config: ModelConfig) -> None:
        ...         super().__init__(config)
        ...         self.embed = nn.Embedding(config.vocab_size, 2)
        >>> model = Lookup(ModelConfig(vocab_size=3))
        >>> model.load_hub({"embed.weight": torch.zeros(4, 2)})
        Traceback (most recent call last):
        ValueError: the given tensors: embed.weight has shape (4, 2), expected (3, 2)
        >>> model.load_hub({"embed.weight": torch.zeros(3, 2)}).embed.weight.sum().item()
        0.0
    """

    tied: ClassVar[Mapping[str, str]] = {}
    unused: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def hub_name(self) -> str:
        """Name of the class by which transformers knows the model; written into ``config.json``."""
        return type(self).__name__

    @classmethod
    def from_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn the tensors of a folder into those of this model.

        Args:
            tensors: ``(…)`` what the files hold, by name.

        Returns:
            ``(…)`` the same, under the names and in the layout of the parameters; here they stay as they are.
        """
        return dict(tensors)

    @classmethod
    def to_hub(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn the tensors of this model into those of a folder; the inverse of :meth:`from_hub`.

        Args:
            tensors: ``(…)`` the parameters, by name.

        Returns:
            ``(…)`` what the files are to hold; here they stay as they are.
        """
        return dict(tensors)

    def tie(self) -> None:
        """Let the parameters of ``tied`` share their tensors, if ``config.tie_word_embeddings`` says so."""
        for name, source in self._tied().items():
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, self.get_parameter(source))

    def load_hub(self, tensors: Mapping[str, Tensor], *, source: object = "the given tensors") -> Self:
        """Copy the tensors of a folder into the parameters, in their dtype; not one too few, too many or too wide.

        Where two parameters share a tensor one of them may be missing, and if neither is they must be equal.

        Args:
            tensors: ``(…)`` what the files hold, by name.
            source: where they are from, for messages.

        Returns:
            The model itself.

        Raises:
            ValueError: if tensors are missing, superfluous, of another shape, or differ although they are tied. All
                that is wrong stands in one message, which shows the first few of each kind.
        """
        found = self.from_hub(tensors)
        for name, shared in self._tied().items():
            first = found.get(shared, found.get(name))
            if first is not None:
                found = {**found, shared: first, name: found.get(name, first)}
        wanted = self.state_dict()
        self._check(found, wanted, source)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(found[name])
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write a folder that :func:`llm_study.models.auto.from_pretrained` and transformers read.

        Args:
            folder: path of the folder, which is made if need be.
            max_shard_bytes: the largest size of a file; what is larger is split into shards with an index.
        """
        tied = self._tied()
        kept = {name: x for name, x in self.state_dict().items() if name not in tied}
        dtype = next(iter(kept.values())).dtype
        about = {"architectures": [self.hub_name], "dtype": str(dtype).removeprefix("torch.")}
        config = {**self.config.to_dict(), **about}
        save_folder(folder, config, self.to_hub(kept), max_shard_bytes=max_shard_bytes)

    def check_ids(self, ids: Tensor, *, name: str = "ids") -> None:
        """Check that ids are integers, two-dimensional, and within the vocabulary.

        Args:
            ids: ``(B, T)`` token ids.
            name: what they are called in messages.

        Raises:
            ValueError: if they are not.
        """
        V = self.config.vocab_size
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} has dtype {ids.dtype}, expected torch.int64")
        if ids.ndim != 2 or not ids.numel():
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, expected (B, T), both at least 1")
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= V:
            raise ValueError(f"{name} has {low if low < 0 else high}, expected 0 to {V - 1}: vocab_size is {V}")

    def _tied(self) -> Mapping[str, str]:
        """Return the entries of ``tied`` that hold for this model: it may have no head."""
        own = self.state_dict() if self.config.tie_word_embeddings else {}
        return {name: source for name, source in self.tied.items() if name in own}

    def _check(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: object) -> None:
        """Raise one error that says everything that is wrong with the tensors of a folder."""
        shape = {name: tuple(x.shape) for name, x in found.items()}
        right = {name: tuple(x.shape) for name, x in wanted.items()}
        missing = [f"{name} of shape {right[name]}" for name in wanted if name not in found]
        beyond = [
            f"{name} of shape {shape[name]}" for name in found if name not in wanted and not self._is_unused(name)
        ]
        other = [name for name in wanted if name in found and shape[name] != right[name]]
        whole = [name for name in wanted if name in found and not found[name].is_floating_point()]
        apart = [pair for pair in self._tied().items() if _differ(*(found.get(name) for name in pair))]
        problems = [
            _listed("lacks ", missing),
            _listed("has, beyond what the model has, ", beyond),
            _listed("", [f"{name} has shape {shape[name]}, expected {right[name]}" for name in other]),
            _listed("", [f"{name} has dtype {found[name].dtype}, expected a floating one" for name in whole]),
            _listed("", [f"{a} and {b} differ, but tie_word_embeddings is true" for a, b in apart]),
        ]
        if any(problems):
            raise ValueError(f"{source}: {'; '.join(filter(None, problems))}")

    def _is_unused(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.unused)


class CausalLM(PretrainedModel):
    """A decoder with a head: it gives scores of the token that follows each position.

    A family derives from it, has a layer ``lm_head`` ``(D → V)``, and says where its :attr:`body`, :attr:`layers` and
    :attr:`norm` are.

    Args:
        config: what ``config.json`` says.

    Example:
        >>> from llm_study.core.config import GPT2Config
        >>> from llm_study.models.gpt2 import GPT2ForCausalLM
        >>> model = GPT2ForCausalLM(GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4))
        >>> isinstance(model, CausalLM), model(torch.tensor([[5, 6, 7]]), logits_to_keep=1).shape
        (True, torch.Size([1, 1, 97]))
    """

    bindable = True
    lm_head: nn.Linear

    @property
    def body(self) -> nn.Module:
        """What turns ids into normalized vectors, called as ``body(ids, mask=…, positions=…, cache=…)``."""
        raise NotImplementedError

    @property
    def layers(self) -> nn.ModuleList:
        """The layers; what one gives, normalized by :attr:`norm`, can be turned into logits by :meth:`head`."""
        raise NotImplementedError

    @property
    def norm(self) -> nn.Module:
        """The norm after the last layer."""
        raise NotImplementedError

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Return a score of each token of the vocabulary as the next one, after each position.

        Args:
            ids: ``(B, T)`` token ids; with a cache only those that are new.
            mask: ``(B, T)`` boolean, True where a token is real; padding may stand on either side. Or, without a cache,
                ``(B, T, T)``, True where the token of a row may see that of a column, if causality and the window of a
                layer allow it too: so texts that share a row are kept apart. Default: all are.
            positions: ``(B, T)`` position of each token. Default: 0, 1, 2, …, padding counted, or what the cache says.
            cache: keys and values of the tokens before, to which those of ``ids`` are added. Default: none.
            logits_to_keep: for how many positions, the last ones, logits are worked out. Default: all.

        Returns:
            ``(B, T, V)`` logits, or fewer if ``logits_to_keep`` says so. Those at positions of padding mean nothing.

        Raises:
            ValueError: if an id is outside the vocabulary, ``mask`` or ``positions`` does not fit, a mask ``(B, T, T)``
                is given with a cache, a position is beyond those that the model has learned, the tokens do not fit into
                the cache, or ``logits_to_keep`` is not 1 to ``T``.
        """
        self.check_ids(ids)
        check_kept(logits_to_keep, ids)
        hidden = self.body(ids, mask=mask, positions=positions, cache=cache)
        return self.head(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])

    def head(self, x: Tensor) -> Tensor:
        """Turn normalized vectors into logits.

        Args:
            x: ``(B, T, D)`` what the norm after the last layer gives.

        Returns:
            ``(B, T, V)`` logits.
        """
        logits: Tensor = self.lm_head(x)
        return logits


def _differ(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and not torch.equal(a, b)


def _listed(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what}{', '.join(items[:SHOWN])}{more}" if items else ""
