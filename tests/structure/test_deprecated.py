# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Old public names work for one version, and each use names the new one."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

import trl_opsd
from method_cases import signals
from trl_opsd.methods import Method


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("methods", "Moment", "methods.StepContext"),
        ("methods", "Seen", "methods.StepSummary"),
        ("methods", "Signals", "methods.TokenSignals"),
        ("methods", "OPSDParser", "OPSDParser"),
        ("losses", "Weigh", "losses.TokenWeight"),
        ("losses", "Extra", "losses.AuxiliaryLoss"),
        ("privileged", "chance", "privileged.rollout_rng"),
    ],
)
def test_a_renamed_name(module, old, new):
    home, _, name = f"trl_opsd.{new}".rpartition(".")
    wanted = getattr(importlib.import_module(home), name)
    with pytest.warns(FutureWarning, match=rf"`trl_opsd\.{module}\.{old}` is now `trl_opsd\.{new}`") as warned:
        assert getattr(importlib.import_module(f"trl_opsd.{module}"), old) is wanted
    assert [one.filename for one in warned] == [__file__], "the warning points at the user's line"


def test_an_unknown_name_stays_an_error():
    with pytest.raises(AttributeError, match=r"module 'trl_opsd\.losses' has no attribute 'nothing'"):
        trl_opsd.losses.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from trl_opsd.methods import nothing  # noqa: F401


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("weigh", "token_weight", len),
        ("weigh_at_once", "needs_all_tokens", True),
        ("extra", "auxiliary_loss", len),
        ("hidden", "hidden_state_loss", len),
        ("follow", "update_state", len),
        ("refresh", "should_sync_teacher", len),
    ],
)
def test_a_renamed_argument_of_a_method(old, new, value):
    with pytest.warns(FutureWarning, match=f"The argument '{old}' of Method is now '{new}'") as warned:
        method = Method("T", "2601.00000", "paper", **{old: value})
    assert [one.filename for one in warned] == [__file__]
    assert method == Method("T", "2601.00000", "paper", **{new: value})
    with pytest.raises(TypeError, match=f"got '{new}' twice, also by its old name '{old}'"):
        dataclasses.replace(method, **{old: value})


def test_the_old_name_of_the_step_context():
    batch = signals("rlsd", ["privileged"])
    with pytest.warns(FutureWarning, match=r"`TokenSignals\.moment` is now `step_context`"):
        assert batch.moment is batch.step_context


def test_new_names_do_not_warn():
    """Nor does the package use an old name itself."""
    code = "import trl_opsd, trl_opsd.losses, trl_opsd.privileged; trl_opsd.Method('T', '2601.00000', 'paper')"
    subprocess.run([sys.executable, "-W", "error::FutureWarning:__main__", "-c", code], check=True)
