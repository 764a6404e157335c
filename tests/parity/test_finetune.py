"""What finetune writes, read by transformers and peft: the same logits, the same conversation, the same answer."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_study.__main__ import main
from llm_study.core.config import LlamaConfig
from llm_study.models import from_pretrained
from llm_study.models.llama import LlamaForCausalLM
from llm_study.tokenizers.bpe import ByteLevelBPE
from llm_study.tokenizers.chat import TEMPLATES
from tests.parity.closeness import assert_close

TURNS = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "stop"}]
SPECIAL = {"plain": ["<|endoftext|>"], "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}


@pytest.fixture(params=SPECIAL)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Return the format, and a folder with a fine-tuned model in ``out`` and what it was made of in ``base``."""
    torch.manual_seed(0)
    special = SPECIAL[request.param]
    tokenizer = ByteLevelBPE.train(["red stop red stop"], vocab_size=258 + len(special), special_tokens=special)
    (tmp_path / "base").mkdir()
    tokenizer.save(tmp_path / "base/tokenizer.json")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.special_tokens["<|endoftext|>"]}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.vocab_size, **sizes, **ends))
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.ndim > 1 else 1
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": TURNS}) + "\n") * 4, "utf-8")
    (tmp_path / "run.toml").write_text("learning_rate = 0.01\nwarmup = 2\nbatch_size = 4\nheld_out = 0.0\n", "utf-8")
    command = ["finetune", str(tmp_path / "base"), "--data", str(tmp_path / "chat.jsonl"), "--steps", "40"]
    assert main([*command, "--out", str(tmp_path / "out"), "--config", str(tmp_path / "run.toml")]) == 0
    return request.param, tmp_path


def test_transformers_and_peft_read_what_was_written(
    place: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = place
    model, tokenizer = (kind.from_pretrained(folder / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    template, ours = TEMPLATES[name], from_pretrained(folder / "out")
    for messages, prompt in ((TURNS, False), (TURNS[:1], True)):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert text == template.render(messages, add_generation_prompt=prompt)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    own = ByteLevelBPE.load(folder / "out/tokenizer.json").encode(text, allowed_special=template.control)
    assert ids[0].tolist() == own
    with torch.no_grad():
        assert_close(ours(ids), model(ids).logits)
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, folder / "out/adapter")
        torch.testing.assert_close(adapted(ids).logits, ours(ids), rtol=1e-5, atol=1e-4)
    assert tokenizer.eos_token == template.answer[1].strip()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    said = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == "stop"
    capsys.readouterr()
    assert main(["generate", str(folder / "out"), "red?", "--chat", name, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == "stop"
