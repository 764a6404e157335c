"""The models that people use, whose weights are read from the folders that Hugging Face's libraries write.

:func:`from_pretrained` gives the right model for a folder. It is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_study.models.auto import from_pretrained

__all__ = ["from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        from llm_study.models.auto import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
