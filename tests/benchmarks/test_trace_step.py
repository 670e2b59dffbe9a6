# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The trace of a step: moves between files that can be counted by hand, and the real step."""

import importlib.util

from benchmarks import trace_step


def test_moves_by_hand(tmp_path, monkeypatch):
    """`outer` calls `inner` twice in a row: a move there and, but for returns, none back."""
    (tmp_path / "inner.py").write_text("def inner(): pass")
    (tmp_path / "outer.py").write_text("def outer(inner):\n    helper()\n    inner()\n    inner()\ndef helper(): pass")
    made = {}
    for name in ("inner", "outer"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        made[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made[name])
    monkeypatch.setattr(trace_step, "PACKAGE", tmp_path)
    with trace_step.Trace() as trace:
        made["outer"].outer(made["inner"].inner)
        made["outer"].helper()
    assert trace.calls == ["outer.py", "outer.py", "inner.py", "inner.py", "outer.py"]
    assert trace.moves(trace.calls) == {("inner.py", "outer.py"): 2}
    assert trace.moves(trace.stays) == {("inner.py", "outer.py"): 4}


def test_a_step_from_sampling_to_the_gradient():
    trace = trace_step.traced_step()
    assert not trace.stack and len(set(trace.calls)) > 10
    assert {file.split("/")[0] for file in trace.calls} >= {"kernels", "losses", "privileged"}
