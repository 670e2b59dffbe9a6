# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`distillation_chunk_size` is the most tokens that any pass over a head takes at once, and changes no result."""

import pytest

from batches import batch_of
from conftest import length_reward
from runs import SAMPLED
from trl_opsd.kernels import Head


CASES = {
    "pure": {},
    "mixed": {"reward_funcs": length_reward},
    "topk": {"distillation_mode": "topk_logits", "distillation_topk": 5},
    "sampled": SAMPLED,
    "sampled and mixed": {**SAMPLED, "reward_funcs": length_reward},
    # Of all tokens at once, whose scores are a pass of their own
    "tsd_kd": {"method": "tsd_kd"},
    "dasd": {"method": "dasd"},
    "egrsd": {"method": "egrsd", "reward_funcs": length_reward},
}


@pytest.mark.parametrize("case", CASES)
def test_no_pass_over_a_head_takes_more(make_trainer, monkeypatch, case):
    sizes, project = [], Head.project

    def observed(self, hidden, *args):
        sizes.append(len(hidden))
        return project(self, hidden, *args)

    monkeypatch.setattr(Head, "project", observed)
    losses = {}
    for size in (None, 2):
        trainer = make_trainer(distillation_chunk_size=size, **CASES[case])
        batch = batch_of(trainer)
        sizes.clear()
        losses[size] = trainer._compute_loss(trainer.model, batch).item()
        assert max(sizes) == size if size else max(sizes) > 2
    assert losses[2] == pytest.approx(losses[None], rel=1e-5, abs=1e-7)
