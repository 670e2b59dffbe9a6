# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SD-Zero: half of each divergence, and a teacher that reads the student's own attempt with a verdict before it."""

import pytest
import torch
from datasets import Dataset

from agents import agent_model, agent_tokenizer_with_schema, multiply, with_scripted_sampler
from batches import batch_of, completions, student_prompts, teacher_reads
from conftest import length_reward
from method_batches import MIXED, gradients, norm, scripted_trainer
from method_cases import check_loss
from trl_opsd import OPSDConfig
from trl_opsd.privileged import SelfRevision


def kl(log_a, log_b):
    """KL(a || b) of each token."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


@pytest.mark.parametrize("forward", [0.0, 0.5, 1.0])
def test_loss(forward):
    """Value and gradient in float64; 0 is the paper, 0.5 the code, 1 the forward KL alone."""

    def mixed(log_p, log_qs, labels):
        return (1 - forward) * kl(log_p, log_qs[0]) + forward * kl(log_qs[0], log_p)

    loss = check_loss("sd_zero", ["privileged"], mixed, method_options={"forward": forward})
    if forward != 0.5:  # the divergence that the library has
        same = check_loss("sdft", ["privileged"], mixed, distillation_alpha=1.0 - forward)
        torch.testing.assert_close(loss, same)
    assert loss > 0


def test_several_views():
    """The mean over the views, in both halves."""

    def mean(log_p, log_qs, labels):
        return sum(kl(log_p, log_q) + kl(log_q, log_p) for log_q in log_qs) / 4

    check_loss("sd_zero", ["a", "b"], mean, method_options={"forward": 0.5})


def test_loss_on_the_teachers_top_k():
    """The support options of the config, as the authors' code has them, with the paper's divergence."""

    def on_set(log_p, log_qs, labels):
        ids = log_qs[0].topk(4, -1).indices
        sides = [side.gather(-1, ids).log_softmax(-1) for side in (log_p, log_qs[0])]
        return kl(*sides)

    options = {"distillation_mode": "topk_logits", "distillation_topk": 4, "distillation_topk_source": "teacher"}
    check_loss("sd_zero", ["privileged"], on_set, **options)


def test_values():
    config = OPSDConfig("unused", method="sd_zero", bf16=False, num_generations=1)
    assert (config.teacher_model_kind, config.distillation_alpha, config.policy_weight) == ("base", 1.0, 0.0)


# The teacher's prompt


def test_the_teacher_reads_the_attempt_and_a_verdict(make_trainer):
    """Prompt ids, then the ids of attempt and phrase as text, then the same completion."""
    trainer = scripted_trainer(make_trainer, "sd_zero", MIXED, ["5", "6", "7", "2 + 3 = 5"])
    batch, tokenizer = batch_of(trainer), trainer.processing_class
    phrases = {True: SelfRevision.right, False: SelfRevision.wrong}
    rights = set()
    for prompt, ids, read in zip(student_prompts(batch), completions(batch), teacher_reads(batch), strict=True):
        text = tokenizer.decode(ids).removesuffix("<|im_end|>")
        is_right = text.endswith("2" if "1 + 1" in tokenizer.decode(prompt) else "5")
        assert read == prompt + tokenizer(f"{text}\n\n{phrases[is_right]}\n\n")["input_ids"]
        rights.add(is_right)
    assert rights == {True, False} and (batch["distillation"].views["privileged"].weight == 1).all()


def test_swapped_phrases_and_long_attempts(make_trainer):
    source = {"self_revision": {"right": "No.", "wrong": "Yes.", "max_attempt_tokens": 2}}
    trainer = scripted_trainer(make_trainer, "sd_zero", MIXED, MIXED, privileged_source=source)
    batch_of(trainer)
    contexts = {views[0].context for views in trainer.collected.views if views}
    assert contexts == {"7\n\nYes.\n\n", "2\n\nNo.\n\n", "2\n\nYes.\n\n"}
    assert trainer.collected.counts == {"self_revision_skipped": 4}


def test_cut_empty_and_unscored_attempts_give_no_view(make_trainer):
    def unscored(completions, **kwargs):
        return [None if one[0]["content"] == "c" else 0.0 for one in completions]

    texts = ["a", "", "c", "a long one"]
    trainer = scripted_trainer(make_trainer, "sd_zero", texts, texts, reward_funcs=unscored)
    batch_of(trainer)
    assert [bool(views) for views in trainer.collected.views] == [True, False, False, True] * 2
    # A reward that is not there for one rollout alone; none at all is an error of the set-up
    with pytest.raises(ValueError, match="reward"):
        make_trainer(method="sd_zero")
    cut = make_trainer(method="sd_zero", reward_funcs=length_reward, max_completion_length=3)
    batch_of(cut)
    ends = [one.truncated for one in cut.collected.rollouts]
    assert [not views for views in cut.collected.views] == ends and any(ends)


def test_attempts_with_tools_give_no_view(make_trainer):
    rows = [{"prompt": [{"role": "user", "content": "3 times 4?"}]}] * 4
    trainer = make_trainer(
        agent_model(), Dataset.from_list(rows), method="sd_zero", processing_class=agent_tokenizer_with_schema(),
        tools=[multiply], max_completion_length=400, reward_funcs=length_reward,
    )  # fmt: skip
    batch_of(with_scripted_sampler(trainer, "multiply"))
    assert not any(trainer.collected.views) and trainer.collected.counts == {"self_revision_skipped": 4}


@pytest.mark.parametrize("forward", [0.0, 0.5])
def test_an_empty_context_gives_zero(make_trainer, forward):
    """No attempt and no phrase: the teacher says what the student says."""
    trainer = make_trainer(
        method="sd_zero", method_options={"forward": forward},
        privileged_source={"column": {"column": "none", "teach_bare_rows": True}},
    )  # fmt: skip
    loss, gradient = gradients(trainer)
    assert abs(loss.item()) < 1e-6 and norm(gradient) < 1e-5


@pytest.mark.parametrize("phrase", ["right", "wrong"])
def test_an_empty_phrase(phrase):
    with pytest.raises(ValueError, match=f"`{phrase}` is empty"):
        SelfRevision(**{phrase: " "})
