# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The example of a document in a prefix, on a tiny model."""

import json
import sys

import tiny
from examples import document_prefix
from trl_opsd.examples import data


def test_each_model_is_trained_and_asked_once(tmp_path, tokenizer, monkeypatch, capsys):
    for part in (tiny.model(tokenizer, max_position_embeddings=4096), tokenizer):
        part.save_pretrained(tmp_path / "model")
    own = {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "document")}
    text = data.prepare("document", tmp_path / "document") / "text" / "document.txt"
    monkeypatch.setattr(document_prefix, "MODEL", str(tmp_path / "model"))
    monkeypatch.setattr(document_prefix, "DATA", tmp_path / "document")
    monkeypatch.setattr(document_prefix, "OUTPUT", tmp_path / "out")
    monkeypatch.setattr(document_prefix, "RESULTS", tmp_path / "out" / "results.jsonl")
    monkeypatch.setitem(document_prefix.ARMS, "trained", own | {"prefix_text": str(text)})
    arms = ["no prefix", "untrained", "trained", "whole document"]
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "1", "--max_steps", "2", "--arms", *arms])
    document_prefix.main()
    told = capsys.readouterr().out
    assert told.count("of 40 right") == 4
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["arm"], one["seed"]) for one in results] == [*((arm, None) for arm in arms[:2]), ("trained", 1),
                                                              (arms[3], None)]  # fmt: skip
    # What is read decides, so no two models say the same of the right sentences
    assert len({one["log_probability"] for one in results}) == 4
    document_prefix.main()
    assert capsys.readouterr().out == "", "nothing is made again"
