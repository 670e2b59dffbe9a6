# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A source that fails, is late or gives what is no view: stopped with its name and the row, or skipped and counted."""

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback

import asking_worker
from batches import batch_of
from launch import launch
from scripted import long_answers
from trl_opsd import View
from trl_opsd.privileged import AllOf, DatasetColumn, FirstOf, Fixed, When, conditions, rollouts_of
from views import giving


def outcome(make_trainer, source, **options):
    """The error of a real batch, with its notes."""
    trainer = make_trainer(privileged=source, **options)
    with pytest.raises(Exception) as caught:
        batch_of(trainer)
    return type(caught.value), "\n".join([str(caught.value), *caught.value.__notes__])


def hint(groups):
    return [[View("Think!")] for _ in rollouts_of(groups)]


async def patient(groups):
    await asyncio.sleep(0.05)
    return hint(groups)


async def tuples(groups):
    return tuple(hint(groups))


async def failing(groups):
    await asyncio.sleep(0.01)
    raise OSError("no critic there")


async def cancelled(groups):
    raise asyncio.CancelledError


def yielding(groups):
    yield from hint(groups)


async def yielding_slowly(groups):
    for views in hint(groups):
        yield views


def row_by_row(groups):
    return [(View("Think!") for _ in range(1)) for _ in rollouts_of(groups)]


def forgetful(groups):
    return [patient([[rollout]]) for rollout in rollouts_of(groups)]


class Judge:
    """As an object with a name of its own."""

    def __call__(self, groups):
        raise LookupError("no such solution")


def cancels(groups):
    raise asyncio.CancelledError


def exits(groups):
    sys.exit("no more")


def of_the_wanted(groups):
    return [[View("Think!")] for group in groups for one in group if one.index < 2]


def twice(groups):
    return hint(groups) + hint(groups)


FAILURES = {
    "raises": (Judge(), LookupError, ["no such solution", "source Judge."]),
    "lambda": (lambda groups: 1 / 0, ZeroDivisionError, ["source <lambda>."]),
    "async raises": (failing, OSError, ["no critic there", "source failing."]),
    "async is cancelled": (
        cancelled,
        RuntimeError,
        ["It gave no views, but raised CancelledError.", "source cancelled."],
    ),
    "is cancelled": (cancels, RuntimeError, ["It gave no views, but raised CancelledError.", "source cancels."]),
    "exits": (exits, RuntimeError, ["It gave no views, but raised SystemExit.", "source exits."]),
    "async tuple": (tuples, ValueError, ["source tuples must return one list", "got tuple"]),
    "generator": (yielding, ValueError, ["source yielding must return one list", "4 rollouts", "got generator"]),
    "async generator": (yielding_slowly, ValueError, ["source yielding_slowly", "got async_generator"]),
    "generator in a row": (row_by_row, ValueError, ["source row_by_row", "list of `View`", "the row with prompt"]),
    "not awaited": (forgetful, ValueError, ["source forgetful", "list of `View`", "coroutine", "the row with prompt"]),
    "some rollouts": (of_the_wanted, ValueError, ["source of_the_wanted", "4 rollouts of the 4 groups", "got 2 lists"]),
    "unknown rollouts": (twice, ValueError, ["source twice", "4 rollouts of the 4 groups", "got 8 lists"]),
    "nothing": (lambda groups: None, ValueError, ["source <lambda>", "got NoneType"]),
    "a dict": (lambda groups: {0: [View("x")]}, ValueError, ["one list of views", "got dict"]),
}


@pytest.mark.filterwarnings("ignore:coroutine 'patient' was never awaited")
@pytest.mark.parametrize(("source", "kind", "named"), FAILURES.values(), ids=FAILURES)
def test_failures_name_the_source(make_trainer, source, kind, named):
    error, text = outcome(make_trainer, source)
    assert error is kind and all(name in text for name in named), text


@pytest.mark.filterwarnings("ignore:coroutine 'patient' was never awaited")
@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_skipped_and_counted(make_trainer, name, caplog):
    trainer = make_trainer(privileged=FAILURES[name][0], privileged_on_error="skip", max_steps=2)
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["self_distillation/source_errors"] == 4 and log["self_distillation/view_share"] == 0
    said = [record.getMessage() for record in caplog.records if "are trained without views" in record.getMessage()]
    source = getattr(FAILURES[name][0], "__name__", "Judge")
    assert len(said) >= 2 and all(source in text for text in said), "each time, with the source"


# What is no view. Each is given to the second of the four rollouts alone

BAD_VIEWS = {
    "number": (View(3), "its context must be a string, a list of chat messages"),
    "bytes": (View(b"text"), "got b'text' of type bytes"),
    "messages of text": (View(["Think!"]), "its context must be a string, a list of chat messages"),
    "empty": (View(" \n"), "its context is an empty string"),
    "no messages": (View([]), "its context must be a string"),
    "message without role": (View([{"content": "x"}]), "message 0 needs a role and content"),
    "content that is a number": (View([{"role": "user", "content": 3}]), "message 0 has content 3 of type int"),
    "surrogate": (View("a\ud800"), "its context holds a lone surrogate at character 1"),
    "surrogate in a message": (View([{"role": "user", "content": "\udfff"}]), "message 0 holds a lone surrogate"),
    "surrogate in reasoning": (
        View([{"role": "assistant", "content": "x", "reasoning_content": "a\ud800"}]),
        "message 0 holds a lone surrogate at character 1",
    ),
    "surrogate in a template": (View("x", template="\ud800{privileged_context}"), "its template holds a lone"),
    "surrogate in a prompt": (
        View(prompt=[{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "\ud800"}}]}]),
        "its prompt: message 0 holds a lone surrogate",
    ),
    "template without placeholder": (View("x", template="Hint:"), "the template 'Hint:': it must be text with the"),
    "template that is none": (View("x", template=None), "the template None: it must be text with the placeholder"),
    "role": (View("x", place="prepend", role=3), "role 3: it must be text, or None"),
    "template arguments": (View("x", chat_template_kwargs=["a"]), "chat_template_kwargs ['a']: it must be a dict"),
    "position": (View("x", place="before_token", position="1"), "position '1': it must be a whole number"),
    "span of text": (View("x", span=("0", "2")), "span ('0', '2'): it must be a tuple of two whole numbers"),
    "span of one": (View("x", span=(3,)), "span (3,): it must be a tuple of two whole numbers"),
    "weight": (View("x", weight="1"), "weight 1: weights are above 0 and finite"),
    "name": (View("x", name=3), "has the name 3: a name is text"),
    "a text": ("Think!", "must return a list of `View` for each rollout"),
    "none": (None, "must return a list of `View` for each rollout"),
}  # fmt: skip


def second(view):
    def stranger(groups):
        views = hint(groups)
        views[1] = view if view is None else [view]
        return views

    return stranger


@pytest.mark.parametrize(("view", "text"), BAD_VIEWS.values(), ids=BAD_VIEWS)
def test_bad_views_name_source_and_row(make_trainer, view, text):
    trainer = make_trainer(privileged=second(view), shuffle_dataset=False)
    with pytest.raises(ValueError) as caught:
        batch_of(trainer)
    told = "\n".join([str(caught.value), *caught.value.__notes__])
    assert text in told and "stranger" in told, told
    assert "the row with prompt [{'role': 'user', 'content': 'What is very 1?'}]" in told
    trainer = make_trainer(privileged=second(view), shuffle_dataset=False, privileged_on_error="skip")
    batch_of(trainer)
    assert [len(views) for views in trainer.collected.views] == [1, 0, 1, 1]
    assert trainer._metrics["train"]["self_distillation/source_errors"] == [1]


def test_numbers_of_numpy_are_numbers(make_trainer):
    view = View("x", place="before_token", position=np.int64(1), span=(np.int64(1), np.int64(2)), weight=np.float64(2))
    batch = batch_of(make_trainer(privileged=giving(view), rollout_func=long_answers))
    assert batch["distillation"].views["privileged"].start.tolist() == [1] * 4


# Sources within sources


def test_an_error_names_the_part_and_what_stands_around_it(make_trainer):
    source = AllOf(FirstOf(When(conditions.probability(0.0), Fixed("x")), Judge()), hint)
    _, text = outcome(make_trainer, source)
    assert [f"source {name}." in text for name in ("Judge", "FirstOf", "AllOf", "When", "Fixed", "hint")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert text.index("Judge") < text.index("FirstOf") < text.index("AllOf")


def test_a_part_that_returns_too_little(make_trainer):
    error, text = outcome(make_trainer, FirstOf(of_the_wanted, hint))
    assert error is ValueError and "source of_the_wanted must return one list of views for each of the 4" in text


def test_one_of_two_async_parts_fails(make_trainer):
    error, text = outcome(make_trainer, AllOf(patient, failing))
    assert error is OSError and "source failing." in text and "patient" not in text


# Time


def test_async_sources_wait_at_the_same_time(make_trainer):
    names, running, most = ["a", "b", "c"], [], []

    def slow(name):
        async def source(groups):
            running.append(name)
            await asyncio.sleep(0.2)
            most.append(len(running))
            running.remove(name)
            return [[View("Think!", name=name)] for _ in rollouts_of(groups)]

        return source

    trainer = make_trainer(privileged=AllOf(*map(slow, names)))
    batch_of(trainer)
    assert max(most) == 3
    assert [[view.name for view in row] for row in trainer.collected.views] == [names] * 4


def test_an_async_source_within_a_running_loop(make_trainer):
    """As in a notebook."""
    trainer = make_trainer(privileged=patient)

    async def notebook():
        return batch_of(trainer)

    asyncio.run(notebook())
    assert [[view.context for view in row] for row in trainer.collected.views] == [["Think!"]] * 4


def sleeping(groups):
    time.sleep(1.0)
    return hint(groups)


async def sleeping_async(groups):
    await asyncio.sleep(1.0)
    return hint(groups)


class Never:
    """A source that waits for what does not come."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, groups):
        self.event.wait(60)
        return hint(groups)


LATE = {"sync": sleeping, "async": sleeping_async, "a part": FirstOf(sleeping_async, hint), "for ever": Never()}


@pytest.mark.parametrize("name", LATE)
def test_a_late_source_is_stopped(make_trainer, name):
    begin = time.monotonic()
    error, text = outcome(make_trainer, LATE[name], privileged_timeout=0.1)
    assert error is TimeoutError and time.monotonic() - begin < 0.9
    source = {"sync": "sleeping", "async": "sleeping_async", "a part": "FirstOf", "for ever": "Never"}[name]
    for part in ("no views within 0.1 seconds", "`privileged_timeout`", "`privileged_on_error='skip'`", source):
        assert part in text


@pytest.mark.parametrize("name", LATE)
def test_a_late_source_is_skipped(make_trainer, name):
    begin = time.monotonic()
    trainer = make_trainer(privileged=LATE[name], privileged_timeout=0.1, privileged_on_error="skip", max_steps=2)
    trainer.train()
    assert time.monotonic() - begin < 20
    assert [log["self_distillation/source_errors"] for log in trainer.state.log_history[:2]] == [4, 4]


@pytest.mark.parametrize("source", [hint, patient, DatasetColumn()], ids=["sync", "async", "column"])
def test_a_source_in_time(make_trainer, source):
    trainer = make_trainer(privileged=source, privileged_timeout=30.0)
    batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/source_errors"] == [0]
    assert any(trainer.collected.views)


def test_a_failure_is_told_before_the_time_is_over(make_trainer):
    error, text = outcome(make_trainer, Judge(), privileged_timeout=30.0)
    assert error is LookupError and "source Judge." in text


def test_a_source_that_lets_the_model_write_takes_no_timeout(make_trainer):
    def writing(groups):
        return hint(groups)

    writing.uses_model = True
    with pytest.raises(ValueError, match="`privileged_timeout` can't stop a source that lets the model write"):
        make_trainer(privileged=AllOf(writing), privileged_timeout=1.0)


def test_a_source_that_is_still_at_work_is_not_asked_again(make_trainer, caplog):
    """It is late for the first batch and busy through the second; the third it answers."""
    calls, done = [], threading.Event()

    def source(groups):
        calls.append(None)
        if len(calls) == 1:
            done.wait(60)
        return hint(groups)

    class Waits(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 2:
                done.set()
                time.sleep(0.2)

    trainer = make_trainer(
        privileged=source, privileged_timeout=0.1, privileged_on_error="skip", max_steps=3, callbacks=[Waits()]
    )
    trainer.train()
    assert [log["self_distillation/source_errors"] for log in trainer.state.log_history[:3]] == [4, 4, 0]
    assert len(calls) == 2
    assert any("still at work on an earlier batch" in record.getMessage() for record in caplog.records)


# Two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes tells of its runs: none of them hung."""
    folder = tmp_path_factory.mktemp("two")
    launch(Path(asking_worker.__file__), str(folder), processes=2, seconds=150)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


RAISED = {
    "raises": ("KeyError", "no such solution"),
    "async raises": ("KeyError", "no such solution"),
    "late": ("TimeoutError", "no views within 0.5 seconds"),
    "async late": ("TimeoutError", "no views within 0.5 seconds"),
    "nothing": ("ValueError", "got NoneType"),
    "exits": ("RuntimeError", "raised SystemExit"),
    "is cancelled": ("RuntimeError", "raised CancelledError"),
    "a bad view": ("ValueError", "weight 0"),
}


@pytest.mark.engines
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", RAISED)
def test_one_process_fails_and_both_stop(both, kind):
    error, text = RAISED[kind]
    other, failing = (told[f"{kind}, error"] for told in both)
    assert failing["error"].startswith(error) and text in failing["error"]
    assert other["error"].startswith("RuntimeError: Another process failed, so this one stops too.")
    assert f"{error} from the privileged source on process 1, step 0" in other["error"] and text in other["error"]
    assert failing["steps"] == other["steps"] == 0


@pytest.mark.engines
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", RAISED)
def test_one_process_skips_and_both_go_on(both, kind):
    runs = [told[f"{kind}, skip"] for told in both]
    missing = 1 if kind == "a bad view" else 2
    for run in runs:
        assert run["error"] is None and run["steps"] == 2
        assert run["source_errors"] == [missing, missing], "summed over the processes"
        assert run["view_share"] == [1 - missing / 4] * 2
        assert run["leak/phrases"] == [0.5, 0.5] and run["leak/quotes"] == [0.0, 0.0], "of the second process alone"
    assert runs[0]["views"] == [1, 1] and sum(runs[1]["views"]) == 2 - missing
    assert runs[0]["weights"] == runs[1]["weights"]
