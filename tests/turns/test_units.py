# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Texts of a unit are dealt to its rows by their roles, as a table made by hand says."""

import pytest

from batches import batch_of, completions, student_prompts
from conftest import length_reward
from turn_cases import by_role, numbered


SLOTS = ["first", "second", "distil", "feedback", "reread", "given"]
ALL = {
    "slots": SLOTS,
    "source": {"fixed": {"context": "Mind the sign.", "place": "after_user"}},
    "given": "solution",
    "feedback_template": "Q: {question} A: {attempt} Criticise!",
}


@pytest.fixture
def solved(rows):
    for i, row in enumerate(rows):
        row["solution"] = f"It is {i}." if i else None
    return rows


def dealt(make_trainer, turns, **options):
    """A trainer with a generation batch of two units, the prompts of its generation calls, and its rows as text."""
    size = len(turns["slots"])
    trainer = make_trainer(
        reward_funcs=options.pop("reward_funcs", length_reward), turns=turns, num_generations=size,
        per_device_train_batch_size=2 * size, shuffle_dataset=False, **options,
    )  # fmt: skip
    calls = numbered(trainer)
    batch = batch_of(trainer)
    decode = trainer.processing_class.decode
    rows = {}
    index = batch["distillation"].index.tolist()
    for place, pair in zip(index, zip(student_prompts(batch), completions(batch), strict=True), strict=True):
        rows[place] = (decode(pair[0]), pair[1])
    kept = {place: row.tolist() for place, row in zip(index, batch["tool_mask"], strict=True)}
    rollouts = trainer.collected.rollouts
    return trainer, calls, [(*rows[i], kept[i], rollouts[i]) for i in range(len(rollouts))]


def ask(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_every_role(make_trainer, solved):
    trainer, calls, rows = dealt(make_trainer, ALL)
    encode = lambda text: trainer.processing_class(text)["input_ids"]  # noqa: E731
    assert [len(call) for call in calls] == [2, 2]
    assert by_role(trainer) == [*SLOTS[:5], "idle", *SLOTS], "the first row has no solution"
    for unit, question in enumerate(["What is 0?", "What is very 1?"]):
        first, second, distil, feedback, reread, given = rows[6 * unit : 6 * unit + 6]
        y0, y1 = first[1], second[1]
        attempt = trainer.processing_class.decode(y0, skip_special_tokens=True)
        assert y0 != y1 and first[0] == distil[0] == given[0] == ask(question)
        assert second[0] == reread[0] == ask(f"{question}\n\nMind the sign.")
        assert distil[1] == y1 and reread[1] == y0
        assert feedback[0] == ask(f"Q: {question} A: {attempt.strip()} Criticise!")
        assert feedback[1] == encode("Mind the sign.<|im_end|>")
        assert calls[1][unit] == encode(second[0])
        assert given[1] == (encode("It is 1.<|im_end|>") if unit else y0)
        assert given[2][: len(given[1])] == [unit] * len(given[1]), "an idle row trains nothing"
        assert all(sum(row[2][: len(row[1])]) == len(row[1]) for row in (first, second, distil, feedback, reread))
        attempts = [row[3].attempt for row in (first, second, distil, feedback, reread)]
        assert {one.completion_ids == y0 and one.total == first[3].total for one in attempts} == {True}
        assert second[3].prompt[0]["content"] == f"{question}\n\nMind the sign."


def test_rewards_of_the_roles(make_trainer, solved):
    """Feedback and idle rows have none; that of the others stays on the rollout, and TRL compares three roles alone."""
    trainer, _, rows = dealt(make_trainer, ALL)
    by_index = {}
    batch = trainer._buffered_inputs[0]
    for place, value in zip(batch["distillation"].index.tolist(), batch["advantages"].tolist(), strict=True):
        by_index[place] = value
    for unit in range(2):
        group = [row[3] for row in rows[6 * unit : 6 * unit + 6]]
        compared = [one.total for one in group[:3]]
        assert compared == length_reward([one.completion for one in group[:3]])
        assert group[3].total != group[3].total and not group[3].success and group[4].total == group[0].total
        mean = sum(compared) / 3
        spread = (sum((value - mean) ** 2 for value in compared) / 2) ** 0.5
        expected = [(value - mean) / (spread + 1e-4) for value in compared] + [0.0] * 3
        assert [by_index[6 * unit + i] for i in range(6)] == pytest.approx(expected, abs=1e-5)


NOT_ON = {
    "first": (["first", "first", "idle", "first", "first"], 2 + 2 * 3),
    "idle": (["first", "idle", "idle", "idle", "idle"], 2),
}


@pytest.mark.parametrize("otherwise", NOT_ON)
def test_units_that_do_not_go_on(make_trainer, solved, otherwise):
    """Their later slots are fresh first turns, of which the second turn's two roles share one, or train nothing."""
    turns = {k: v for k, v in ALL.items() if k != "given"} | {"slots": SLOTS[:5], "otherwise": otherwise}
    trainer, calls, rows = dealt(make_trainer, turns | {"when": {"probability": 0.0}})
    roles, count = NOT_ON[otherwise]
    assert by_role(trainer) == roles * 2 and sum(map(len, calls)) == count
    texts = [tuple(row[1]) for row in rows[:5] if row[3].role == "first"]
    assert len(set(texts)) == len(texts)
    assert {row[0] for row in rows[:5]} == {ask("What is 0?")}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_steps_between_two_in_which_units_go_on(make_trainer, every):
    turns = {"slots": ["first", "distil"], "source": {"fixed": {"context": "Mind!"}}, "every": every}
    trainer = make_trainer(turns=turns, num_generations=2, max_steps=5)
    seen, sample = [], trainer._generate_and_score_completions

    def recorded(inputs):
        output = sample(inputs)
        seen.append(set(by_role(trainer)))
        return output

    trainer._generate_and_score_completions = recorded
    trainer.train()
    assert seen == [{"first", "distil"} if (step + 1) % every == 0 else {"first"} for step in range(5)]


def test_without_a_first_turn(make_trainer, rows):
    """As guided rollouts: one call, of which a unit whose row has no context takes the bare prompt."""
    turns = {"slots": ["distil"], "source": "column", "attempt": False}
    trainer = make_trainer(turns=turns, shuffle_dataset=False)
    calls = numbered(trainer)
    batch = batch_of(trainer)
    assert len(calls) == 1 and by_role(trainer) == ["first", "distil", "distil", "first"]
    texts = [trainer.processing_class.decode(ids) for ids in calls[0]]
    assert [f"The answer is {i}." in text for i, text in enumerate(texts)] == [False, True, True, False]
    trained = [trainer.processing_class.decode(ids) for ids in student_prompts(batch)]
    assert not any("The answer" in text for text in trained)


def test_the_teachers_weights_write_the_second_turn(make_trainer, rows):
    """At temperature 0 it is what a teacher with other weights finds likeliest."""
    turns = {"slots": ["distil"], "source": "column", "weights": "teacher", "temperature": 0.0}
    trainer = make_trainer(turns=turns, shuffle_dataset=False, per_device_train_batch_size=2, max_completion_length=5)
    from runs import move

    move(trainer.model, 0.3)
    calls = numbered(trainer)
    batch_of(trainer)
    assert [len(call) for call in calls] == [2, 1], "the student writes first turns, and one for the row without"
    (rollout,) = [one for one in trainer.collected.rollouts if one.role == "distil"]
    (unit,) = [unit for unit in trainer.turns.units if unit.goes_on]
    own, other = (
        trainer.text_generator.answers([unit.context.ids], weights, 0.0)[0] for weights in ("live", "teacher")
    )
    assert rollout.completion_ids == other != own
