# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The code of docs/test_time.md runs as printed, with a tiny model in place of the Hub's. Rows are forgotten."""

import re
from pathlib import Path

import pytest
import torch

import tiny


PAGE = Path(__file__).parents[2] / "docs" / "test_time.md"
MODEL = '"Qwen/Qwen2.5-1.5B-Instruct"'
ACTIONS = ["search", "forecast"]


@pytest.fixture
def names(tmp_path, tokenizer, monkeypatch):
    """What the script defines, once it has run."""
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert script.count(MODEL) == 1
    names = {}
    exec(script.replace(MODEL, repr(str(tmp_path / "model"))), names)
    return names


def adapted(names, question):
    """Adapter weights after a step on a row, and the greedy answer with them."""
    torch.manual_seed(0)
    model = names["trained_on"](names["model"], question, "42").eval()
    weights = {name: one.detach().clone() for name, one in model.named_parameters() if "lora" in name}
    text = names["write"](model, "What is it?", tokens=8)
    model.unload()
    return weights, text


def test_a_row_is_forgotten(names):
    """A row that is trained after another leaves what it leaves when it comes first, and the base stays as it was."""
    start = {name: one.detach().clone() for name, one in names["model"].named_parameters()}
    first, other, again = (adapted(names, question) for question in ("What is 1?", "Why is 2?", "What is 1?"))
    assert first[0].keys() == again[0].keys() and first[0]
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0]) and first[1] == again[1]
    assert any(not torch.equal(first[0][name], other[0][name]) for name in first[0]), "rows teach different things"
    assert any(one.any() for name, one in first[0].items() if "lora_B" in name), "a step was taken"
    after = dict(names["model"].named_parameters())
    assert after.keys() == start.keys() and all(torch.equal(after[name], start[name]) for name in start)


def test_only_uncertain_questions_are_trained_on(names, monkeypatch):
    trained = []
    train = names["trained_on"]
    monkeypatch.setitem(names, "trained_on", lambda *arguments: trained.append(arguments) or train(*arguments))
    margin = names["margin"](names["model"], "What is it?", ACTIONS)
    assert 0 <= margin <= 1
    names["answer"]("What is it?", ACTIONS, least=margin)
    assert not trained
    names["answer"]("What is it?", ACTIONS, least=margin + 1e-6)
    assert len(trained) == 1 and trained[0][1], "the similar question"


def test_the_margin_is_that_of_the_likelihoods(names, tokenizer):
    model, question = names["model"].double(), "What is it?"
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    asked, likelihoods = tokenizer(text)["input_ids"], []
    for action in ACTIONS:
        ids, total = list(asked), 1.0
        for token in tokenizer(action)["input_ids"]:
            with torch.no_grad():
                total *= float(model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token])
            ids.append(token)
        likelihoods.append(total)
    shares = sorted(one / sum(likelihoods) for one in likelihoods)
    assert names["margin"](model, question, ACTIONS) == pytest.approx(shares[1] - shares[0], rel=1e-6)
