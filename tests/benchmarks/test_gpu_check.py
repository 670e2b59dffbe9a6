# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The GPU check: it runs on a CPU in tiny sizes, finds what is wrong, outlives what fails, and reads its results rightly.

No time is looked at.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from benchmarks import report as tables
from benchmarks.gpu import counted, report, run, values
from benchmarks.gpu.contenders import FLOAT32, FULL, FULL_COMPILED, OURS, TRITON, TRL, UNCOMPILED, compilation
from benchmarks.gpu.part import Part
from benchmarks.gpu.targets import Results, targets
from benchmarks.losses import make_inputs
from trl_opsd.kernels import compiled, tile


ROOT = Path(__file__).parents[2]
SIZE, LARGE = [4096, 1024, 151936], [4096, 4096, 151936]
CARD = {"what": "machine", "card": "NVIDIA H200", "driver": "580.1", "date": "2026-11-28 10:00 UTC"}
CEILINGS = {"what": "ceilings", "copy_tb_s": 4.31, "bf16_tflop_s": 780.0}
VERSIONS = {"what": "versions", "torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0", "trl": "1.16.0"}


@pytest.mark.engines
def test_all_parts_in_tiny_sizes(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu", "--tiny", "--output", str(tmp_path)]
    done = processes.run(command, cwd=ROOT, timeout=570)
    assert done.returncode == 0, done.stderr[-3000:]
    results = Results.read(tmp_path)
    assert results.parts.keys() == run.PARTS.keys()
    assert not [row for name in run.PARTS for row in results.failed(name)]
    assert {row["cases"] for row in results.good("values") if "cases" in row} == {"57 of 57"}
    losses = {row["name"]: row for row in results.good("kernel") if "name" in row}
    assert losses.keys() >= {OURS, UNCOMPILED, FLOAT32, TRL, FULL}
    assert losses[FLOAT32]["hidden_gradient_error"] < 0.5 * losses[OURS]["hidden_gradient_error"] < 0.02
    assert all(row["over_floor"] > 0 and row["value_error"] < 1e-3 for row in losses.values())
    steps = {(row["scenario"], row["name"]) for row in results.good("step")}
    assert steps >= {("own", "pure, ema"), ("own", "pure, JSD"), ("own", "bare teacher"), ("shared", "pure, live")}
    resumed = [row for row in results.good("train") if "resumed_differs_by" in row]
    assert [row["resumed_differs_by"] for row in resumed] == [0.0, 0.0] and all(row["moved"] > 0 for row in resumed)
    wrapped = [row["wrapped"] for row in results.good("dist")]
    assert wrapped == ["DistributedDataParallel", "FSDPQwen2ForCausalLM"]
    assert "measures nothing" in (tmp_path / "report.md").read_text()


def part_of(folder: Path, seconds: float = 600.0, tiny: bool = True) -> Part:
    return Part("values", folder, seconds, tiny)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(values, "DTYPES", (torch.float32,))
    monkeypatch.setattr(values, "VARIANTS", {"plain": {}})


def test_values_of_every_spec(tmp_path, small):
    values.run(part_of(tmp_path))
    first, *zeros = json.loads((tmp_path / "values.json").read_text())
    assert first["cases"] == f"{len(values.kernel_cases.SPECS)} of {len(values.kernel_cases.SPECS)}"
    assert max(first["loss"], first["gradients"], first["statistics"]) < 1e-5 and first["worse_than_cpu"] == 0
    assert [row["greatest_gradient"] for row in zeros] == [0.0] * 4


def test_a_wrong_loss_has_wrong_values(tmp_path, small, monkeypatch):
    inner = tile.token_loss

    def token_loss(*args):
        result = inner(*args)
        result.gradient.mul_(1.01)
        return result

    monkeypatch.setattr(tile, "token_loss", token_loss)
    values.run(part_of(tmp_path))
    first = json.loads((tmp_path / "values.json").read_text())[0]
    assert first["loss"] < 1e-5 and 0.009 < first["gradients"] < 0.011


def test_an_error_above_that_of_the_cpu_is_told(small, monkeypatch, tmp_path):
    """The same computation twice, of which the first stands for the GPU and is wrong."""
    inner, calls = values.outcome, []

    def outcome(case, spec):
        calls.append(case)
        (loss, *gradients), stats = inner(case, spec)
        return [loss * (1.001 if len(calls) % 2 else 1.0), *gradients], stats

    monkeypatch.setattr(values, "outcome", outcome)
    row = values.compare(part_of(tmp_path), False, values.SMALL, torch.float32, ("plain",))
    assert row["worse_than_cpu"] == len(values.kernel_cases.SPECS) and len(row["worse"]) == 6


def test_an_item_that_fails_costs_only_itself(tmp_path):
    part = part_of(tmp_path)

    def fails():
        raise RuntimeError("out of luck")

    part.attempt("bad", fails)
    assert json.loads((tmp_path / "values.json").read_text())[0]["error"] == "RuntimeError: out of luck"
    part.attempt("good", lambda: {"figure": 1.5})
    rows = json.loads((tmp_path / "values.json").read_text())
    assert "in fails" in rows[0]["traceback"] and rows[1] == {"what": "good", "figure": 1.5}


def test_an_item_without_time_is_not_begun(tmp_path):
    part = part_of(tmp_path, seconds=10.0, tiny=False)
    part.device = "cpu"
    part.attempt("long", lambda: pytest.fail("it was begun"), need=11.0)
    assert part.rows == [{"what": "long", "error": "no time left for it"}]


def test_a_deadline_ends_a_part(tmp_path, capsys):
    (tmp_path / "values.json").write_text("[]")
    run.run_part("values", tmp_path, 2.5, tiny=True)
    assert "values: stopped at its deadline." in capsys.readouterr().out
    assert not (tmp_path / "values.json").exists(), "those of an earlier run would be taken for its own"


def test_compilation_that_fails_is_an_error(monkeypatch):
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    with compilation(True), pytest.raises(UserWarning, match="failed on `distilled_tile`"):
        assert compiled.wanted(torch.device("cpu"))
        warnings.warn("`torch.compile` failed on `distilled_tile` of the loss", stacklevel=1)
    assert os.environ.get(compiled.SWITCH) in (None, "")


def test_inputs_on_a_device_are_those_of_before():
    one, other = make_inputs(3, 4, 5), make_inputs(3, 4, 5, device="cpu")
    assert torch.equal(one.hidden, other.hidden) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("name", "kind", "h", "card", "expected"),
    [
        (OURS, "forward_kl", 1024, "H100", 1.53),
        (OURS, "forward_kl", 4096, "H200", 1.16),
        (TRITON, "forward_kl", 1024, "H100", 1.42),
        (TRL, "forward_kl", 1024, "H100", 2.30),
        (TRL, "jsd", 4096, "H200", 2.21),
        (FULL, "forward_kl", 1024, "H100", 4.59),
        (FULL, "forward_kl", 1024, "H200", 3.50),
    ],
)
def test_counted(name, kind, h, card, expected):
    """Reckoned apart: bytes over bandwidth, and operations over 700 TFLOP/s."""
    found = counted.COUNTS[name, kind].over_floor(h, 151936, counted.BANDWIDTH[card])
    assert found == pytest.approx(expected, abs=0.006)


def loss(name: str, seconds: float, kind: str = "forward_kl", size: list[int] = SIZE, **other: Any) -> dict[str, Any]:
    row = {"what": f"{name}, {kind}", "name": name, "kind": kind, "size": size, "seconds": seconds}
    return {**row, "over_floor": seconds / 0.01, "peak_mb": 1000.0, "value_error": 1e-3, **other}


def results(*losses: dict[str, Any], **parts: list[dict[str, Any]]) -> Results:
    return Results({"env": [VERSIONS, CARD, CEILINGS], "kernel": list(losses), **parts})


def verdicts(found: Results) -> dict[str, list[str]]:
    rows = [target.row() for target in targets(found)]
    return {row[0]: row[2:] for row in rows if row[3] != "not measured"}


def test_targets_of_the_loss():
    found = results(
        loss(OURS, 0.015),
        loss(OURS, 0.018, "jsd"),
        loss(OURS, 0.0125, size=LARGE),
        loss(TRL, 0.03),
        loss(TRL, 0.015, "jsd"),
        loss(FULL_COMPILED, 0.016),
        loss(FULL, 0.05, peak_mb=9000.0),
    )
    assert verdicts(found) == {
        "over the floor, forward KL at 4096, 1024, 151936": ["1.5", "met"],
        "over the floor, JS at 4096, 1024, 151936": ["1.8", "**missed**"],
        "over the floor, forward KL at 4096, 4096, 151936": ["1.25", "met"],
        "time over TRL chunked at 4096, 1024, 151936, the greatest (forward KL, JS)": ["1.2", "**missed**"],
        "time over full logits, compiled at 4096, 1024, 151936, the greatest (forward KL)": ["0.938", "met"],
        "peak memory over full logits at 4096, 1024, 151936, the greatest (forward KL)": ["0.111", "met"],
    }


def test_a_loss_that_computes_something_else_is_no_rival():
    """Nor is one that failed, or whose value is no number."""
    for spoilt in ({"value_error": 0.3}, {"value_error": float("nan")}, {"error": "out of memory"}):
        assert verdicts(results(loss(OURS, 0.02), loss(TRL, 0.01, **spoilt))) == {
            "over the floor, forward KL at 4096, 1024, 151936": ["2", "**missed**"]
        }


def test_targets_of_the_step_and_of_exactness():
    names = {"GRPO": 1.0, "bare teacher": 0.2, "pure, live": 1.1, "pure, base": 1.3}
    step = [{"what": name, "scenario": "own", "name": name, "seconds": seconds} for name, seconds in names.items()]
    parts = {
        "step": step,
        "values": [{"what": "a", "worse_than_cpu": 0}, {"what": "b", "worse_than_cpu": 2}],
        "train": [{"what": "c", "resumed_differs_by": 0.0}],
    }
    assert verdicts(results(**parts)) == {
        "step, pure, live, over GRPO and 1.1 bare teacher forwards": ["0.902", "met"],
        "step, pure, base, over GRPO and 1.1 bare teacher forwards": ["1.07", "**missed**"],
        "values: cases with more than three times the error on the CPU": ["2", "**missed**"],
        "greatest difference of a weight after resuming": ["0", "met"],
    }


def test_the_page_names_what_failed_and_what_did_not_run():
    page = report.page(results(loss(OURS, 0.015), loss(TRL, 0.02, error="RuntimeError: no luck")))
    assert "NVIDIA H200, driver 580.1; torch 2.11.0, triton 3.6.0" in page and "A copy moves 4.31 TB/s" in page
    assert "**Failed**: TRL chunked, forward_kl: RuntimeError: no luck" in page
    assert "## dist\n\nDid not run." in page


def test_publish(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PAGES", tmp_path / "benchmarks")
    monkeypatch.setattr(report, "PUBLISHED", tmp_path / "benchmarks" / "gpu")
    (tmp_path / "benchmarks").mkdir()
    folder = tmp_path / "found"
    folder.mkdir()
    with pytest.raises(SystemExit, match="holds no results of a GPU"):
        report.publish(folder)
    for name, rows in results(loss(OURS, 0.0151)).parts.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    report.publish(folder)
    assert sorted(path.name for path in (tmp_path / "benchmarks" / "gpu").iterdir()) == [
        "nvidia-h200.json", "nvidia-h200.md",
    ]  # fmt: skip
    page = (tmp_path / "performance.md").read_text()
    assert "| ours | forward KL | 14 | 1.53 | 1.23 | 1.37 | 1.16 | 1.51 | - |" in page and "### NVIDIA H200" in page
    assert report.NOT_YET not in page


def test_the_docs_show_what_is_published(tmp_path):
    text = (ROOT / "docs" / "performance.md").read_text()
    shown = text.split("<!-- bench_gpu -->\n")[1].split("\n<!-- /bench_gpu -->")[0]
    assert shown == report.block(report.published())
    tables.put(tmp_path / "benchmarks", {"bench_gpu": report.block([])})
    assert report.NOT_YET in (tmp_path / "performance.md").read_text()
