# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rollouts of a `rollout_func` that gave the student another prompt than the chat template renders of the row."""

import pytest
from datasets import Dataset

from batches import batch_of, student_prompts, teacher_reads
from runs import SAMPLED
from trl_opsd import View
from trl_opsd.privileged import WithBaselines
from trl_opsd.rollouts.view import PROMPT_PLACES
from views import giving


AGENT = {"role": "system", "content": "You are an agent. Think step by step."}
FEW_SHOTS = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]


def as_an_agent(prompts, trainer):
    """The student reads a system message, or for texts a first line, that no row has."""
    own = [f"{AGENT['content']}\n{one}" if isinstance(one, str) else [AGENT, *one] for one in prompts]
    answers = [[10 + i, 20 + i, 30 + i, 40] for i in range(len(prompts))]
    return {"prompt_ids": trainer._tokenize_prompts(own)[0], "completion_ids": answers, "logprobs": None}


def agent(make_trainer, *views, data=None, **options):
    options = {"rollout_func": as_an_agent, "max_completion_length": 4, **options}
    if data is not None:
        options["dataset"] = Dataset.from_list(data)
    return make_trainer(privileged=giving(*views), **options) if views else make_trainer(**options)


TEXTS = [{"prompt": f"Q{i}"} for i in range(8)]


@pytest.mark.parametrize("mode", [{}, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("data", [None, TEXTS], ids=["chat", "text"])
def test_a_view_without_context_is_the_students_exact_prompt(make_trainer, data, mode):
    """A live teacher that reads what the student has read agrees at every token, exactly."""
    trainer = agent(make_trainer, View(None), data=data, teacher_model_kind="live", **mode)
    batch = batch_of(trainer)
    assert teacher_reads(batch) == student_prompts(batch)
    assert AGENT["content"] in trainer.processing_class.decode(teacher_reads(batch)[0])
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["self_distillation/divergence"] == [0.0]
    assert trainer._metrics["train"]["self_distillation/gap/mean"] == [0.0]


def test_the_bare_baseline_is_the_students_exact_prompt(make_trainer):
    source = WithBaselines(giving(View("hint", place="prefill")), alone=False)
    batch = batch_of(make_trainer(privileged=source, rollout_func=as_an_agent, max_completion_length=4))
    assert teacher_reads(batch, "bare") == student_prompts(batch)


@pytest.mark.parametrize(("place", "position"), [("prepend", None), ("prefill", None), ("before_token", 0)])
def test_places_between_tokens_keep_the_students_own(make_trainer, tokenizer, place, position):
    batch = batch_of(agent(make_trainer, View("hint", place=place, position=position)))
    for student, teacher in zip(student_prompts(batch), teacher_reads(batch), strict=True):
        hint = tokenizer("hint")["input_ids"]
        message = tokenizer("<|im_start|>system\nhint<|im_end|>\n")["input_ids"]
        assert teacher == (message + student if place == "prepend" else student + hint)


@pytest.mark.parametrize("place", PROMPT_PLACES)
@pytest.mark.parametrize("data", [None, TEXTS], ids=["chat", "text"])
def test_places_in_the_prompt_are_refused(make_trainer, data, place):
    trainer = agent(make_trainer, View("hint", place=place), data=data)
    with pytest.raises(ValueError, match=f"the place '{place}' needs the prompt as the chat template") as caught:
        batch_of(trainer)
    for text in ("The view 'privileged' of the row with prompt", "`rollout_func`", "'prepend'", "`privileged_place`"):
        assert text in str(caught.value)


def test_the_column_is_refused_and_its_place_is_the_way_out(make_trainer):
    with pytest.raises(ValueError, match="the place 'after_user' needs the prompt as the chat template"):
        agent(make_trainer).train()
    agent(make_trainer, privileged_place="prepend").train()


def test_messages_as_a_context_are_refused(make_trainer):
    with pytest.raises(ValueError, match="chat messages as a context need the prompt as the chat template"):
        batch_of(agent(make_trainer, View(FEW_SHOTS)))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_template_arguments_of_one_side_change_no_prompt_of_its_own(make_trainer, side):
    options = {f"{side}_chat_template_kwargs": {"enable_thinking": True}, "teacher_model_kind": "live"}
    trainer = agent(make_trainer, View(None), **options)
    batch = batch_of(trainer)
    assert teacher_reads(batch) == student_prompts(batch)
    assert trainer._compute_loss(trainer.model, batch).item() == 0.0


def test_other_template_arguments_of_the_view_are_refused(make_trainer):
    """Without a context too: the teacher's rendering is another text than the student has read."""
    trainer = agent(make_trainer, View(None, chat_template_kwargs={"enable_thinking": True}))
    with pytest.raises(ValueError, match="chat template arguments other than the student's need the prompt"):
        batch_of(trainer)


def test_a_whole_prompt_is_read_as_it_is_given(make_trainer, tokenizer):
    """It says all that the teacher reads, whatever the student has read."""
    prompt = [AGENT, {"role": "user", "content": "hint"}]
    batch = batch_of(agent(make_trainer, View("hint", prompt=prompt)))
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    assert teacher_reads(batch) == [ids] * 4
