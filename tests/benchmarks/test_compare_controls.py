# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Controls of the comparison: a control gives the rollouts the views of its method, but for their contexts."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset

from batches import batch_of
from benchmarks import compare
from benchmarks.controls import OtherContexts, control_of
from method_cases import WITHOUT_TURNS
from scripted import writing
from trl_opsd import View
from trl_opsd.examples import tasks
from trl_opsd.privileged import build_source, rollouts_of
from trl_opsd.privileged.asking import call
from trl_opsd.rollouts.capture import whole_groups


ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {n} + {n}?"}], "answer": 2 * n, "solution": f"{n} twice."}
    | {"privileged_context": f"{n} + {n} = {2 * n}"}
    for n in range(1, 13)
]
# Of the first sum two answers are right, of the second none
TEXTS = ["It is 2", "It is 3", "No, 2", "It is 7"], ["It is 3", "It is 5", "It is 5", "Six"]
# Their author is the model itself, which is another at random
WRITTEN = ("feedback_alignment", "rosd", "skill_sd")


def views_of(make_trainer, *described):
    """Views that sources give for one scripted batch, and its rollouts."""
    trainer = make_trainer(
        dataset=Dataset.from_list(ROWS), privileged=build_source(described[0]), reward_funcs=tasks.judged_sum,
        num_generations=4, per_device_train_batch_size=8, rollout_func=writing(*TEXTS), max_completion_length=20,
        shuffle_dataset=False,
    )  # fmt: skip
    batch_of(trainer)
    groups = whole_groups(trainer.collected.rollouts, 4, trainer.accelerator)
    answers = []
    for one in described:
        source = build_source(one)
        source.setup(trainer.collector.run)
        answers.append(call(source, groups))
    return answers, rollouts_of(groups)


def own_and_controls(name):
    """Descriptions of a method's source and of its two controls, as the comparison runs them."""
    task = "json" if name == "targeted_hint" else "addition"
    recipe, options = compare.setting(name, task)
    controls = [compare.setting(f"{name}+{one}", task)[1] for one in ("wrong_pi", "no_pi")]
    return compare.source_of(name, recipe, options), *(json.loads(one["privileged_source"]) for one in controls)


def bared(view, rollout):
    """A view without its context, and without what the student's own prompt in its stead has no use for."""
    taught = view.taught(rollout)
    return replace(view, context=None, template="", prompt=None, place="", position=None, role=None, span=taught)


@pytest.mark.parametrize("name", [name for name in WITHOUT_TURNS if name not in WRITTEN])
def test_a_control_differs_in_the_context_alone(make_trainer, name):
    (own, wrong, none), rollouts = views_of(make_trainer, *own_and_controls(name))
    assert any(own), "the batch shows nothing"
    contexts = {row["privileged_context"] for row in ROWS} | {"Reply in one short sentence."}
    for rollout, *rows in zip(rollouts, own, wrong, none, strict=True):
        mine, other, empty = ([bared(view, rollout) for view in row] for row in rows)
        assert mine == other == empty
        views = [three for three in zip(*rows, strict=True) if three[0].context is not None and not three[0].prompt]
        for view, changed, without in views:
            assert replace(changed, context=view.context) == view
            assert changed.context in contexts - {rollout.row["privileged_context"]}
            words = view.template.replace("{privileged_context}", "").strip()
            assert without.text.strip() == words and (without.context is None) == (not words)
        contexts_of = [[view.context for view in side] for side in zip(*views, strict=True)][:2]
        assert len({tuple(map(own.index, own)) for own in contexts_of}) <= 1, "equal contexts stay equal"


CONDITIONS = {"hdpo": "group_failed", "gates": "consensus", "rlrt": "succeeded"}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_stay_around_the_control(name):
    for control in own_and_controls(name)[1:]:
        assert CONDITIONS[name] in json.dumps(control["when"]["condition"])
        assert list(control["when"]["source"]) == ["benchmarks.controls.OtherContexts"]


def test_policy_stays_off(make_trainer):
    """SRPO: a failed rollout of a group with success learns from its view alone, also from a wrong one."""
    (own, wrong, none), _ = views_of(make_trainer, *own_and_controls("srpo"))
    for views in (own, wrong, none):
        assert [[view.policy for view in row] for row in views] == [[], [False], [], [False], [], [], [], []]


def test_the_controls_of_plain_settings_are_what_they_were(make_trainer):
    """Those that docs/comparison.md reports lost nothing: another row's context, and the template's own words."""
    templates = {
        "opsd": " Here is the reference solution: {privileged_context}. Use it to answer the question in your own "
        "words.",
        "base": " The full equation is {privileged_context}. Write the full equation as your answer.",
    }
    for name, text in templates.items():
        template, described = {"template": text}, own_and_controls(name)
        views, _ = views_of(make_trainer, *described[1:], {"other_row": template}, {"empty": template})
        assert views[0] == views[2] and views[1] == views[3]


def test_plain_text_and_messages(make_trainer):
    """A text in the place of messages is the system's; without them the teacher reads the student's prompt."""
    messages = {"fixed": {"context": tasks.json_context(), "place": "after_user"}}
    wrong, none = control_of(messages, {"fixed": "Be brief."}), control_of(messages, None)
    (own, other, empty), _ = views_of(make_trainer, messages, wrong, none)
    assert other[0] == [replace(own[0][0], context=[{"role": "system", "content": "Be brief."}])]
    assert empty[0] == [View()] != own[0]


def test_a_hint_within_the_completion_stays_where_it_is(make_trainer):
    hint = {"turn_hint": {"rules": [{"on": "text", "match": "3", "hint": "Count."}], "policy": False}}
    (own, wrong, none), _ = views_of(make_trainer, hint, *(control_of(hint, one) for one in ({"fixed": "Hm."}, None)))
    assert [len(row) for row in own] == [len(row) for row in wrong] == [len(row) for row in none]
    (view,), (other,), (empty,) = own[1], wrong[1], none[1]
    assert other == replace(view, context="Hm.") and other.place == "before_turn"
    assert (empty.context, empty.span, empty.policy) == (None, view.span or (0, 8), False)


def test_a_whole_prompt_has_no_control(make_trainer):
    baselines = {"with_baselines": {"source": "column"}}
    with pytest.raises(ValueError, match="A view with a whole prompt has no control"):
        views_of(make_trainer, baselines, {"benchmarks.controls.OtherContexts": {"source": baselines}})
    assert not OtherContexts("column").uses_model


@pytest.mark.parametrize("name", ["rltf_sd", "trd"])
def test_the_controls_of_turns(make_trainer, name):
    """Their source has the other contexts, in the same words around the same attempt; the turns stay as they are."""
    recipe, options = compare.setting(name, "addition")
    own = compare.turns_of(name, recipe, options)
    turns = [
        own,
        *(json.loads(compare.setting(f"{name}+{one}", "addition")[1]["turns"]) for one in ("wrong_pi", "no_pi")),
    ]
    assert all({**one, "source": None} == {**own, "source": None} for one in turns)
    rows = [{**row, "privileged_context": f"{row['answer']} it is"} for row in ROWS]
    trainer = make_trainer(
        privileged_source="none", num_generations=4, shuffle_dataset=False, dataset=Dataset.from_list(rows),
        per_device_train_batch_size=8, rollout_func=writing(*TEXTS),
    )  # fmt: skip
    batch_of(trainer)
    groups = whole_groups(trainer.collected.rollouts, 4, trainer.accelerator)
    prompts = []
    for one in turns:
        source = build_source(one["source"])
        source.setup(trainer.collector.run)
        prompts.append([view.prompt[-1]["content"] for (view,) in call(source, groups)])
    for rollout, mine, other, empty in zip(rollouts_of(groups), *prompts, strict=True):
        assert f" {rollout.row['answer']} it is" in mine and "it is" in other and "it is" not in empty
        assert f" {rollout.row['answer']} it is" not in other
        assert rollout.text.strip() in mine and rollout.text.strip() in other and rollout.text.strip() in empty
