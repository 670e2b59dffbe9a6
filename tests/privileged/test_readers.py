# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Views that the student itself reads, beside those of a teacher that stands still."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from batches import batch_of
from trl_opsd import View
from trl_opsd.privileged import DatasetColumn, Empty, rollouts_of


WORDS = ["seven", "three", "eight"]
both_adapters = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def same_width():
    """So that a batch has one shape on both sides, and agreement is exact."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": word}]} for word in WORDS * 4])


def gradients(trainer):
    return [param.grad.clone() for param in trainer.model.parameters() if param.grad is not None]


def lora_of(lora):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None


def moved(trainer):
    """The student a step away from where it started, so that a base teacher is another."""
    with torch.no_grad():
        for name, param in trainer.model.named_parameters():
            if param.requires_grad and ("lora" in name or "q_proj" in name):
                param.add_(0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(len(name))))


def divergences(trainer, inputs):
    """Mean divergence of each view, and the greatest gradient."""
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    gradient = max(param.grad.abs().max().item() for param in trainer.model.parameters() if param.grad is not None)
    logged = trainer._metrics["train"]
    names = [name for name in logged if name.startswith("self_distillation/divergence/")]
    return {name.rpartition("/")[2]: logged[name][-1] for name in names}, gradient


@both_adapters
def test_identical_contexts_of_a_live_reader_give_zero(make_trainer, lora):
    """Under a base teacher, and after a step away from it."""
    alone = [View(name="self", reader="live")]
    trainer = make_trainer(
        privileged=lambda groups: [alone for _ in rollouts_of(groups)], teacher_model_kind="base",
        peft_config=lora_of(lora), teacher_share_prefix=False, dataset=same_width(),
    )  # fmt: skip
    moved(trainer)
    assert divergences(trainer, batch_of(trainer)) == ({"self": 0.0}, 0.0)


@both_adapters
def test_beside_a_base_teacher(make_trainer, lora):
    """Two views of one context, two readers: the student agrees with itself, and not with where it started."""
    views = [View(name="start"), View(name="self", reader="live")]
    trainer = make_trainer(
        privileged=lambda groups: [views for _ in rollouts_of(groups)], teacher_model_kind="base",
        peft_config=lora_of(lora), teacher_share_prefix=False, dataset=same_width(),
    )  # fmt: skip
    moved(trainer)
    found, gradient = divergences(trainer, batch_of(trainer))
    assert found["self"] == 0.0 < found["start"] and gradient > 0


@both_adapters
def test_a_live_reader_says_what_a_live_teacher_says(make_trainer, lora):
    """Same context, same rollouts, same divergence and gradients."""
    results = []
    for kind, reader in (("base", "live"), ("live", "teacher")):
        torch.manual_seed(0)
        trainer = make_trainer(
            privileged=DatasetColumn(reader=reader), teacher_model_kind=kind, peft_config=lora_of(lora)
        )
        moved(trainer)
        torch.manual_seed(1)
        results.append((*divergences(trainer, batch_of(trainer)), gradients(trainer)))
    (one, size, all_one), (other, _, all_other) = results
    assert one == other and one["privileged"] > 0 and size > 0
    for a, b in zip(all_one, all_other, strict=True):
        torch.testing.assert_close(a, b)


def test_a_base_reader_says_something_else(make_trainer):
    """Or the test above could not fail."""
    found = []
    for reader in ("teacher", "live"):
        torch.manual_seed(0)
        trainer = make_trainer(privileged=DatasetColumn(reader=reader), teacher_model_kind="base")
        moved(trainer)
        torch.manual_seed(1)
        found.append(divergences(trainer, batch_of(trainer))[0]["privileged"])
    assert found[0] != found[1]


@pytest.mark.parametrize("mode", ["full_logits", "sampled_token"])
def test_a_run_with_two_readers(make_trainer, mode):
    """Through several steps, by name, in both ways of scoring."""
    column = {"column": "privileged_context"}
    trainer = make_trainer(
        privileged_source={"all_of": [{"column": {**column, "name": "start"}},
                                      {"column": {**column, "name": "self", "reader": "live"}}]},
        distillation_mode=mode, distillation_alpha=1.0, max_steps=2,
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[1]
    assert log["self_distillation/divergence/start"] != log["self_distillation/divergence/self"]
    assert {view.reader for views in trainer.collected.views for view in views} == {"teacher", "live"}


def test_an_unknown_reader_is_refused():
    with pytest.raises(ValueError, match=r"`reader` must be one of \['teacher', 'live'\], got 'student'"):
        DatasetColumn(reader="student")


def test_an_empty_context_keeps_its_reader():
    (views,) = Empty(reader="live")([[object()]])
    assert views == [View(reader="live")]
