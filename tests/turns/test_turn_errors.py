# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns that can't be: refused when the config or the trainer is built, with the option and the remedy."""

import pytest

from batches import batch_of
from conftest import ARGS, length_reward
from scripted import long_answers
from trl_opsd import Method, OPSDConfig, View
from trl_opsd.methods import StepContext


FIXED = {"fixed": {"context": "Mind!"}}
WRONG = [
    ("first", "`turns` must be a mapping or None"),
    ({"source": FIXED}, "must be a mapping with `slots`"),
    ({"slots": ["first"], "sauce": FIXED}, r"`turns`: it has no option 'sauce' \(did you mean `source`\?\)"),
    ({"slots": []}, "`slots` is empty"),
    ({"slots": ["first", "distill"], "source": FIXED}, r"`slots` names 'distill' \(did you mean `distil`\?\)"),
    ({"slots": ["idle"]}, "a role is one of"),
    ({"slots": ["first", "first"]}, "names a role twice"),
    ({"slots": ["first"], "otherwise": "second"}, "`otherwise` must be one of"),
    ({"slots": ["first"], "every": 0}, "`every` must be a whole number of at least 1"),
    ({"slots": ["first", "distil"]}, "the role `distil` needs a `source`"),
    ({"slots": ["first", "reread"]}, "the role `reread` needs a `source`"),
    ({"slots": ["first", "feedback"]}, "the role `feedback` needs a `source`"),
    ({"slots": ["first"], "source": FIXED}, "`source` is read by none of the slots"),
    ({"slots": ["first"], "when": "failed"}, "`when` says when a unit goes on, which takes a `source`"),
    ({"slots": ["first"], "every": 2}, "`every` says when a unit goes on"),
    ({"slots": ["distil"], "source": "colum"}, r"turns\.source\.colum`: there is no 'colum'"),
    ({"slots": ["distil"], "source": FIXED, "when": "faild"}, r"turns\.when\.faild`: there is no 'faild'"),
    ({"slots": ["reread"], "source": FIXED, "attempt": False}, "the role `reread` reads the first turn"),
    ({"slots": ["feedback"], "source": FIXED, "attempt": False}, "the role `feedback` reads the first turn"),
    ({"slots": ["first", "distil"], "source": FIXED, "attempt": False}, "the role `first` reads the first turn"),
    ({"slots": ["distil"], "source": FIXED, "attempt": False, "when": "failed"}, "`when` looks at the reward"),
    ({"slots": ["reread"], "source": FIXED, "weights": "teacher"}, "which no slot trains"),
    ({"slots": ["distil"], "source": FIXED, "temperature": 0.5}, "`temperature` is that of `weights: teacher`"),
    ({"slots": ["given"]}, "`given` names the column"),
    ({"slots": ["first"], "given": "solution"}, "`given` names the column"),
    ({"slots": ["feedback"], "source": FIXED, "feedback_template": "Well?"}, "must show the {attempt}"),
    ({"slots": ["distil"], "source": {"with_attempt": {"source": FIXED, "template": "x"}}}, "must show the {attempt}"),
]


def config(**options):
    return OPSDConfig("unused", **{**ARGS, **options})


@pytest.mark.parametrize(("turns", "text"), WRONG, ids=lambda value: str(value)[:60])
def test_options(turns, text):
    with pytest.raises(ValueError, match=text):
        config(turns=turns, num_generations=2)


DISTIL = {"slots": ["first", "distil"], "source": FIXED}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"num_generations": 3, "per_device_train_batch_size": 6},
            "and num_generations is 3. Set it to a multiple of 2",
        ),
        ({"num_generations": 2, "per_device_train_batch_size": 3, "generation_batch_size": 6}, None),
        ({"num_generations": 2, "distillation_weight": 0.0}, "`distillation_weight` is 0: leave `turns` out"),
        ({"num_generations": 2, "turns": {**DISTIL, "weights": "teacher"}, "teacher_model_kind": "live"}, "live ones"),
    ],
)
def test_beside_other_options(options, text):
    options = {"turns": DISTIL, **options}
    if text is None:
        options.pop("generation_batch_size")
        options |= {"gradient_accumulation_steps": 2, "steps_per_generation": 2}
        config(**options)
        return
    with pytest.raises(ValueError, match=text):
        config(**options)


NEEDS = Method("Needs a second turn", roles=("first", "second"), credit=lambda groups, step_context: [])


def test_roles_that_a_method_needs():
    for turns in (None, DISTIL):
        with pytest.raises(ValueError, match=r"needs the role `(first|second)`: set `turns` with it among the `slots`"):
            config(method="test_turn_errors.NEEDS", turns=turns, num_generations=2)
    turns = {**DISTIL, "slots": ["first", "second"]}
    with pytest.raises(ValueError, match=r"gives credit to rollouts, .* leave `policy_weight` above 0"):
        config(method="test_turn_errors.NEEDS", turns=turns, num_generations=2, policy_weight=0.0)
    with pytest.raises(ValueError, match=r"`roles` names \['third'\]"):
        Method("Another role", roles=("third",))


def test_what_samples_otherwise(make_trainer):
    with pytest.raises(ValueError, match="`turns` sample the rollouts, and so does `rollout_func`"):
        make_trainer(turns=DISTIL, num_generations=2, rollout_func=long_answers)


def test_a_column_that_is_not_there(make_trainer):
    with pytest.raises(ValueError, match=r"no column `solution`, which the option `turns.given`"):
        make_trainer(turns={"slots": ["given"], "given": "solution"})
    with pytest.raises(ValueError, match="`train_dataset` has no column `hint`"):
        make_trainer(turns={**DISTIL, "source": {"column": "hint"}}, num_generations=2)


def test_rewards_that_are_not_there(make_trainer):
    with pytest.raises(ValueError, match=r"The condition `failed` of `turns.when` looks at rewards"):
        make_trainer(turns={**DISTIL, "when": "failed"}, num_generations=2)
    with pytest.raises(ValueError, match=r"`turns.source`: The source `sibling`"):
        make_trainer(turns={**DISTIL, "source": "sibling"}, num_generations=4)


def test_default_groups_are_checked_once_they_are_known(make_trainer):
    turns = {"slots": ["first", "second", "distil"], "source": FIXED}
    with pytest.raises(ValueError, match=r"num_generations is 8. Set it to a multiple of 3"):
        make_trainer(turns=turns, reward_funcs=length_reward, num_generations=None, per_device_train_batch_size=24)


def test_a_source_that_reads_turns_which_are_not_there(make_trainer):
    with pytest.raises(ValueError, match="`turn_context` shows the context of `turns`: set `turns` with a `source`"):
        make_trainer(privileged_source="turn_context")


def two_views(groups):
    return [[View("One."), View("Two.", name="two")] for group in groups for _ in group]


def within(groups):
    return [[View("Now!", place="before_token", position=0)] for group in groups for _ in group]


def messages(groups):
    return [[View([{"role": "user", "content": "Mind!"}])] for group in groups for _ in group]


def failing(groups):
    raise OSError("the critic does not answer")


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ({**DISTIL, "source": "test_turn_errors.two_views"}, "must give one view .* two_views gave"),
        ({**DISTIL, "source": "test_turn_errors.within"}, "under `turns` another one follows it"),
        ({**DISTIL, "slots": ["feedback", "first"], "source": "test_turn_errors.messages"}, "which must be a text"),
        ({"slots": ["distil"], "source": {"with_attempt": {"source": FIXED}}, "attempt": False}, "samples none"),
        ({**DISTIL, "source": "test_turn_errors.failing"}, "the critic does not answer"),
    ],
    ids=["two views", "within", "messages", "no attempt", "error"],
)
def test_what_a_source_gives(make_trainer, turns, text):
    with pytest.raises((ValueError, OSError), match=text):
        batch_of(make_trainer(turns=turns, num_generations=2))


def test_a_context_that_is_too_long_ends_its_unit(make_trainer, rows):
    """Or the run, by `teacher_overlong`."""
    for i, row in enumerate(rows):
        row["privileged_context"] = "very " * (40 if i % 2 else 1)
    options = {"turns": {**DISTIL, "source": "column"}, "num_generations": 2, "teacher_max_length": 120}
    options |= {"privileged_source": "none", "per_device_train_batch_size": 8}
    with pytest.raises(ValueError, match="than the 120 that `teacher_max_length`"):
        batch_of(make_trainer(**options))
    trainer = make_trainer(**options, teacher_overlong="drop_view")
    batch_of(trainer)
    ended = [not unit.goes_on for unit in trainer.turns.units]
    assert 0 < sum(ended) < len(ended)
    assert trainer._metrics["train"]["self_distillation/turns/dropped_contexts"] == [sum(ended)]


def test_scales_of_a_role_need_the_loss_type(make_trainer):
    trainer = make_trainer(
        turns=DISTIL, num_generations=2, loss_type="grpo", distillation_mode="sampled_token", distillation_alpha=1.0,
        reward_funcs=length_reward,
    )  # fmt: skip
    batch = batch_of(trainer)["distillation"]
    stats = dict.fromkeys(("teacher_logps", "teacher_entropy"), batch.shares)
    stats |= dict.fromkeys(("student_logps", "student_entropy"), batch.mask)
    signals = trainer.objective.signals(batch, stats)
    assert isinstance(signals.step_context, StepContext)
    with pytest.raises(ValueError, match="`loss_type` must be 'dapo', not 'grpo'"):
        signals.token_scale("first")


def test_texts_of_the_turns_stay_out_of_what_others_read():
    turns = {**DISTIL, "slots": ["first", "feedback"], "feedback_template": "Our secret way: {attempt}"}
    built = config(turns=turns, num_generations=2)
    shown = built.to_dict()["turns"]
    assert shown == {**turns, "source": "fixed", "feedback_template": "[...]"} == built.public().turns
    assert built.turns == turns


def test_errors_of_the_source_may_end_units_alone(make_trainer):
    turns = {**DISTIL, "source": "test_turn_errors.failing"}
    trainer = make_trainer(
        turns=turns, num_generations=2, privileged_on_error="skip", privileged_source="none", max_steps=1
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/turns/source_errors"] == 2 and log["self_distillation/turns/unit_share"] == 0
