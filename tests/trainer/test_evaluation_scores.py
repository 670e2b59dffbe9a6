# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Avg@k and pass@k of evaluations: of the student's rollouts, and of what the teacher writes to the same prompts."""

import math
import statistics
from collections import defaultdict

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback

from conftest import length_reward
from evaluations import by_length, dataset, question, scripted
from trl_opsd import View
from trl_opsd.privileged import rollouts_of
from trl_opsd.trainer.setup_checks import check_scores


K = 2
GREEDY = {"generation_kwargs": {"do_sample": False}}
RIGHT = 3.0
EVAL = {"num_generations": K, "per_device_eval_batch_size": 4}


class Watched:
    """A score function that keeps what it was given, call by call, and scores the length of the text modulo 5."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, **columns):
        texts = [completion[-1]["content"] for completion in completions]
        scores = [float(len(text) % 5) for text in texts]
        self.calls.append((prompts, texts, scores, columns))
        return scores


def by_hand(calls, with_context: bool = False) -> tuple[float, float]:
    """Avg@k and pass@k over the first twelve rollouts of all calls, or over those that have a context."""
    given = [zip(call[0], call[2], call[3]["privileged_context"], strict=True) for call in calls]
    prompts = defaultdict(list)
    for prompt, score, context in [one for of_call in given for one in of_call][:12]:
        if context is not None or not with_context:
            prompts[prompt[0]["content"]].append(score)
    return (
        statistics.mean(statistics.mean(scores) for scores in prompts.values()),
        statistics.mean(max(scores) >= RIGHT for scores in prompts.values()),
    )


@pytest.mark.parametrize("size", [2, 4, 8, 12])
def test_scores_of_the_rollouts_whatever_the_batch_size(make_trainer, size):
    """Twelve rollouts of six prompts; in batches of eight the last holds four, which are not counted twice."""
    watched = Watched()
    trainer = scripted(
        make_trainer(
            eval_dataset=dataset(), score_func=watched, per_device_eval_batch_size=size, num_generations=K,
            success_reward_threshold=RIGHT,
        )
    )  # fmt: skip
    metrics = trainer.evaluate()
    average, passed = by_hand(watched.calls)
    assert 0 < passed < 1 and average != passed
    assert metrics["eval_avg@2"] == pytest.approx(average) and metrics["eval_pass@2"] == pytest.approx(passed)
    assert not any("teacher/" in name for name in metrics)
    (logged,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged["eval_avg@2"] == metrics["eval_avg@2"], "and they are in the log"
    given = watched.calls[0][3]
    assert {"privileged_context", "completion_ids", "trainer_state", "log_extra"} <= given.keys()


def test_rewards_by_their_weights_are_the_score_where_there_is_no_other(make_trainer):
    def every_other(completions, **_):
        return [1.0 if i % 2 else None for i in range(len(completions))]

    options = {"reward_funcs": [by_length, every_other], "reward_weights": [0.0, 3.0], "eval_dataset": dataset()}
    metrics = scripted(make_trainer(**options, **EVAL, success_reward_threshold=3.0)).evaluate()
    assert (metrics["eval_avg@2"], metrics["eval_pass@2"]) == (1.5, 1.0)
    metrics = scripted(make_trainer(**options, **EVAL, score_func=Watched())).evaluate()
    assert metrics["eval_avg@2"] != 1.5 and math.isfinite(metrics["eval_reward"]), "a score function takes their place"
    assert not any("@" in name for name in scripted(make_trainer(eval_dataset=dataset(), **EVAL)).evaluate())


def test_an_async_score_and_rows_without_one(make_trainer):
    async def some(prompts, **_):
        return [1.0 if "0" in prompt[0]["content"] else None for prompt in prompts]

    trainer = scripted(make_trainer(eval_dataset=dataset(), score_func=some, **EVAL))
    assert trainer.evaluate()["eval_avg@2"] == 1.0


def test_the_teacher_writes_with_its_context(make_trainer, tokenizer):
    """Its answers are those of a plain `generate` to its prompt; rows without a context have none."""
    watched = Watched()
    trainer = make_trainer(
        eval_dataset=dataset(with_view=3), score_func=watched, eval_teacher_prompts=6, success_reward_threshold=RIGHT,
        **EVAL, **GREEDY,
    )  # fmt: skip
    metrics = trainer.evaluate()
    teacher = watched.calls[1::2]  # each batch is scored, then answered
    assert len(watched.calls) == 6
    for prompts, texts, _, columns in teacher:
        for prompt, text, context in zip(prompts, texts, columns["privileged_context"], strict=True):
            read = prompt[0]["content"] + (f"\n\n{context}" if context else "")
            ids = tokenizer(f"<|im_start|>user\n{read}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
            ids = ids["input_ids"]
            written = trainer.model.generate(ids, attention_mask=ids**0, max_new_tokens=8, do_sample=False)
            assert text == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    average, passed = by_hand(teacher, with_context=True)
    assert metrics["eval_teacher/privileged/avg@2"] == pytest.approx(average)
    assert metrics["eval_teacher/privileged/pass@2"] == pytest.approx(passed)
    student = by_hand(watched.calls[::2])
    assert (metrics["eval_avg@2"], metrics["eval_pass@2"]) == pytest.approx(student)


def test_its_prompts_are_bounded_and_each_view_counts(make_trainer):
    watched = Watched()

    def source(groups):
        return [[View("The sum.", name="a"), View("No.", name="b")] for _ in rollouts_of(groups)]

    options = {"eval_dataset": dataset(), "score_func": watched, "privileged": source}
    metrics = make_trainer(**options, eval_teacher_prompts=1, **EVAL).evaluate()
    assert len(watched.calls) == 3 + 2, "three batches of the student's, and the first by both teachers"
    names = {f"eval_teacher/{view}/{kind}@2" for view in "ab" for kind in ("avg", "pass")}
    assert names == {name for name in metrics if "teacher/" in name and "@" in name}


def test_it_leaves_no_trace_in_the_other_metrics(make_trainer):
    """Nor in the random numbers of the student's rollouts."""
    options = {"eval_dataset": dataset(), "reward_funcs": length_reward, **EVAL}
    with_it, without = (make_trainer(eval_teacher_prompts=count, **options).evaluate() for count in (6, 0))
    timed = ("runtime", "per_second", "_time")
    shared = {name: value for name, value in without.items() if not any(word in name for word in timed)}
    assert len(shared) > 30 and "eval_completions/mean_length" in shared
    for name, value in shared.items():
        assert with_it[name] == value or (math.isnan(value) and math.isnan(with_it[name])), name


def test_evaluations_draw_the_same_numbers_and_a_training_none_of_theirs(make_trainer):
    """The model stands still: each evaluation is the first. Trained with and without, the weights are the same bits."""
    options = {"reward_funcs": length_reward, "eval_teacher_prompts": 6, **EVAL, "temperature": 1.0}
    trainer = make_trainer(eval_dataset=dataset(), **options, seed=3)
    first, torch_state = trainer.evaluate(), torch.get_rng_state()
    torch.rand(5)
    second = trainer.evaluate()
    assert not torch.equal(torch_state, torch.get_rng_state())
    assert first["eval_loss"] == second["eval_loss"] and first["eval_avg@2"] == second["eval_avg@2"]
    assert first["eval_teacher/privileged/avg@2"] == second["eval_teacher/privileged/avg@2"]

    weights = []
    for evaluates in ({"eval_strategy": "steps", "eval_steps": 1}, {}):
        trainer = make_trainer(eval_dataset=dataset(), **options, **evaluates, max_steps=3)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_best_model_and_early_stopping_by_the_score(make_trainer):
    """The score falls with each evaluation: the first is the best, and the training ends after two more."""
    values = iter([0.9, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    value = []

    def falling(prompts, trainer_state, **_):
        if not value or value[-1][0] != trainer_state.global_step:
            value.append((trainer_state.global_step, next(values)))
        return [value[-1][1]] * len(prompts)

    rows = Dataset.from_list([question(i, "It is so.") for i in range(2)])
    trainer = make_trainer(
        eval_dataset=rows, score_func=falling, **EVAL, max_steps=6, eval_strategy="steps", eval_steps=1,
        save_strategy="best", metric_for_best_model="avg@2", greater_is_better=True, load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(0.9) and trainer.state.best_global_step == 1
    assert trainer.state.global_step == 3


def test_an_error_of_the_score_names_it(make_trainer):
    trainer = make_trainer(eval_dataset=dataset(), score_func=lambda **_: [1.0], **EVAL)
    with pytest.raises(ValueError, match="score function `<lambda>` returned 1 values for 4 completions"):
        trainer.evaluate()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="returned 1 values"):
        trainer.evaluate()
    assert torch.equal(state, torch.get_rng_state())


def test_combinations_that_cannot_be(make_trainer):
    with pytest.raises(ValueError, match="neither a reward nor a `score_func`"):
        make_trainer(eval_dataset=dataset(), eval_teacher_prompts=2)
    with pytest.raises(ValueError, match="`eval_teacher_prompts=2` lets the teacher score"):
        make_trainer(reward_funcs=length_reward, distillation_weight=0.0, eval_teacher_prompts=2)
    with pytest.raises(ValueError, match="`score_func` scores evaluations of runs that distil"):
        make_trainer(reward_funcs=length_reward, distillation_weight=0.0, score_func=length_reward)
    with pytest.raises(ValueError, match="`eval_teacher_prompts` must"):
        make_trainer(eval_teacher_prompts=-1)
    trainer = make_trainer()
    trainer.args.eval_teacher_prompts = 1

    class Sharded:
        gathers_whole_modules = True

    with pytest.raises(ValueError, match="does not go with tools under ZeRO-3 or FSDP"):
        check_scores(trainer.args, True, True, Sharded())
    check_scores(trainer.args, True, False, Sharded())
