# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Each warning of `SignalMonitor` comes when its sign is there, once, and not otherwise."""

import logging

import pytest
from accelerate import PartialState
from datasets import Dataset

from conftest import length_reward
from trl_opsd import View
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.privileged import rollouts_of


LENGTH = 12
PREFIX = "self_distillation/"


def line(start, end):
    return [start + (end - start) * i / (LENGTH - 1) for i in range(LENGTH)]


def logs(**changes):
    """A healthy run: the divergence falls, little is clipped, repeated or cut off."""
    columns = {
        f"{PREFIX}view_share": [0.5] * LENGTH,
        f"{PREFIX}divergence": line(1.0, 0.3),
        f"{PREFIX}loss": line(1.0, 0.3),
        f"{PREFIX}clipped_share": [0.1] * LENGTH,
        f"{PREFIX}repetition": [0.05] * LENGTH,
        "completions/clipped_ratio": [0.2] * LENGTH,
    }
    for name, values in changes.items():
        name = "completions/clipped_ratio" if name == "truncated" else PREFIX + name
        columns[name] = values
    return [{name: values[i] for name, values in columns.items() if values is not None} for i in range(LENGTH)]


@pytest.fixture
def observe(caplog):
    PartialState()  # accelerate's loggers want it

    def run(run_logs, **how):
        """The step and the kind of each warning, which are also what is logged."""
        monitor, given = SignalMonitor(**how), []
        for step, log in enumerate(run_logs, start=1):
            said = set(monitor.said)
            told = monitor.observe(log, step)
            assert told.keys() == monitor.said - said
            assert all(text.startswith(f"Step {step}: ") for text in told.values())
            given += [(step, kind, text) for kind, text in told.items()]
        assert warnings(caplog) == [text for *_, text in given]
        return given

    return run


def warnings(caplog):
    records = [r for r in caplog.records if r.name.startswith("trl_opsd") and r.levelno == logging.WARNING]
    return [record.message.removeprefix("[RANK 0] ") for record in records]


SIGNS = {
    "no_views": ({"view_share": [0.0] * LENGTH, "divergence": None, "loss": None}, 3, "no rollout had a privileged"),
    "no_views_later": (
        {"view_share": [0.5] * 4 + [0.0] * 8, "divergence": None, "loss": None},
        7,
        "no rollout had a privileged",
    ),
    "zero_divergence": ({"divergence": [0.0] * LENGTH}, 3, "distributions are the same"),
    "zero_divergence_rounding": ({"divergence": [-9e-7, 9e-7] * (LENGTH // 2)}, 3, "distributions are the same"),
    "zero_divergence_later": ({"divergence": [0.5] * 6 + [1e-9] * 6}, 9, "distributions are the same"),
    "all_clipped": ({"clipped_share": [0.96] * LENGTH}, 3, "clipped_share` above 0.95"),
    "inverted_clip": ({"loss": [-0.1] * LENGTH, "divergence": line(0.3, 1.0)}, 8, "inverted the objective"),
    "inverted_clip_falling": ({"divergence": line(0.3, 1.0)}, 8, "the clipped loss went from 0.905 to 0.65"),
    "collapse_repetition": ({"repetition": line(0.0, 0.9)}, 9, "repetition rose from 0.12 to 0.53"),
    "collapse_truncation": ({"truncated": line(0.7, 1.2)}, 9, "truncated completions rose from 0.77 to 1.00"),
}


@pytest.mark.parametrize("kind", SIGNS)
def test_a_sign_is_told_once(observe, kind):
    changes, first_step, part = SIGNS[kind]
    ((step, found, text),) = observe(logs(**changes))
    assert kind.startswith(found) and step == first_step and part in text


QUIET = {
    "healthy": {},
    "view in one of three": {"view_share": [0.0, 0.0, 0.1] * (LENGTH // 3)},
    "divergence in one of three": {"divergence": [0.0, 0.0, 0.1] * (LENGTH // 3), "loss": [0.1] * LENGTH},
    "small divergence": {"divergence": [2e-6] * LENGTH},
    "much clipped": {"clipped_share": [0.95] * LENGTH},
    "much clipped but not always": {"clipped_share": [1.0, 1.0, 0.9] * (LENGTH // 3)},
    "negative loss with falling divergence": {"loss": [-0.1] * LENGTH},
    "loss that rises with the divergence": {"divergence": line(0.3, 1.0), "loss": line(0.2, 0.9)},
    "loss that falls with a slightly higher divergence": {"divergence": line(0.6, 0.64)},
    "loss negative now and then": {"loss": [-0.1, -0.1, 0.1] * (LENGTH // 3), "divergence": line(0.3, 1.0)},
    "slightly more repetition": {"repetition": line(0.05, 0.15)},
    "slightly more truncation": {"truncated": line(0.8, 1.0)},
    "more truncation, but far from all": {"truncated": line(0.2, 0.9)},
    "less repetition": {"repetition": line(0.9, 0.0)},
    "repetition with rising divergence": {
        "repetition": line(0.0, 0.9),
        "divergence": line(0.3, 1.0),
        "loss": line(0.3, 1.0),
    },
    "repetition with the same divergence": {"repetition": line(0.0, 0.9), "divergence": [0.5] * LENGTH},
    "values that are missing": {"divergence": [None] * LENGTH, "loss": [None] * LENGTH},
}


@pytest.mark.parametrize("changes", QUIET.values(), ids=QUIET)
def test_no_sign_no_warning(observe, changes):
    assert observe(logs(**changes)) == []


@pytest.mark.parametrize("kind", SIGNS)
def test_too_early_to_tell(observe, kind):
    changes, first_step, _ = SIGNS[kind]
    assert observe(logs(**changes)[: first_step - 1]) == []


def test_several_signs_are_all_told(observe):
    both = logs(clipped_share=[1.0] * LENGTH, repetition=line(0.0, 0.9), truncated=line(0.7, 1.2))
    (clipped, collapse) = observe(both)
    assert clipped[:2] == (3, "all_clipped") and collapse[:2] == (9, "collapse")
    assert "repetition rose" in collapse[2] and "truncated completions rose" in collapse[2]


def test_reversed_entries_are_told_where_the_one_clip_is_the_signed_one(observe, caplog):
    ((step, kind, text),) = observe(logs(clipped_share=[0.2] * LENGTH), clip_reverses_signs=True)
    assert (step, kind) == (3, "reversed_entries") and "is 0.80 (1 - `self_distillation/clipped_share`)" in text
    assert "its sign is reversed" in text and "`distillation_entry_clip: null`" in text
    caplog.clear()
    assert observe(logs(clipped_share=[0.2] * LENGTH)) == []
    for shares in ([0.1] * LENGTH, [0.2, 0.2, 0.05] * (LENGTH // 3), [0.2, 0.2] + [None] * 10):
        assert observe(logs(clipped_share=shares), clip_reverses_signs=True) == []


def test_logs_without_a_generation_do_not_count(observe):
    """Summaries, and logs between two generations, hold none of the metrics."""
    silent = [log for healthy in logs(divergence=[0.0] * 12)[:2] for log in (healthy, {"loss": 1.0}, {"train_loss": 1})]
    assert observe(silent) == []


def test_a_log_costs_the_same_in_a_long_run():
    """Four thousand logs leave as many values behind as eight, and a sign that comes then is still told."""
    PartialState()
    monitor, (log, *_) = SignalMonitor(), logs()
    sizes = []
    for count in (8, 4000):
        monitor.recall([log] * count)
        assert all(window.count == count for window in monitor.windows.values())
        sizes.append({name: len(window.first) + len(window.last) for name, window in monitor.windows.items()})
    assert sizes[0] == sizes[1] and set(sizes[0].values()) == {8}
    loop = {f"{PREFIX}divergence": 0.1, f"{PREFIX}repetition": 0.9}
    told = [text for step in range(4001, 4009) for text in monitor.observe({**log, **loop}, step).values()]
    assert len(told) == 1 and "repetition rose from 0.05 to 0.47" in told[0] and told[0].startswith("Step 4002")


def test_what_to_do_is_in_every_text(observe, caplog):
    ways_out = {
        "no_views": "`privileged_column`",
        "zero_divergence": "`log_completions=True`",
        "all_clipped": "`distillation_token_clip`",
        "inverted_clip": "`distillation_entry_clip_mode='non_negative'`",
        "collapse_repetition": "`teacher_model_kind='base'`",
    }
    for kind, way_out in ways_out.items():
        caplog.clear()
        ((*_, text),) = observe(logs(**SIGNS[kind][0]))
        assert way_out in text


# Real runs


def run_for(trainer, caplog):
    with caplog.at_level(logging.WARNING, logger="trl_opsd"):
        trainer.train()
    return warnings(caplog)


def test_a_run_without_views(make_trainer, rows, caplog):
    dataset = Dataset.from_list([row | {"privileged_context": None} for row in rows])
    trainer = make_trainer(dataset=dataset, max_steps=5)
    (text,) = run_for(trainer, caplog)
    assert text.startswith("Step 3: no rollout had a privileged context")
    assert trainer.monitor.said == {"no_views"}
    for log in trainer.state.log_history:
        assert [name for name, value in log.items() if value is None] == [], "trackers can't take None"


def test_a_run_with_identical_contexts(make_trainer, caplog):
    trainer = make_trainer(
        max_steps=5, teacher_model_kind="live", privileged=lambda groups: [[View()] for _ in rollouts_of(groups)]
    )
    (text,) = run_for(trainer, caplog)
    assert text.startswith("Step 3: the teacher's and the student's distributions are the same")
    assert trainer.monitor.said == {"zero_divergence"}


def test_a_run_with_a_clip_that_takes_everything(make_trainer, caplog):
    (text,) = run_for(make_trainer(max_steps=4, learning_rate=1e-6, distillation_token_clip=1e-9), caplog)
    assert text.startswith("Step 3: a clip takes away")


SIGNED = {"distillation_entry_clip": 1e-3}


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (SIGNED, {"reversed_entries"}),
        (SIGNED | {"distillation_entry_clip_mode": "non_negative"}, set()),
        (SIGNED | {"distillation_alpha": 1.0}, set()),  # whose gradient is another one
        (SIGNED | {"distillation_token_clip": 100.0}, set()),  # its tokens count as clipped too
        ({"distillation_token_clip": 0.5}, set()),
    ],
)
def test_a_run_with_an_entry_clip(make_trainer, caplog, options, kinds):
    trainer = make_trainer(max_steps=4, learning_rate=1e-6, **options)
    run_for(trainer, caplog)
    assert trainer.monitor.said == kinds
    shares = [log[f"{PREFIX}clipped_share"] for log in trainer.state.log_history[:-1]]
    assert min(shares) > 0.1, shares


def test_a_sound_run(make_trainer, rows, caplog):
    """Evaluation logs do not count: they have a window of their own."""
    bare = Dataset.from_list([row | {"privileged_context": None} for row in rows[:4]])
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = make_trainer(max_steps=4, eval_dataset=bare, **options)
    assert run_for(trainer, caplog) == []
    assert trainer.monitor.windows[f"{PREFIX}view_share"].count == 4
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log[f"eval_{PREFIX}view_share"] for log in evaluations] == [0.0] * 4


def test_a_run_without_distillation_is_not_watched(make_trainer, caplog):
    trainer = make_trainer(max_steps=4, distillation_weight=0.0, reward_funcs=length_reward)
    assert run_for(trainer, caplog) == [] and not hasattr(trainer, "monitor")
