"""The command line: ``python -m llm_study COMMAND``.

A command is a function that adds its arguments to the parser and names the function that runs it; ``COMMANDS`` lists
them. What a command needs beyond the standard library is imported when it runs, so that ``--help`` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_study import __version__

if TYPE_CHECKING:
    from llm_study.alignment.finetune import Finetuning
    from llm_study.core.config import ModelConfig
    from llm_study.core.roofline import Transformer
    from llm_study.tokenizers.base import Tokenizer
    from llm_study.training.distributed import World
    from llm_study.training.pretrain import Pretraining

__all__ = ["main"]

Row = tuple[str, int, str]  # what it is, how many, in other words
Section = tuple[str, list[Row]]
UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}


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
    """Return bytes, at least one, in the largest unit of which there is one."""
    unit, size = next((u, s) for u, s in UNITS.items() if number >= s)
    return f"{number / size:,.4g} {unit}"


def show(sections: Sequence[Section]) -> None:
    """Print sections of rows, names to the left and numbers to the right."""
    rows = [row for _, rows in sections for row in rows]
    left, right = max(len(name) for name, _, _ in rows), max(len(f"{n:,}") for _, n, _ in rows)
    for title, part in sections:
        print(f"\n{title}")
        for name, number, words in part:
            print(f"  {name:{left}}  {number:>{right},}  {words}".rstrip())


# --- generate


def add_generate(commands: Any) -> None:
    """Add the command that continues a text."""
    text = "Continue a text, or answer in a chat, with a model from a local folder; the text is shown as it is made."
    parser = commands.add_parser("generate", help="continue a text with a model", description=text)
    parser.add_argument("path", type=Path, metavar="FOLDER", help="a model's folder, with its tokenizer.json")
    parser.add_argument("prompt", help="the text; special tokens that it spells are plain text")
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=128, metavar="N", help="stop after so many tokens (default: %(default)s)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, always takes the best token")
    add("--top-k", type=int, metavar="K", help="draw from the K best tokens")
    add("--top-p", type=float, metavar="P", help="draw from the fewest tokens that have the probability P together")
    add("--min-p", type=float, metavar="P", help="draw from tokens at least P times as probable as the best")
    add("--repetition-penalty", type=float, metavar="R", help="above 1: say less of what the text has already said")
    add("--seed", type=int, metavar="S", help="draw the same tokens each time (default: others each time)")
    add("--chat", metavar="FORMAT", help="answer the prompt as a user's message: chatml, qwen2, llama3 or another")
    add("--system", metavar="TEXT", help="the system message of a chat")
    parser.set_defaults(run=generate)


def generate(arguments: argparse.Namespace) -> None:
    """Print what follows a prompt, as it is made."""
    from llm_study.tokenizers.auto import ending_ids, load_tokenizer
    from llm_study.tokenizers.base import StreamDecoder

    check_generate(arguments)
    tokenizer = load_tokenizer(arguments.path)
    ids, ends = prompt_ids(arguments, tokenizer)
    decoder = StreamDecoder(tokenizer)
    for id in ids:
        decoder.push(id)  # what follows is no beginning of a text: it may start with a space
    for id in new_ids(arguments, ids, [*ends, *ending_ids(arguments.path)]):
        if id < tokenizer.vocab_size:  # a model may have more rows, to make their number round; they spell nothing
            show_piece(decoder.push(id))
    show_piece(decoder.flush() + "\n")


def check_generate(arguments: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    for name in ("top_k", "top_p", "min_p", "seed"):
        if getattr(arguments, name) is not None and arguments.temperature == 0:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} has no effect at temperature 0: add --temperature 1, or another value above 0")
    if arguments.system is not None and arguments.chat is None:
        raise ValueError("--system has no effect without --chat: name the format of the chat")


def prompt_ids(arguments: argparse.Namespace, tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Return the ids that the model is to read, and those that end its turn."""
    from llm_study.tokenizers.auto import end_of_text, leading_ids
    from llm_study.tokenizers.chat import TEMPLATES, chat_template

    if arguments.chat is None:
        ids = [*leading_ids(arguments.path), *tokenizer.encode(arguments.prompt)]
        if not ids:
            raise ValueError("the prompt has 0 tokens, expected at least 1: write a text to be continued")
        return ids, []
    if arguments.chat not in TEMPLATES:
        raise ValueError(f"--chat is {arguments.chat!r}, expected one of {', '.join(TEMPLATES)}")
    template = chat_template(arguments.chat, end=end_of_text(arguments.path, tokenizer))
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    text = template.render([*system, {"role": "user", "content": arguments.prompt}], add_generation_prompt=True)
    end = template.answer[1].strip()
    ends = tokenizer.encode(end, allowed_special=[end])
    if len(ends) != 1:
        raise ValueError(f"--chat is {arguments.chat}, but {end} is {len(ends)} tokens to this tokenizer, expected 1")
    return tokenizer.encode(text, allowed_special=template.control), ends


def new_ids(arguments: argparse.Namespace, ids: list[int], ends: list[int]) -> Iterator[int]:
    """Yield the ids that follow, up to one that ends the text."""
    import torch

    from llm_study.generation import stream
    from llm_study.models import from_pretrained
    from llm_study.models.base import CausalLM
    from llm_study.nn.layout import lay_out_for_decoding

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, generator = from_pretrained(arguments.path).to(device), torch.Generator(device)
    if not isinstance(model, CausalLM):
        raise ValueError(f"{arguments.path}: model_type is {model.config.model_type!r}, expected that of a decoder")
    lay_out_for_decoding(model)
    ends = [id for id in ends if id < model.config.vocab_size]  # config.json may name one that its model never says
    if arguments.seed is None:
        generator.seed()
    else:
        generator.manual_seed(arguments.seed)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    options = {name: getattr(arguments, name) for name in names}
    for tokens in stream(
        model, torch.tensor([ids], device=device), generator=generator, eos_id=ends or None, **options
    ):
        if int(tokens) in ends:
            return
        yield int(tokens)


def show_piece(text: str) -> None:
    """Show a piece of text at once; what the terminal cannot show becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


# --- train


def add_train(commands: Any) -> None:
    """Add the command that makes a model from text."""
    text = "Train a tokenizer and a small model of Llama's architecture on a text. "
    text += "Checkpoints are written as it goes: the same command again goes on from the last one."
    note = "With several processes: torchrun --nproc-per-node 2 -m llm_study train …"
    parser = commands.add_parser("train", help="train a model on a text", description=text, epilog=note)
    add = parser.add_argument
    text_help = "a text in UTF-8, or a folder whose files in .txt, .md and .rst are read, also those in folders below"
    add("--text", type=Path, required=True, metavar="FILE|FOLDER", help=text_help)
    add("--out", type=Path, required=True, metavar="FOLDER", help="where checkpoints go, and the model at the end")
    add("--steps", type=int, metavar="N", help="number of steps (default: 1000, or what the file of settings says)")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the weights and of the order of the text (default: 0, or as above)",
    )
    add("--config", type=Path, metavar="FILE", help="settings in TOML, named as in llm_study.training.pretrain")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on with training, and write the model."""
    from llm_study.data.texts import read_texts, split_texts
    from llm_study.training.distributed import connect
    from llm_study.training.pretrain import PretrainConfig, Pretraining

    options = {name: getattr(arguments, name) for name in ("steps", "seed")}
    options = {name: value for name, value in options.items() if value is not None}
    config = PretrainConfig(**options)
    if arguments.config is not None:
        config = PretrainConfig.from_toml(arguments.config, **options)
    corpus = split_texts(read_texts(arguments.text), config.held_out)
    with connect() as world:
        go(Pretraining(corpus, config, folder=arguments.out, world=world), world)


# --- finetune


def add_finetune(commands: Any) -> None:
    """Add the command that teaches a model conversations."""
    text = "Fine-tune a decoder from a local folder on conversations, all of it or by an adapter that is then merged. "
    text += "Checkpoints are written as it goes: the same command again goes on from the last one."
    note = 'A line of the data: {"messages": [{"role": "user", "content": "…"}, '
    note += '{"role": "assistant", "content": "…"}]}'
    parser = commands.add_parser("finetune", help="fine-tune a model on conversations", description=text, epilog=note)
    add = parser.add_argument
    add("path", type=Path, metavar="FOLDER", help="the folder of the model, with its tokenizer.json")
    add("--data", type=Path, required=True, metavar="FILE", help="conversations in JSONL, one a line")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where checkpoints go, and the model at the end")
    add("--method", metavar="NAME", help="lora, the default, or dora, pissa, vera, … or full, which trains everything")
    add("--rank", type=int, metavar="R", help="rank of the adapter (default: 8)")
    add("--chat", metavar="FORMAT", help="chatml, qwen2, llama3, … (default: the one that the tokenizer is made for)")
    add("--steps", type=int, metavar="N", help="number of steps (default: as many as three passes over the data take)")
    add("--learning-rate", type=float, metavar="X", help="the largest one (default: 2e-4)")
    add("--seed", type=int, metavar="N", help="seed of the adapter and of the order of the data (default: 0)")
    add("--config", type=Path, metavar="FILE", help="settings in TOML, named as in llm_study.alignment.finetune")
    parser.set_defaults(run=finetune)


def finetune(arguments: argparse.Namespace) -> None:
    """Fine-tune, or go on with it, and write adapter and model."""
    from llm_study.alignment.finetune import FinetuneConfig, Finetuning
    from llm_study.training.distributed import connect

    names = ("method", "rank", "chat", "steps", "learning_rate", "seed")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    config = FinetuneConfig(**options)
    if arguments.config is not None:
        config = FinetuneConfig.from_toml(arguments.config, **options)
    with connect() as world:
        go(Finetuning(arguments.path, arguments.data, config, folder=arguments.out, world=world), world)


def go(run: "Pretraining | Finetuning", world: "World") -> None:
    """Take all steps of a run that are left, tell what it does, and save what came of it."""
    from llm_study.training.progress import ProgressBar

    resumed = run.trainer.resume()
    if world.rank == 0:
        print(run.describe(resumed=resumed), file=sys.stderr, flush=True)
    run.trainer.report = bar = ProgressBar()
    try:
        run.trainer.run()
    finally:
        bar.close()
    run.save()
    if world.rank == 0:
        print(run.summary())


# --- all commands

COMMANDS: tuple[Callable[[Any], None], ...] = (add_params, add_generate, add_train, add_finetune)
BROKEN_PIPE, INTERRUPTED = 141, 130
"""Exit status of a program that a signal ended, 128 and its number, as shells count."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the name of the program. Default: those that the program was called with.

    Returns:
        The exit status: 0; 2 if an argument, a file or a folder is not as it should be; 130 after Ctrl-C, and 141 if
        nobody reads the output any more, as with ``| head``.
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
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
