# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The made-up task of the comparison of turns: what its model knows at first, and that each contender runs."""

import math

import pytest

from benchmarks import key_lookup


def test_a_context_is_copied_and_nothing_is_known_without(capsys):
    """Any of the eight words is as likely after the bare question; with a context, the word that it names."""
    tokenizer = key_lookup.make_tokenizer()
    model = key_lookup.make_model(tokenizer, 0)
    key_lookup.teach_copying(model, tokenizer, 0, 300)
    for prefix, least, most in (("", 0.08, 0.18), ("It is w3 ", 0.95, 1.0), ("Said w5 It is w3 ", 0.95, 1.0)):
        rows = [{"prompt": f"{prefix}Key {key} ? =", "answer": "w3"} for key in key_lookup.KEYS]
        assert least < key_lookup.known(model, tokenizer, rows) <= most, prefix


@pytest.mark.parametrize("name", key_lookup.CONTENDERS)
def test_a_contender_runs(name):
    before, after, second = key_lookup.run(name, seed=0, steps=1, copying=20)
    assert 0 < before < 0.5 and 0 < after < 0.5
    assert math.isnan(second) == (name in ("grpo", "forward KL on first turns"))
