"""The command line: what params prints, what generate refuses, and that bad input gives one line and exit status 2."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llm_study.__main__
from llm_study import __version__
from llm_study.__main__ import gibibytes, main, show_piece
from llm_study.core.config import config_from_dict
from llm_study.core.roofline import forward_flops, kv_bytes_per_token, kv_cache_bytes, parameters, training_flops

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
TABLE = """\
llama: 32 layers of width 4,096

parameters
  all                         8,030,261,248
  embedding                     525,336,576
  each layer                    218,112,000
  32 layers                   6,979,584,000
  norms outside the layers            4,096
  head                          525,336,576

FLOPs per token, in a text of 8,192 tokens
  forward                    19,304,284,160
  of these, for weights      15,009,316,864  2 for each weight of a matrix
  of these, for attention     4,294,967,296  queries with keys, weights with values
  training                   57,912,852,480  forward and backward

bytes of keys and values, in bf16
  per token                         131,072
  8,192 tokens                1,073,741,824  1 GiB

bytes of memory, without activations
  weights, in bf16           16,060,522,496  14.96 GiB
  training with Adam        128,484,179,968  119.7 GiB: 16 per parameter, in mixed precision
"""
TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
TINY = {**TINY, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def numbers(text: str) -> dict[str, list[int]]:
    """Return the numbers of each row, by what stands before them; a name may come more than once."""
    found: dict[str, list[int]] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            name, number, *_ = [part for part in line.strip().split("  ") if part]
            found.setdefault(name, []).append(int(number.replace(",", "")))
    return found


def test_llama_3_8b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", str(write(tmp_path, LLAMA_3_8B))]) == 0
    assert capsys.readouterr().out == TABLE


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text", "gpt2", "bert"]


@pytest.mark.parametrize("length", [1, 24, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_roofline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, length: int
) -> None:
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64} if family == "gpt2" else TINY
    raw = {"model_type": family, **sizes, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}
    assert main(["params", str(write(tmp_path, raw) / "config.json"), "--length", str(length)]) == 0
    found, model = numbers(capsys.readouterr().out), config_from_dict(raw).transformer()
    count = parameters(model)
    assert found["all"] == [count.total]
    assert found["embedding"] == [count.embedding]
    assert found["head"] == [count.head]
    rest = found["6 layers"][0] + found["norms outside the layers"][0]
    assert rest == count.attention + count.feed_forward + count.norms
    assert sum(found["each layer"]) * 6 == found["6 layers"][0]
    assert found["forward"] == [forward_flops(model, length).total // length]
    assert found["of these, for weights"][0] + found["of these, for attention"][0] == found["forward"][0]
    assert found["training"] == [training_flops(model, length).total // length]
    assert found["weights, in bf16"] == [2 * count.total]
    assert found["training with Adam"] == [16 * count.total]
    if family != "bert":
        assert found["per token"] == [kv_bytes_per_token(model)]
        assert found[f"{length:,} tokens"] == [kv_cache_bytes(model, length)]


@pytest.mark.parametrize(
    ("family", "windows", "beyond"),
    [("llama", 0, 0), ("mistral", 6, 0), ("gemma2", 3, 192), ("gemma3_text", 5, 64), ("qwen2", 2, 256)],
)
def test_windows_and_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, windows: int, beyond: int
) -> None:
    each = 2 * 2 * 8 * 2  # a key and a value, 2 heads, width 8, 2 bytes
    raw = {"model_type": family, **TINY, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}
    main(["params", str(write(tmp_path, raw))])
    text = capsys.readouterr().out
    found = numbers(text)
    assert found["per token"] == [6 * each]
    assert found["64 tokens"] == [each * (64 * (6 - windows) + 8 * windows)]
    if windows:
        assert found["per token after 8"] == [beyond] == [each * (6 - windows)]
        assert found["64 tokens without window"] == [6 * each * 64]
        assert f"{windows} of 6 layers keep 8 tokens" in text
    else:
        assert "window" not in text


def test_an_encoder_with_a_decoder_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    assert main(["params", str(write(tmp_path, {"model_type": "t5", **sizes}))]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "model_type is 't5', expected a decoder or an encoder" in error


def test_an_encoder_has_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["params", str(write(tmp_path, {"model_type": "bert", **TINY}))])
    text = capsys.readouterr().out
    assert "bytes of keys and values, in bf16: none, an encoder keeps no cache" in text
    assert "its matrix is that of the embedding" in text
    main(["params", str(write(tmp_path, {"model_type": "bert", **TINY, "architectures": ["BertModel"]}))])
    assert numbers(capsys.readouterr().out)["head"] == [0]


@pytest.mark.parametrize(
    ("number", "text"),
    [(1023, "1,023 bytes"), (1024, "1 KiB"), (3 * 2**19, "1.5 MiB"), (2**30, "1 GiB"), (2**50, "1,024 TiB")],
)
def test_units(number: int, text: str) -> None:
    assert gibibytes(number) == text


# --- bad input


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as people do."""
    command = [sys.executable, "-m", "llm_study", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bad_input_gives_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    good, bad, list_, other = (tmp_path / name for name in ("good.json", "bad.json", "list.json", "other.json"))
    good.write_text(json.dumps({"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4}))
    bad.write_text("{")
    list_.write_text("[]")
    other.write_text(json.dumps({"model_type": "mamba"}))
    cases: dict[str, list[object]] = {
        "nowhere: there is no such folder": [tmp_path / "nowhere"],
        "empty: has no config.json": [empty],
        "bad.json: no JSON": [bad],
        "list.json: holds a list, expected an object": [list_],
        "other.json: model_type is 'mamba', expected one of bert": [other],
        "--length is 0, expected 1 to 1024": [good, "--length", 0],
        "--length is 1025, expected 1 to 1024": [good, "--length", 1025],
    }
    for text, arguments in cases.items():
        assert main(["params", *map(str, arguments)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("python -m llm_study: error: ")
        assert error.count("\n") == 1
        assert text in error


# --- generate: its text is compared with that of transformers in tests/parity/test_generate_command.py


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model with a tokenizer that knows the tokens of ChatML."""
    from llm_study.core.config import GPT2Config
    from llm_study.models.gpt2 import GPT2ForCausalLM
    from llm_study.tokenizers.bpe import ByteLevelBPE

    folder = tmp_path_factory.mktemp("model")
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = ByteLevelBPE.train(["low lower lowest"], vocab_size=260, special_tokens=special)
    tokenizer.save(folder / "tokenizer.json")
    GPT2ForCausalLM(GPT2Config(vocab_size=260, n_positions=256, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return folder


BAD_OPTIONS = {
    "the prompt has 0 tokens, expected at least 1: write a text to be continued": [""],
    "text has a lone surrogate U+DCFF at index 1": ["a\udcff"],
    "max_new_tokens is 0, expected at least 1": ["low", "--max-new-tokens", "0"],
    "temperature is -1.0": ["low", "--temperature", "-1"],
    "top_k is 0, expected at least 1": ["low", "--temperature", "1", "--top-k", "0"],
    "top_p is 1.5": ["low", "--temperature", "1", "--top-p", "1.5"],
    "min_p is nan": ["low", "--temperature", "1", "--min-p", "nan"],
    "repetition_penalty is 0.0": ["low", "--repetition-penalty", "0"],
    "--top-k has no effect at temperature 0: add --temperature 1": ["low", "--top-k", "5"],
    "--min-p has no effect at temperature 0": ["low", "--min-p", "0.1"],
    "--seed has no effect at temperature 0": ["low", "--seed", "0"],
    "--system has no effect without --chat": ["low", "--system", "Be brief."],
    "--chat is 'made up', expected one of chatml, qwen2, llama2": ["low", "--chat", "made up"],
    "'<|eot_id|>' is no special token": ["low", "--chat", "llama3"],
    "message 0 spells the control token <|im_end|>": ["low<|im_end|>", "--chat", "chatml"],
    "'<|endoftext|>' is no special token": ["low", "--chat", "plain"],
    "n_positions is 256, expected at least 257": ["low", "--max-new-tokens", "257"],
}


@pytest.mark.parametrize("text", BAD_OPTIONS)
def test_bad_options_of_generate(model: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["generate", str(model), *BAD_OPTIONS[text]]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("python -m llm_study: error: ")
    assert error.count("\n") == 1
    assert text in error


def test_bad_folders_of_generate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without(name: str, text: str | None = None) -> Path:
        folder = tmp_path / f"{name} {text}".replace("/", " ").replace('"', "")
        shutil.copytree(model, folder)
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text, "utf-8")
        return folder

    bert = {"model_type": "bert", **TINY, "vocab_size": 260}
    ends = "generation_config.json"
    for text, folder in [
        ("nowhere: there is no such folder", tmp_path / "nowhere"),
        ("has neither tokenizer.json nor a .tiktoken file", without("tokenizer.json")),
        ("tokenizer.json: no JSON", without("tokenizer.json", "{")),
        ("config.json: there is no such folder", model / "tokenizer.json" / "config.json"),
        ("is a file, expected the folder of a model", model / "tokenizer.json"),
        ("has no config.json", without("config.json")),
        ("has neither model.safetensors nor", without("model.safetensors")),
        ("model.safetensors: cut off or damaged", without("model.safetensors", "")),
        ("generation_config.json: holds a list", without(ends, "[]")),
        ("generation_config.json: eos_token_id is 'a', expected a number", without(ends, '{"eos_token_id": "a"}')),
        ("generation_config.json: eos_token_id is [1.5]", without(ends, '{"eos_token_id": [1.5]}')),
        ("config.json: model_type is 'mamba'", without("config.json", '{"model_type": "mamba"}')),
        ("lacks", without("config.json", json.dumps(bert))),
    ]:
        assert main(["generate", str(folder), "low"]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("python -m llm_study: error: ")
        assert error.count("\n") == 1
        assert text in error


def test_generate_needs_a_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    from llm_study.core.config import BertConfig
    from llm_study.models.bert import BertForMaskedLM

    shutil.copy(model / "tokenizer.json", tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=260, **sizes)).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "low"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "model_type is 'bert', expected that of a decoder" in error


def test_what_a_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    show_piece("é!")
    assert stdout.buffer.getvalue() == b"?!"  # at once, not when the program ends


@pytest.mark.parametrize("command", ["params", "generate"])
def test_an_interrupted_command_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm_study.__main__, command, interrupt)
    assert main([command, "folder", *["prompt"] * (command == "generate")]) == 130
    assert capsys.readouterr() == ("", "")


def test_status_and_streams_of_the_program(tmp_path: Path) -> None:
    done = run("params", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"python -m llm_study: error: {tmp_path}: has no config.json\n"
    done = run("params", write(tmp_path, LLAMA_3_8B))
    assert (done.returncode, done.stderr) == (0, "")
    assert "8,030,261,248" in done.stdout


def test_a_longer_text_than_the_model_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", str(write(tmp_path, LLAMA_3_8B)), "--length", "100000"]) == 0  # rotary positions go on
    assert "in a text of 100,000 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["params"],
        ["made-up"],
        ["params", ".", "--length", "many"],
        ["generate", "."],
        ["train", "--text", "."],
        ["train", "--out", "."],
        ["train", "--text", ".", "--out", ".", "--steps", "many"],
        ["finetune", ".", "--data", "."],
        ["finetune", ".", "--out", "."],
        ["finetune", "--data", ".", "--out", "."],
        ["finetune", ".", "--data", ".", "--out", ".", "--rank", "many"],
        ["--made-up"],
    ],
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m llm_study" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in [
        (["--help"], "params"),
        (["params", "--help"], "FOLDER|CONFIG.json"),
        (["generate", "--help"], "--max-new-tokens N"),
        (["train", "--help"], "--text FILE|FOLDER"),
        (["finetune", "--help"], "--method NAME"),
        (["--version"], __version__),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


WITHOUT_TORCH = """
import sys
from llm_study.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as left:  # argparse leaves after help and usage
    assert left.code in (0, 2)
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["finetune", "--help"], ["train"], ["params", "."]]
)
def test_help_usage_and_counting_do_not_import_torch(tmp_path: Path, arguments: list[str]) -> None:
    write(tmp_path, LLAMA_3_8B)
    environment = {**os.environ, "PYTHONPATH": str(Path(llm_study.__file__).parents[1])}
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("usage: python -m llm_study" in done.stdout + done.stderr) == (arguments != ["params", "."])
