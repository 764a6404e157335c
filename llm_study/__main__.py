"""The command line: ``python -m llm_study COMMAND``.

A command is a function that adds its arguments to the parser and names the function that runs it; ``COMMANDS`` lists
them. What a command needs beyond the standard library is imported when it runs, so that ``--help`` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_study import __version__

if TYPE_CHECKING:
    from llm_study.core.config import ModelConfig
    from llm_study.core.roofline import Transformer

__all__ = ["main"]

Row = tuple[str, int, str]  # what it is, how many, in other words
Section = tuple[str, list[Row]]


# --- params


def add_params(commands: Any) -> None:
    """Add the command that says what a model has and what it costs."""
    text = "Count the parameters of a model and what it costs to run and to train it, from its config.json alone."
    note = (
        "FLOPs count matrix products, a multiplication and an addition as two, and in attention every query with every "
    )
    note += "key (in a window, with as many keys as the window is wide). Memory is without activations."
    parser = commands.add_parser("params", help="parameters, FLOPs, cache and memory", description=text, epilog=note)
    parser.add_argument("path", type=Path, metavar="FOLDER|CONFIG.json", help="a model's folder, or its config.json")
    length_help = "tokens of the text that attention and cache are counted for (default: the longest the model is for)"
    parser.add_argument("--length", type=int, metavar="T", help=length_help)
    parser.set_defaults(run=params)


def params(arguments: argparse.Namespace) -> None:
    """Print what a model has and what it costs."""
    from llm_study.core.config import config_from_dict
    from llm_study.core.hub import CONFIG, read_config, read_json

    path: Path = arguments.path
    raw = read_json(path) if path.is_file() else read_config(path)
    config = config_from_dict(raw, source=str(path if path.is_file() else path / CONFIG))
    model = config.transformer()
    length = config.max_length if arguments.length is None else arguments.length
    if length < 1 or (model.learned_positions and length > config.max_length):
        raise ValueError(f"--length is {length}, expected 1 to {config.max_length}, as {path} says")
    print(f"{config.model_type}: {model.num_hidden_layers} layers of width {model.hidden_size:,}")
    show([sizes(model), flops(model, length), cache(config, model, length), memory(model)])


def sizes(model: "Transformer") -> Section:
    """Return where the parameters are."""
    from llm_study.core.roofline import parameters

    count, D = parameters(model), model.hidden_size
    norm = D * (1 + model.norm_bias)
    layers = [
        x.attention.parameters(D) + x.attention.norm_parameters + x.feed_forward.parameters(D) + x.norms * norm
        for x in model.layers
    ]
    head = "its matrix is that of the embedding" if model.tie_word_embeddings and model.head != "none" else ""
    return "parameters", [
        ("all", count.total, ""),
        ("embedding", count.embedding, ""),
        *(("each layer", size, "") for size in dict.fromkeys(layers)),
        (f"{len(layers)} layers", sum(layers), ""),
        ("norms outside the layers", count.total - count.embedding - sum(layers) - count.head, ""),
        ("head", count.head, head),
    ]


def flops(model: "Transformer", length: int) -> Section:
    """Return the FLOPs of one token in a text."""
    from llm_study.core.roofline import forward_flops, matmul_parameters, training_flops

    forward, training = forward_flops(model, length), training_flops(model, length)
    return f"FLOPs per token, in a text of {length:,} tokens", [
        ("forward", forward.total // length, ""),
        ("of these, for weights", 2 * matmul_parameters(model), "2 for each weight of a matrix"),
        ("of these, for attention", forward.scores // length, "queries with keys, weights with values"),
        ("training", training.total // length, "forward and backward"),
    ]


def cache(config: "ModelConfig", model: "Transformer", length: int) -> Section:
    """Return the bytes of the keys and values that decoding keeps."""
    from llm_study.core.roofline import kv_bytes_per_token, kv_cache_bytes

    title = "bytes of keys and values, in bf16"
    if config.model_type == "bert":
        return f"{title}: none, an encoder keeps no cache", []
    each, whole = int(kv_bytes_per_token(model)), int(kv_cache_bytes(model, length))
    rows = [("per token", each, ""), (f"{length:,} tokens", whole, gibibytes(whole))]
    windows = {layer.attention.window for layer in model.layers if layer.attention.window is not None}
    for window in sorted(windows):
        n, L = sum(layer.attention.window == window for layer in model.layers), model.num_hidden_layers
        rows.append((f"per token after {window:,}", each * (L - n) // L, f"{n} of {L} layers keep {window:,} tokens"))
    if whole < each * length:
        rows.append((f"{length:,} tokens without window", each * length, gibibytes(each * length)))
    return title, rows


def memory(model: "Transformer") -> Section:
    """Return the bytes of the weights, and of all that training with Adam keeps besides activations."""
    from llm_study.core.roofline import parameters, training_bytes

    total = parameters(model).total
    training = int(training_bytes(total).total)
    return "bytes of memory, without activations", [
        ("weights, in bf16", 2 * total, gibibytes(2 * total)),
        ("training with Adam", training, f"{gibibytes(training)}: 16 per parameter, in mixed precision"),
    ]


def gibibytes(number: int) -> str:
    """Return bytes in a unit that people read: GiB, or MiB and KiB where there is less than one."""
    unit, size = next((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1)) if number >= s)
    return f"{number / size:,.4g} {unit}"


def show(sections: Sequence[Section]) -> None:
    """Print sections of rows, names to the left and numbers to the right."""
    rows = [row for _, rows in sections for row in rows]
    left, right = max(len(name) for name, _, _ in rows), max(len(f"{n:,}") for _, n, _ in rows)
    for title, part in sections:
        print(f"\n{title}")
        for name, number, words in part:
            print(f"  {name:{left}}  {number:>{right},}  {words}".rstrip())


# --- all commands

COMMANDS: tuple[Callable[[Any], None], ...] = (add_params,)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the name of the program. Default: those that the program was called with.

    Returns:
        The exit status: 0; 2 if an argument, a file or a folder is not as it should be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llm_study", description="The algorithms of large language models, on the command line."
    )
    parser.add_argument("--version", action="version", version=f"llm_study {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
