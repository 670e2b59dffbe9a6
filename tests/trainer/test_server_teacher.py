# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Training with a teacher on a server, beside the same teacher in this process."""

import pytest
import torch

import tiny
from runs import SAMPLED, history
from scoring_server import scoring


TOP = {"distillation_mode": "topk_logits", "distillation_topk": 6, "distillation_topk_source": "teacher"}


@pytest.fixture
def teacher(tokenizer, tmp_path):
    """The server of another model than the student, which is saved for a local teacher too."""
    model = tiny.model(tokenizer, seed=7)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with scoring(model, tokenizer) as server:
        server.folder = str(tmp_path / "teacher")
        yield server


def remote(server, **options):
    return {"teacher_model_kind": "server", "teacher_model_server_url": server.url, **options}


def local(server, **options):
    return {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": server.folder, **options}


LOSSES = [
    {**TOP},
    {**TOP, "distillation_add_tail": True},
    {**TOP, "distillation_alpha": 1.0, "distillation_stop_gradient": True},
    {**TOP, "distillation_alpha": 0.3, "distillation_add_tail": True, "distillation_token_clip": 2.0},
    {**TOP, "distillation_alpha": 1.0, "temperature": 0.7, "distillation_teacher_temperature": 1.0},
    {**TOP, "distillation_divergence": "skew_kl", "distillation_alpha": 0.2, "distillation_entry_clip": 0.5},
    SAMPLED,
]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_is_the_one_with_the_same_teacher_in_this_process(make_trainer, teacher, loss):
    trainers = []
    for side in (remote, local):  # one after the other, as each sets the seed
        trainers.append(make_trainer(**side(teacher), **loss, max_steps=3))
        trainers[-1].train()
    ours, theirs = (history(trainer) for trainer in trainers)
    for log, expected in zip(ours, theirs, strict=True):
        names = {name for name in log if "teacher_server" not in name}
        assert names == {name for name in expected if "teacher_entropy" not in name}
        assert {n: log[n] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=2e-4, abs=2e-5)
    for one, other in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
