# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources made of sources, and conditions, on real generation batches."""

import asyncio
import json

import pytest
import yaml
from datasets import Dataset

from agents import DONE, agent_model, agent_tokenizer, call, follow_scripts, multiply
from batches import batch_of, teacher_reads
from scripted import right, sums, writing
from trl_opsd import View
from trl_opsd.privileged import (
    AllOf,
    DatasetColumn,
    FirstOf,
    Fixed,
    SiblingSuccess,
    When,
    build_source,
    rollouts_of,
)


GROUPS = ["2", "3", "it is 2", "no"], ["1", "2", "3", "no way"]  # the second has no success
CONTEXTS = {"hint": ["Two ones.", None], "other": ["Use fingers.", "Use a line."]}


def length(completions, **kwargs):
    return [len(completion[0]["content"]) / 10 for completion in completions]


def run(make_trainer, source, *texts, rewards=right, end="<|im_end|>", **options):
    """A trainer after one batch of two groups of four, the first of `1 + 1?` and the second of `2 + 3?`."""
    trainer = make_trainer(
        dataset=sums(**CONTEXTS),
        reward_funcs=rewards,
        privileged=source,
        rollout_func=writing(*(texts or GROUPS), end=end),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=100,
        shuffle_dataset=False,
        **options,
    )
    batch = batch_of(trainer)
    for name in {view.name for row in trainer.collected.views for view in row}:
        for row, ids in zip(batch["distillation"].index.tolist(), teacher_reads(batch, name), strict=True):
            shown = next((view.context for view in trainer.collected.views[row] if view.name == name), "")
            assert shown in trainer.processing_class.decode(ids), "the teacher reads it"
    return trainer


def contexts(trainer):
    return [[view.context for view in row] for row in trainer.collected.views]


# Conditions


ALL, NONE = [True] * 4, [False] * 4
CONDITIONS = {
    "failed": ("failed", [False, True, False, True, *ALL]),
    "succeeded": ("succeeded", [True, False, True, False, *NONE]),
    "group failed": ("group_failed", [*NONE, *ALL]),
    "nothing truncated": ("truncated", [*NONE, *NONE]),
    "above the mean": ("above_group_mean", [True, False, True, False, *NONE]),
    "reward from": ({"reward_from": 1.0}, [True, False, True, False, *NONE]),
    "reward from, all": ({"reward_from": {"value": 0.0}}, [*ALL, *ALL]),
    "group reward below": ({"group_reward_below": 1.0}, [*NONE, *ALL]),
    "group reward below, all": ({"group_reward_below": {"value": 1.5}}, [*ALL, *ALL]),
    "no errors": ("most_errors", [*NONE, *NONE]),
    "never": ({"probability": 0.0}, [*NONE, *NONE]),
    "always": ({"probability": {"p": 1}}, [*ALL, *ALL]),
}


def when(condition):
    return build_source({"when": {"condition": condition, "source": {"fixed": "x"}}})


@pytest.mark.parametrize(("condition", "wanted"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(make_trainer, condition, wanted):
    assert contexts(run(make_trainer, when(condition))) == [["x"] if one else [] for one in wanted]


def test_a_condition_on_one_reward_function(make_trainer):
    trainer = run(make_trainer, when({"reward_from": {"value": 0.5, "function": "length"}}), rewards=[right, length])
    assert contexts(trainer) == [[], [], ["x"], [], [], [], [], ["x"]]
    with pytest.raises(ValueError, match=r"no reward function 'judge', only \['length', 'right'\]") as caught:
        run(make_trainer, when({"reward_from": {"value": 0.2, "function": "judge"}}), rewards=[right, length])
    assert "Raised by the privileged source When." in caught.value.__notes__


def half(completions, **kwargs):
    return [0.7 * (completion[0]["content"] != "bad") for completion in completions]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("succeeded", [True, True, True, False]),
        ("failed", [False, False, False, True]),
        ("group_failed", NONE),
        ({"reward_from": 0.7}, [True, True, True, False]),
        ({"group_reward_below": 0.7}, NONE),
        ("above_group_mean", [True, True, True, False]),
    ],
)
def test_a_threshold_that_float32_just_misses(make_trainer, condition, wanted):
    """TRL keeps rewards and weights in float32, in which 0.7 is 0.699999988."""
    trainer = run(make_trainer, when(condition), ["2", "3", "4", "bad"], ["bad"] * 4, rewards=half,
                  success_reward_threshold=0.7)  # fmt: skip
    assert [rollout.total < 0.7 for rollout in trainer.collected.rollouts] == [True] * 8
    others = {"failed": ALL, "group_failed": ALL}.get(condition, NONE) if isinstance(condition, str) else NONE
    others = ALL if condition == {"group_reward_below": 0.7} else others
    assert contexts(trainer) == [["x"] if one else [] for one in [*wanted, *others]]


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_weights_that_make_one_only_nearly(make_trainer, threshold):
    """0.9 and 0.1 make 0.99999998 in float32."""
    weights = {"rewards": [half, right], "reward_weights": [0.9 / 0.7, 0.1]}
    trainer = run(make_trainer, SiblingSuccess(threshold=threshold), ["2", "4 2", "bad", "5"], ["bad"] * 4, **weights)
    assert 1 - 1e-6 < trainer.collected.rollouts[0].total < 1
    assert [rollout.success for rollout in trainer.collected.rollouts] == [True, True, *[False] * 6]
    assert contexts(trainer) == [["4 2"], ["2"], ["2"], ["2"], *[[]] * 4]


def test_equal_rewards_are_not_above_their_mean(make_trainer):
    """The mean of ten equal rewards comes out a little less than they are, by rounding."""

    def tenth(completions, **kwargs):
        return [0.1] * len(completions)

    trainer = make_trainer(
        dataset=sums(), reward_funcs=[tenth, tenth], reward_weights=[0.9, 0.1], privileged=when("above_group_mean"),
        num_generations=10, rollout_func=writing(["a"] * 10, ["b"] * 10), per_device_train_batch_size=20,
    )  # fmt: skip
    batch_of(trainer)
    totals = [rollout.total for rollout in trainer.collected.rollouts]
    assert totals[0] > sum(totals[:10]) / 10
    assert contexts(trainer) == [[]] * 20


@pytest.mark.parametrize("name", ["reward_from", "group_reward_below"])
def test_a_bound_that_is_no_number(name):
    with pytest.raises(ValueError, match=rf"condition.{name}`: `value` must be a finite number, got '1e-3' \(YAML"):
        build_source(yaml.safe_load(f"when: {{condition: {{{name}: 1e-3}}, source: {{fixed: x}}}}"))


@pytest.mark.parametrize(
    "spec",
    [
        "failed", "succeeded", "group_failed", "above_group_mean", {"reward_from": -9.0}, {"group_reward_below": 9.0},
    ],
)  # fmt: skip
def test_conditions_without_a_reward(make_trainer, spec):
    name = spec if isinstance(spec, str) else next(iter(spec))
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": "Q"}]}] * 4)
    with pytest.raises(ValueError, match=f"The condition `{name}` looks at rewards, and this run has none"):
        batch_of(make_trainer(dataset=dataset, privileged=when(spec)))


def test_conditions_where_a_function_gave_no_reward(make_trainer):
    """Nothing succeeds, and nothing has a reward above or below."""
    found = {}
    for name, spec in {"failed": "failed", "mean": "above_group_mean", "from": {"reward_from": -9.0}}.items():
        trainer = run(make_trainer, when(spec), rewards=lambda completions, **_: [None] * len(completions))
        found[name] = contexts(trainer)
    assert found == {"failed": [["x"]] * 8, "mean": [[]] * 8, "from": [[]] * 8}


def test_truncated_rollouts(make_trainer):
    assert contexts(run(make_trainer, when("truncated"), end="")) == [["x"]] * 8


def test_most_errors(make_trainer):
    """Of one group: the second has two, the third one, and the fourth as many as the second."""
    bad = [call(a="x", b=1), call(a=1, b="x"), call(a="z", b="x"), call(a=9, b="y")]
    scripts = [[DONE], [bad[0], bad[1], DONE], [bad[2], call(a=1, b=1), DONE], [bad[3], bad[1], DONE]]
    trainer = make_trainer(
        agent_model(), tools=[multiply], processing_class=agent_tokenizer(), privileged=when("most_errors"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions), num_generations=4,
        max_completion_length=600, max_tool_calling_iterations=4,
    )  # fmt: skip
    follow_scripts(trainer, scripts)
    batch_of(trainer)
    errors = [sum(len(turn.errors) for turn in one.turns) for one in trainer.collected.rollouts]
    assert errors == [0, 2, 1, 2]
    assert contexts(trainer) == [[], ["x"], [], []]


def test_a_probability_is_that_of_the_run(make_trainer):
    """Another draw for each step and seed, the same for the same ones."""
    spec = {"probability": {"p": 0.5, "seed": 1}}
    one, other = (contexts(run(make_trainer, when(spec))) for _ in range(2))
    assert one == other and 0 < sum(map(bool, one)) < 8
    assert one != contexts(run(make_trainer, when({"probability": {"p": 0.5, "seed": 2}})))
    draws = []

    def drawing(groups):
        draws.append([bool(row) for row in when(spec)(groups)])
        return [[] for _ in rollouts_of(groups)]

    make_trainer(privileged=drawing, max_steps=12, per_device_train_batch_size=8).train()
    flat = [one for draw in draws for one in draw]
    assert len({tuple(draw) for draw in draws}) > 6 and 0.3 < sum(flat) / len(flat) < 0.7


# first_of


class Asked:
    """Gives a text to some rollouts and remembers of whom it was asked."""

    def __init__(self, text, indexes=range(8), name="privileged"):
        self.text, self.indexes, self.name = text, indexes, name
        self.calls = []

    def __call__(self, groups):
        rollouts = rollouts_of(groups)
        self.calls.append([one.index for one in rollouts if one.wanted])
        assert [one.index for one in rollouts] == list(range(8)), "the groups are whole for everyone"
        return [[View(self.text, name=self.name)] if one.index in self.indexes else [] for one in rollouts]


def test_first_of(make_trainer):
    first, second, third = Asked("1", [0, 5]), Asked("2", [0, 1, 7]), Asked("3", [5, 2])
    trainer = run(make_trainer, FirstOf(first, second, third))
    assert contexts(trainer) == [["1"], ["2"], ["3"], [], [], ["1"], [], ["2"]]
    assert first.calls == [list(range(8))]
    assert second.calls == [[1, 2, 3, 4, 6, 7]], "only those that have no view yet"
    assert third.calls == [[2, 3, 4, 6]]


def test_first_of_a_sibling_a_column_and_a_rule(make_trainer):
    spec = {"first_of": ["sibling", {"column": "hint"}, {"fixed": {"context": "Try.", "place": "after_user"}}]}
    trainer = run(make_trainer, build_source(spec))
    assert contexts(trainer) == [["it is 2"], ["2"], ["2"], ["2"], *[["Try."]] * 4]
    trainer = run(make_trainer, build_source(spec), ["no"] * 4, ["no"] * 4)
    assert contexts(trainer) == [*[["Two ones."]] * 4, *[["Try."]] * 4]
    assert contexts(run(make_trainer, FirstOf(SiblingSuccess()), ["no"] * 4, ["no"] * 4)) == [[]] * 8


def test_views_that_nobody_asked_for_are_dropped(make_trainer):
    """A part may answer for all rollouts of a group; those that another part has answered for stay as they are."""
    assert contexts(run(make_trainer, FirstOf(Asked("1", [3]), Asked("2")))) == [*[["2"]] * 3, ["1"], *[["2"]] * 4]
    assert contexts(run(make_trainer, When(lambda one, _: one.index == 3, Asked("2")))) == [
        *[[]] * 3, ["2"], *[[]] * 4,
    ]  # fmt: skip


# all_of


def test_all_of(make_trainer):
    source = AllOf(DatasetColumn(["hint", "other"]), Asked("x", [0, 4], name="x"), When(lambda *_: False, Fixed("y")))
    trainer = run(make_trainer, source)
    first, second = ["Two ones.", "Use fingers."], ["Use a line."]
    assert contexts(trainer) == [[*first, "x"], first, first, first, [*second, "x"], second, second, second]
    names = [[view.name for view in row] for row in trainer.collected.views]
    assert names[0] == ["hint", "other", "x"] and names[4] == ["other", "x"]
    assert trainer._metrics["train"]["self_distillation/view_share"] == [1.0]


def test_all_of_views_of_one_name(make_trainer):
    with pytest.raises(
        ValueError, match=r"need different names, got \['privileged', 'privileged'\] from AllOf"
    ) as caught:
        run(make_trainer, AllOf(Asked("1"), Asked("2", [6])))
    assert "the row with prompt [{'role': 'user', 'content': '2 + 3?'}]" in str(caught.value)
    trainer = run(make_trainer, AllOf(Asked("1"), Asked("2", [6])), privileged_on_error="skip")
    assert contexts(trainer) == [*[["1"]] * 6, [], ["1"]]
    trainer = run(make_trainer, AllOf(Asked("1", range(6)), Asked("2", [6])))
    assert contexts(trainer) == [*[["1"]] * 6, ["2"], []], "no row has two"


def test_all_of_async_and_sync_parts_in_their_order(make_trainer):
    async def late(groups):
        await asyncio.sleep(0.05)
        return [[View("late", name="late")] for _ in rollouts_of(groups)]

    async def soon(groups):
        return [[View("soon", name="soon")] for _ in rollouts_of(groups)]

    assert contexts(run(make_trainer, AllOf(late, Asked("x", name="x"), soon))) == [["late", "x", "soon"]] * 8


# when within when, and what is handed on


def test_conditions_within_each_other(make_trainer):
    part = Asked("x")
    source = When(lambda one, _: one.index > 2, FirstOf(Asked("y", [7]), When(lambda one, _: one.index < 5, part)))
    assert contexts(run(make_trainer, source)) == [[], [], [], ["x"], ["x"], [], [], ["y"]]
    assert part.calls == [[3, 4]]


class Stateful:
    """Has all that a source may have."""

    uses_model = True
    columns = ["hint"]

    def __init__(self):
        self.count, self.runs = 0, []

    def setup(self, run):
        self.runs.append(run)

    def __call__(self, groups):
        self.count += 1
        return [[] for _ in rollouts_of(groups)]

    def check(self, dataset, name):
        if "hint" not in dataset.column_names:
            raise ValueError(f"no hint in {name}")

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def nested(part, other):
    return FirstOf(Fixed("x"), AllOf(When(lambda *_: True, part), other))


def test_what_a_part_needs_and_keeps_is_handed_on(make_trainer, rows, tmp_path):
    dataset = Dataset.from_list([{"prompt": row["prompt"], "hint": "h"} for row in rows])
    options = {"dataset": dataset, "save_strategy": "steps", "save_steps": 2}
    part, other = Stateful(), Stateful()
    source = nested(part, other)
    assert source.uses_model and source.columns == ["hint", "hint"]
    trainer = make_trainer(privileged=source, max_steps=2, **options)
    assert part.runs == other.runs == [trainer.collector.run]
    trainer.train()
    assert part.count == other.count == 2, "a part is asked in each batch, also where no rollout is left for it"
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "_parts_0.json").read_text())
    assert json.dumps(state).count('"count": 2') == 2
    part, other = Stateful(), Stateful()
    make_trainer(privileged=nested(part, other), max_steps=3, **options).train(resume_from_checkpoint=True)
    assert part.count == other.count == 3
    bare = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    with pytest.raises(ValueError, match="no hint in train_dataset"):
        make_trainer(privileged=nested(Stateful(), Stateful()), dataset=bare)
