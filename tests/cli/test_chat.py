# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Conversations with a tiny model on disk, and the report on the environment."""

from importlib.metadata import version

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from trl_opsd.cli import doctor
from trl_opsd.cli import main as cli
from virtual_tokens import holding


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def greedy(folder, tokenizer, messages, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_student_teacher_and_another_model_answer(folder, tokenizer, capsys):
    user = {"role": "user", "content": "What is 1 + 1?"}
    cli.main(["chat", str(folder), user["content"], "--max_new_tokens", "5"])
    alone = greedy(folder, tokenizer, [user], 5)
    assert capsys.readouterr().out == f"{alone}\n"
    extra = ["--context", "It is 2.", "--place", "system", "--beside", str(folder)]
    cli.main(["chat", str(folder), user["content"], "--max_new_tokens", "5", *extra])
    taught = greedy(folder, tokenizer, [{"role": "system", "content": "It is 2."}, user], 5)
    assert capsys.readouterr().out == f"student: {alone}\nteacher: {taught}\n{folder}: {alone}\n"


def test_a_conversation_remembers(folder, tokenizer, capsys, monkeypatch):
    lines = iter(["One?", "Two?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    cli.main(["chat", str(folder), "--max_new_tokens", "3"])
    first = greedy(folder, tokenizer, [{"role": "user", "content": "One?"}], 3)
    messages = [("user", "One?"), ("assistant", first), ("user", "Two?")]
    second = greedy(folder, tokenizer, [{"role": role, "content": text} for role, text in messages], 3)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_an_adapter_with_virtual_tokens(folder, tokenizer, tmp_path, capsys):
    """The student's tokens are those of whole forwards with them, the teacher is the model without."""
    model = holding(tiny.model(tokenizer), "prefix", tokenizer("Say seven.")["input_ids"]).eval()
    model.peft_config["default"].base_model_name_or_path = str(folder)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "adapter")
    user = {"role": "user", "content": "What is 1 + 1?"}
    extra = ["--context", "It is 2.", "--place", "system", "--max_new_tokens", "5"]
    cli.main(["chat", str(tmp_path / "adapter"), user["content"], *extra])
    ids = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    written = list(ids)
    for _ in range(5):
        read = torch.tensor([written])
        written.append(model(input_ids=read, attention_mask=torch.ones_like(read)).logits[0, -1].argmax().item())
    alone = tokenizer.decode(written[len(ids) :], skip_special_tokens=True).strip()
    taught = greedy(folder, tokenizer, [{"role": "system", "content": "It is 2."}, user], 5)
    assert capsys.readouterr().out == f"student: {alone}\nteacher: {taught}\n"


def test_the_doctor_finds_what_is_outside_its_bounds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # a remedy is copied, so that no terminal may break it
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch<1", "accelerate", 'no-such==1; extra == "vllm"', "nothere"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor"])
    told = capsys.readouterr().out
    assert end.value.code == 1 and "2 to mend before training" in told
    assert "pip install 'torch<1'" in told and "pip install 'nothere'" in told
    assert "optional: pip install 'trl-opsd[vllm]'" in told
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch"])
    cli.main(["doctor"])
    told = capsys.readouterr().out
    assert "Ready to train." in told and version("torch") in told
