# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Kinds of teacher as classes: what each declares, and where a kind is named."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

import trl_opsd
from trl_opsd import OPSDConfig
from trl_opsd.config.validation import CHOICES, DEPENDENT
from trl_opsd.teacher import TEACHER_KINDS, Teacher
from trl_opsd.teacher.kinds import dependent_options
from trl_opsd.teacher.teacher import TeacherUpdateCallback


PACKAGE = Path(trl_opsd.__file__).parent


def config_of(kind):
    return SimpleNamespace(
        method="some_method", teacher_model_kind=kind, teacher_sync_steps=1, teacher_update_rate=0.05,
        teacher_model_name_or_path="some/model", teacher_model_init_kwargs=None, eval_teacher_prompts=0,
        teacher_adapters={"privileged": "some/adapter"}, teacher_offload=False,
    )  # fmt: skip


def test_the_kinds_are_the_choices():
    assert (
        CHOICES["teacher_model_kind"]
        == tuple(TEACHER_KINDS)
        == ("base", "live", "ema", "snapshot", "checkpoint", "adapters", "server")
    )
    assert all(kind.description and kind.__doc__ != Teacher.__doc__ for kind in TEACHER_KINDS.values())
    assert len({kind.description for kind in TEACHER_KINDS.values()}) == len(TEACHER_KINDS)


def test_options_of_the_kinds():
    assert dependent_options() == [
        ("teacher_offload", False, ("base", "ema", "snapshot", "checkpoint")),
        ("teacher_update_rate", 0.05, ("ema",)),
        ("teacher_sync_steps", 1, ("ema", "snapshot")),
        ("teacher_model_name_or_path", None, ("checkpoint",)),
        ("teacher_model_init_kwargs", None, ("checkpoint",)),
        ("teacher_adapters", None, ("adapters",)),
        ("teacher_model_server_url", None, ("server",)),
        ("teacher_server_options", None, ("server",)),
    ]
    assert {option: kinds for option, _, owner, kinds in DEPENDENT if owner == "teacher_model_kind"} == {
        option: kinds for option, _, kinds in dependent_options()
    }
    defaults = {field.name: field.default for field in fields(OPSDConfig)}
    assert all(defaults[option] == default for option, default, _ in dependent_options())


def test_a_kind_is_named_in_few_files():
    """A new kind touches the teacher's folder, its option's docs and the memory that its copy takes; methods choose one
    for themselves."""
    naming = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")
        if re.search(r"""["'`](snapshot|ema)["'`]""", path.read_text())
    }  # fmt: skip
    elsewhere = {path for path in naming if not path.startswith(("teacher/", "methods/papers/"))}
    assert elsewhere <= {"config/opsd_config.py", "methods/base.py", "memory/formulas.py"}


def test_a_new_kind_is_one_class(make_trainer, monkeypatch):
    """A class in the table is a choice of the config, reads its options and trains."""

    class Second(TEACHER_KINDS["ema"]):
        name = "second"
        rate = 0.5

    monkeypatch.setitem(TEACHER_KINDS, "second", Second)
    monkeypatch.setitem(CHOICES, "teacher_model_kind", tuple(TEACHER_KINDS))
    (option,) = (item for item in fields(OPSDConfig) if item.name == "teacher_model_kind")
    monkeypatch.setattr(option, "metadata", {"choices": list(TEACHER_KINDS)})
    trainer = make_trainer(teacher_model_kind="second", max_steps=3)
    trainer.train()
    assert type(trainer.teacher) is Second and trainer.teacher.num_updates == 3


UPDATES = {"base": [0, 0], "live": [None, None], "ema": [1, 2], "snapshot": [0, 1]}


@pytest.mark.parametrize("kind", UPDATES)
def test_number_of_updates(make_trainer, kind):
    """It changes with the weights and only then; outputs of a live teacher are never kept."""
    options = {"teacher_sync_steps": 2} if kind == "snapshot" else {}
    teacher = make_trainer(teacher_model_kind=kind, **options).teacher
    assert teacher.num_updates == (None if kind == "live" else 0)
    numbers = []
    for step in (1, 2):
        teacher.update(step)
        numbers.append(teacher.num_updates)
    assert numbers == UPDATES[kind]


@pytest.mark.parametrize("may_update", [True, False])
def test_the_method_may_hold_an_update_back(make_trainer, may_update):
    trainer = make_trainer(teacher_model_kind="ema")
    TeacherUpdateCallback(trainer.teacher, lambda: may_update).on_step_end(trainer.args, trainer.state, trainer.control)
    assert trainer.teacher.num_updates == int(may_update)


@pytest.mark.parametrize("kind", ["base", "live", "ema", "checkpoint"])
def test_only_a_snapshot_is_renewed_by_a_method(kind):
    with pytest.raises(ValueError, match="says when a snapshot is renewed"):
        TEACHER_KINDS[kind].check(config_of(kind), synced_by_method=True)


def test_a_snapshot_of_each_step_is_the_live_teacher_unless_a_method_renews_it():
    config = config_of("snapshot")
    TEACHER_KINDS["snapshot"].check(config, synced_by_method=True)
    with pytest.raises(ValueError, match="is the live teacher"):
        TEACHER_KINDS["snapshot"].check(config, synced_by_method=False)
