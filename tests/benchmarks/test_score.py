# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Scores of models on unseen sums: which sums, which tokens, and the interval."""

import json

import pytest
import torch

import tiny
from benchmarks import __main__ as benchmarks
from benchmarks import score
from trl_opsd.examples import tasks


def test_the_sums_are_unseen():
    seen = {row["prompt"][0]["content"] for rows in tasks.addition_task().values() for row in rows}
    found = score.unseen_sums(256)
    assert len(set(found)) == 256 and not seen & {question for question, _ in found}
    for question, total in found:
        a, b = (int(word) for word in question.replace("?", "").split() if word.isdigit())
        assert a + b == total and question.replace(f"{a} + {b}", f"{b} + {a}") not in seen


def test_interval():
    """Wilson's, as in its definition: the rates whose normal bound reaches the observed one."""
    for rate, count in ((0.5, 100), (0.0, 64), (1.0, 64)):
        for bound in score.interval(rate, count):
            assert abs(rate - bound) == pytest.approx(1.96 * (bound * (1 - bound) / count) ** 0.5, abs=1e-9)


def test_a_model(tokenizer, tmp_path, capsys):
    model = tiny.model(tokenizer).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.md").write_text("Some text.")
    line = [str(tmp_path / "model"), "--problems", "3", "--max_tokens", "4", "--text", str(tmp_path / "text.md")]
    benchmarks.main(["score", *line])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ids = torch.tensor([tokenizer("Some text.")["input_ids"]])
    logps = model.double()(input_ids=ids).logits[0].log_softmax(-1)
    wanted = -logps[:-1].gather(1, ids[0, 1:, None]).mean().item()
    assert found["nats"] == pytest.approx(wanted, rel=1e-5)
    assert found["right"] == 0.0 and found["length"] <= 4 and 0 <= found["cut"] <= 1
