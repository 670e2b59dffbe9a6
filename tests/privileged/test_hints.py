# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Hints before the turn or the token that went wrong, in TRL's own tool loop; rollouts whose reward does not count."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from agents import (
    AGENT,
    DONE,
    FAILING,
    KOLIBRI,
    RULES,
    SCRIPTS,
    agent_model,
    agent_tokenizer,
    call,
    follow_scripts,
    multiply,
    small_reward,
)
from batches import batch_of, completions, student_prompts, taught_by_row, teacher_reads
from dense import check_scores
from launch import launch
from runs import SAMPLED
from scripted import sums, tool_answers, writing
from trl_opsd import View
from trl_opsd.privileged import TurnHint, build_source, rollouts_of


BEGUN = "<|im_start|>assistant\n"
WORKER = Path(__file__).parents[1] / "distributed" / "hints_worker.py"


@pytest.fixture
def make_agent(make_trainer):
    def make(source, scripts=SCRIPTS, **options):
        trainer = make_trainer(
            agent_model(),
            tools=[multiply], processing_class=agent_tokenizer(), privileged=source, **{**AGENT, **options},
        )  # fmt: skip
        follow_scripts(trainer, scripts)
        return trainer

    return make


@pytest.mark.parametrize("kind", ["live", "base"])
def test_each_failing_turn_has_a_hint_before_it(make_agent, kind):
    trainer = make_agent(build_source({"turn_hint": {"rules": RULES, "max_hints": 2}}), teacher_model_kind=kind)
    batch = batch_of(trainer)
    shown = [[(v.name, v.context, v.place, v.position, v.policy) for v in row] for row in trainer.collected.views]
    assert shown == [
        [
            ("hint-1", "Only one tool exists.", "before_turn", 0, True),
            ("hint-2", "Give integers.", "before_turn", 1, True),
        ],
        [("hint-1", "Give integers.", "before_turn", 1, True)],
        [],
        [],
    ]
    assert taught_by_row(trainer, batch, "hint-1") == [SCRIPTS[0][0], SCRIPTS[1][1]]
    assert taught_by_row(trainer, batch, "hint-2")[0] == SCRIPTS[0][1]
    assert sorted(batch["distillation"].index.tolist()) == [0, 1], "the others have nothing to teach and are left out"
    decode = trainer.processing_class.decode
    prompts = [decode(ids) for ids in student_prompts(batch)]
    message = "<|im_start|>user\n{}<|im_end|>\n" + BEGUN
    first = prompts[0].removesuffix(BEGUN) + message.format("Only one tool exists.")
    assert decode(teacher_reads(batch, "hint-1")[0]) == first
    reply = "\n<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n"
    answered = SCRIPTS[0][0] + reply.format("{'error': 'Tool times not found.'}")
    assert decode(teacher_reads(batch, "hint-2")[0]) == prompts[0] + answered + message.format("Give integers.")
    answered = SCRIPTS[1][0] + reply.format("2")
    assert decode(teacher_reads(batch, "hint-1")[1]) == prompts[1] + answered + message.format("Give integers.")
    for row, ids in enumerate(teacher_reads(batch, "hint-1")):
        start = int(batch["distillation"].views["hint-1"].start[row])
        assert trainer.collected.rollouts[row].turns[row].start == start
        assert decode(completions(batch)[row][start:]).startswith(SCRIPTS[row][row])
        assert len(ids) > start
    trainer._compute_loss(trainer.model, batch).backward()
    check_scores(trainer, batch, "hint-1")


def test_only_the_first_failing_turn(make_agent):
    trainer = make_agent(TurnHint(rules=[{"hint": "Look at the tool."}], template="Hint: {privileged_context}"))
    batch = batch_of(trainer)
    assert [[v.name for v in row] for row in trainer.collected.views] == [["hint"], ["hint"], [], []]
    assert taught_by_row(trainer, batch, "hint") == [SCRIPTS[0][0], SCRIPTS[1][1]]
    assert "<|im_start|>user\nHint: Look at the tool.<|im_end|>\n" in trainer.processing_class.decode(
        teacher_reads(batch, "hint")[0]
    )


def test_a_turn_of_several_mistakes_has_one_hint_of_each_class(make_agent):
    rules = [
        *RULES,
        {"on": "text", "match": '"a": 1', "hint": "Not one."},
        {"on": "result", "match": "^4$", "hint": "4!"},
    ]
    trainer = make_agent(TurnHint(rules=[*rules, *rules], max_hints=9))
    batch_of(trainer)
    found = [[(v.position, v.context) for v in row] for row in trainer.collected.views]
    assert found[0] == [(0, "Only one tool exists."), (1, "Give integers.\nNot one."), (2, "4!")]
    assert found[1:] == [[(0, "Not one."), (1, "Give integers.")], [], []]


def test_the_whole_suffix(make_agent):
    trainer = make_agent(TurnHint(rules=RULES, teach="suffix"))
    batch = batch_of(trainer)
    assert taught_by_row(trainer, batch, "hint") == ["".join(SCRIPTS[0]), "".join(SCRIPTS[1][1:])], "no tool results"


def test_no_mistake_no_view(make_agent):
    trainer = make_agent(TurnHint(rules=RULES), [[call(a=1, b=2), DONE]])
    trainer.train()
    assert not any(trainer.collected.views)
    assert all(log["self_distillation/view_share"] == 0 for log in trainer.state.log_history[:-1])


# Positions in the text of one turn


def single(text):
    def rollout(prompts, trainer):
        ids = [trainer.processing_class(text)["input_ids"] for _ in prompts]
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }

    return rollout


@pytest.mark.parametrize("text_prompt", [False, True])
def test_before_the_token_of_a_match(make_trainer, tokenizer, text_prompt):
    rule = {"on": "text", "match": r"2 \+ 2 = 5", "hint": "(2 + 2 is 4.) "}
    data = Dataset.from_list([{"prompt": f"Q{i}"} for i in range(4)]) if text_prompt else None
    trainer = make_trainer(
        dataset=data, privileged=TurnHint(rules=[rule], place="before_token"), max_completion_length=60,
        rollout_func=single("Well, é: 2 + 2 = 5. So it is.<|im_end|>"), **SAMPLED,
    )  # fmt: skip
    batch = batch_of(trainer)
    for student, teacher in zip(student_prompts(batch), teacher_reads(batch, "hint"), strict=True):
        assert tokenizer.decode(teacher) == tokenizer.decode(student) + "Well, é: (2 + 2 is 4.) "
    assert set(taught_by_row(trainer, batch, "hint")) == {"2 + 2 = 5. So it is.<|im_end|>"}
    check_scores(trainer, batch, "hint")


def test_before_a_token_of_the_first_of_two_turns(make_trainer):
    rule = {"on": "text", "match": "it", "hint": "that "}
    for teach, expected in (("turn", "it<|im_end|>"), ("suffix", "it<|im_end|>sorry!<|im_end|>")):
        source = TurnHint(rules=[rule], place="before_token", teach=teach)
        trainer = make_trainer(privileged=source, rollout_func=tool_answers, max_completion_length=200)
        assert set(taught_by_row(trainer, batch_of(trainer), "hint")) == {expected}


# A function


def second_turns(rollout):
    return [(1, f"Never {rollout.turns[0].message['tool_calls'][0]['function']['name']}.")] if rollout.turns[1:] else []


def test_a_function_by_its_path(make_agent):
    trainer = make_agent(build_source({"turn_hint": {"function": f"{__name__}.second_turns"}}))
    batch = batch_of(trainer)
    shown = [[(v.context, v.position) for v in row] for row in trainer.collected.views]
    assert shown == [[("Never times.", 1)], [("Never multiply.", 1)], [("Never multiply.", 1)], []]
    assert taught_by_row(trainer, batch, "hint") == [SCRIPTS[0][1], SCRIPTS[1][1], DONE]


@pytest.mark.parametrize("options", [{}, {"teach": "suffix"}, {"place": "before_token"}])
def test_a_function_that_names_no_position(make_agent, options):
    trainer = make_agent(TurnHint(function=lambda rollout: [(9999, "No.")], **options))
    with pytest.raises(ValueError, match=r"'hint' of the row with prompt.* position 9999: the completion has"):
        trainer.train()


BAD = [
    ({}, "one of `rules`"),
    ({"rules": [], "function": None}, "one of `rules`"),
    ({"rules": RULES, "function": "json.loads"}, "one of `rules`"),
    ({"rules": [{"match": "x"}]}, "Rule 0 is .*'hint'"),
    ({"rules": [{"hint": "H"}, {"hint": " "}]}, "Rule 1 .*`hint` must be a text"),
    ({"rules": [{"hint": "H", "match": "("}]}, "Rule 0 .*no regular expression"),
    ({"rules": [{"hint": "H", "on": "code"}]}, r"`on` must be one of \['error', 'result', 'text'\]"),
    ({"rules": [{"hint": "H", "on": "text"}]}, "`match` is empty"),
    ({"rules": ["H"]}, r"`rules` must be a list .*got \['H'\]"),
    ({"rules": RULES, "place": "system"}, "`place` must be 'before_turn' or"),
    ({"rules": RULES, "place": "before_token"}, "every rule must be on the text"),
    ({"rules": RULES, "teach": "all"}, "`teach` must be"),
    ({"rules": RULES, "max_hints": 0}, "`max_hints` must be a whole number of at least 1"),
    ({"function": "json.dumps", "repeat": False}, "`repeat` is about `rules`"),
    ({"function": "no_such_module.locate"}, "no_such_module.locate can't be imported"),
    ({"function": "tiny.no_such"}, "tiny.no_such can't be imported"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=rf"`privileged_source.turn_hint`: .*{text}"):
        build_source({"turn_hint": options})


def test_a_hint_for_each_class_of_mistake(make_agent):
    """Two wrong arguments, then an unknown tool: with `repeat` off a rule hints at the first of its turns."""
    script = [call(a=1, b="x"), call(a=2, b="y"), call("times", a=1, b=1), DONE]
    found = {}
    for repeat in (True, False):
        trainer = make_agent(TurnHint(rules=RULES, max_hints=2, repeat=repeat), [script], max_completion_length=1000)
        batch_of(trainer)
        found[repeat] = [(view.position, view.context) for view in trainer.collected.views[0]]
    assert found[True] == [(0, "Give integers."), (1, "Give integers.")]
    assert found[False] == [(0, "Give integers."), (2, "Only one tool exists.")]


@pytest.mark.parametrize("given", [None, ["x"], [(0, "x", 1)]])
def test_a_function_that_gives_no_pairs(make_agent, given):
    trainer = make_agent(TurnHint(function=lambda rollout: given))
    with pytest.raises(ValueError, match=r"must return a list of pairs of a position and a hint, got .* the row with"):
        batch_of(trainer)


@pytest.mark.parametrize("text", ["no", ""])
def test_a_rule_on_what_is_missing_stands_before_the_end(make_trainer, text):
    """A match of nothing, at the end of a text or of none, is before the token that ends the turn."""
    source = TurnHint(rules=[{"on": "text", "match": r"\Z", "hint": "Say the answer."}], place="before_token")
    trainer = make_trainer(
        dataset=sums(), privileged=source, rollout_func=writing([text] * 2, [text] * 2), num_generations=2
    )
    batch_of(trainer)
    assert [row[0].position for row in trainer.collected.views] == [len(text)] * 4


# Kolibri: the worst rollout of a failing group learns from its hints alone


@pytest.mark.parametrize(("reward", "positions"), [(small_reward, [[], [0], [], []]), (None, [[], [], [], []])])
def test_the_rollout_with_most_errors_of_a_group_that_failed(make_agent, reward, positions):
    rewards = reward or (lambda completions, **kwargs: [float(i == 2) for i in range(len(completions))])
    trainer = make_agent(build_source(KOLIBRI), FAILING, reward_funcs=[rewards], num_generations=4)
    batch_of(trainer)
    assert [[view.position for view in row] for row in trainer.collected.views] == positions
    share = trainer._metrics["train"]["self_distillation/policy_off_share"]
    assert share == [0.25 if reward else 0.0]


@pytest.mark.engines
def test_a_group_on_two_processes(tmp_path):
    for processes in (1, 2):
        launch(WORKER, str(tmp_path), str(processes), processes=processes, seconds=120)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert one["views"] == first["views"] + second["views"] == [[], ["Give integers."], [], []]
    assert one["advantages"] == first["advantages"] + second["advantages"]
    assert one["advantages"][1] == [1, 0.0] and one["share"] == first["share"] == second["share"] == [0.25]


def test_no_errors_at_all(make_agent):
    trainer = make_agent(build_source(KOLIBRI), SCRIPTS[2:], reward_funcs=[small_reward], num_generations=4)
    trainer.train()
    assert not any(trainer.collected.views)


def gradients_of(trainer, loss):
    trainer.model.zero_grad()
    loss.backward()
    return {name: param.grad.clone() for name, param in trainer.model.named_parameters()}


@pytest.mark.parametrize("mode", [{}, SAMPLED], ids=["mixed", "sampled"])
def test_the_policy_gradient_of_such_a_rollout_vanishes(make_agent, mode):
    options = {"reward_funcs": [small_reward], "num_generations": 4, "policy_weight": 0.7, **mode}
    with_policy = {"rules": RULES, "policy": True}
    kept = make_agent(
        build_source({"when": {"condition": "most_errors", "source": {"turn_hint": with_policy}}}), FAILING, **options
    )
    advantages = batch_of(kept)["advantages"]
    trainer = make_agent(build_source(KOLIBRI), FAILING, **options)
    inputs = batch_of(trainer)
    (row,) = inputs["distillation"].mask.any(1).nonzero().flatten().tolist()
    assert sorted(inputs["advantages"].tolist()) == sorted([*advantages[advantages != advantages[row]].tolist(), 0.0])
    assert advantages.abs().min() > 0.05, "the group's advantages are what TRL made them"

    # TRL's own loss, in which the tokens of that row do not exist; the number of tokens to divide by stays
    bare = {**inputs, "completion_mask": inputs["completion_mask"].clone(), "advantages": advantages}
    bare["completion_mask"][row] = 0
    wanted = gradients_of(trainer, GRPOTrainer._compute_loss(trainer, trainer.model, bare))
    trainer.objective.policy_weight = 0.0
    hints = gradients_of(trainer, trainer._compute_loss(trainer.model, inputs))
    trainer.objective.policy_weight = 0.7
    got = gradients_of(trainer, trainer._compute_loss(trainer.model, inputs))
    for name, gradient in got.items():
        want = 0.7 * wanted[name] + hints[name]
        assert (gradient - want).norm() <= 1e-4 * want.norm() + 1e-7, name
    assert sum(value.norm() for value in wanted.values()) > 1e-3 and sum(v.norm() for v in hints.values()) > 1e-3


def test_a_hint_that_is_too_long_leaves_the_advantage(make_agent):
    long = TurnHint(rules=[{"hint": "word " * 800}], policy=False)
    options = {"reward_funcs": [small_reward], "num_generations": 4}
    short = batch_of(make_agent(lambda groups: [[] for _ in rollouts_of(groups)], FAILING, **options))
    trainer = make_agent(long, FAILING, teacher_max_length=3000, teacher_overlong="drop_view", **options)
    batch = batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/dropped_views"] == [3]
    assert torch.equal(batch["advantages"], short["advantages"])


def test_any_view_may_switch_the_policy_off(make_trainer, rows):
    def source(groups):
        return [[View("A.", name="a"), View("B.", name="b", policy=one.index != 1)] for one in rollouts_of(groups)]

    def reward(completions, **kwargs):
        return [float(i) for i in range(len(completions))]

    trainer = make_trainer(privileged=source, reward_funcs=[reward], shuffle_dataset=False)
    batch = batch_of(trainer)
    assert sorted(batch["advantages"].sign().tolist()) == [-1.0, -1.0, 0.0, 1.0]
