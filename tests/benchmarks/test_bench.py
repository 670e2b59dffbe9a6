# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The benchmarks run and write what they promise, on sizes that measure nothing: no time is looked at."""

import csv
import platform
import sys
from pathlib import Path

import pytest

import processes
import tiny
from benchmarks import measure, report, scaling
from method_cases import WITHOUT_TURNS


ROOT = Path(__file__).parents[2]


def run(*command: object) -> str:
    """Output of a Python command in the repository's root."""
    done = processes.run([sys.executable, *map(str, command)], cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def bench(name: str, folder: Path, *options: object, made: str | None = None) -> tuple[list[dict[str, str]], str]:
    """Rows of the CSV file and the page of one benchmark, whose files are called `made`."""
    made = made or name
    output = folder / "docs" / "benchmarks"
    run("-m", "benchmarks", name, "--quick", "--repeats", 2, "--output", output, *options)
    assert (output / f"{made}.png").stat().st_size > 10_000
    page = (folder / "docs" / "performance.md").read_text()
    assert f"<!-- bench_{made} -->" in page and f"<!-- /bench_{made} -->" in page and "<!-- machine -->" in page
    with (output / f"{made}.csv").open() as file:
        return list(csv.DictReader(file)), page


@pytest.fixture
def model(tmp_path, tokenizer) -> Path:
    tiny.model(tokenizer, max_position_embeddings=2048).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.engines
def test_kernel(tmp_path):
    rows, page = bench("kernel", tmp_path)
    timed = [row for row in rows if row["part"] == "losses"]
    assert {row["contender"] for row in timed} >= {"floor", "ours", "full logits", "GKD-style", "TRL chunked"}
    assert {row["kind"] for row in timed} == {"forward_kl", "reverse_kl", "jsd"}
    assert all(0 <= float(row["difference"]) < 1e-4 for row in timed if row["contender"] != "floor")
    assert all(float(row["over_floor"]) > 0 for row in rows)
    assert all(float(row["peak_mb"]) >= 0 for row in rows if row["peak_mb"])
    assert {row["part"] for row in rows} == {"losses", "tokens", "vocabulary", "views"}
    assert "ours over the matrix products" in page and "<= 1.25" in page


@pytest.mark.engines
def test_a_loss_that_differs_is_refused(tmp_path):
    """In another process, as the benchmark forks and autograd has run in this one."""
    code = """
import sys
from benchmarks import __main__, kernel
kernel.LOSSES["wrong"] = lambda x, kind: 1.001 * kernel.LOSSES["full logits"](x, kind)
kernel.cases = lambda args: [kernel.Case("losses", 8, 4, 30, names=("ours", "full logits", "wrong"))]
__main__.main(["kernel", "--quick", "--repeats", "1", "--output", sys.argv[1]])
"""
    output = run("-c", code, tmp_path / "docs" / "benchmarks")
    assert "losses,default,8,4,30,1,forward_kl,wrong,refused" in (tmp_path / "docs/benchmarks/kernel.csv").read_text()
    assert "wrong is not reported: it differs from the float64 reference by 1.0e-03" in output
    assert "Refused, as they do not: wrong." in output


@pytest.mark.engines
def test_step(tmp_path, model):
    rows, page = bench("step", tmp_path, "--model", model)
    own = [row for row in rows if row["scenario"] == "own"]
    assert {row["contender"] for row in own} >= {"GRPO", "SDFT (TRL)", "SDPO (TRL)", "pure, live", "2 views"}
    assert all(float(row["over_grpo"]) > 0 for row in own if not row["contender"].endswith(", products"))
    products = {
        row["contender"] for row in own if row["contender"].endswith(", products") and float(row["seconds"]) > 0
    }
    assert products == {f"{name}, products" for name in ("SDFT (TRL)", "pure, live")}
    assert "of it matrix products" in page
    # All students and all teachers of one view read the same tokens
    assert len({row["student_tokens"] for row in own if row["contender"] != "bare teacher"}) == 1
    teachers = {row["contender"]: int(row["teacher_tokens"]) for row in own}
    assert teachers["SDFT (TRL)"] == teachers["SDPO (TRL)"] == teachers["pure, live"] == teachers["bare teacher"] > 0
    assert "t/g = " in page and "1 + 1.1 t/g" in page


@pytest.mark.engines
def test_methods_beside_their_plain_losses(tmp_path, model):
    rows, page = bench("step", tmp_path, "--methods", "--model", model, made="step_methods")
    assert {f"method {name}" for name in WITHOUT_TURNS} < {row["contender"] for row in rows}
    assert "| sampled token, snapshot, reward |" in page and "| top-k 100, base, 2 views |" in page


@pytest.mark.engines
def test_scaling(tmp_path, model):
    rows, page = bench("scaling", tmp_path, "--model", model)
    parts = {row["part"] for row in rows}
    assert parts >= {"completion", "context", "shared context", "views", "loss, tokens", "loss, vocabulary"}
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert {row["detail"] for row in rows if row["part"] == "processes, pure, live"} == {"rank 0 of 2", "rank 1 of 2"}
    assert "exponent of time over" in page


def test_blocks_replace_each_other_and_nothing_else(tmp_path):
    output = tmp_path / "benchmarks"
    page = tmp_path / "performance.md"
    page.write_text("Before.\n<!-- a -->\nold\n<!-- /a -->\nAfter.\n")
    report.put(output, {"a": "new \\1", "b": "more"})
    report.put(output, {"a": "newer"})
    text = "Before.\n<!-- a -->\nnewer\n<!-- /a -->\nAfter.\n\n<!-- b -->\nmore\n<!-- /b -->\n"
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("figure", "at_least", "verdict"),
    [(1.5, True, "met"), (1.5, False, "met"), (1.6, False, "**missed**"), (None, True, "not measured")],
)
def test_targets(figure, at_least, verdict):
    assert report.Target("ratio", 1.5, figure, at_least).row()[-1] == verdict


def test_exponent():
    rows = [{"part": "p", "x": x, "seconds": 3.0 * x**2} for x in (4, 1, 2)]
    assert scaling.exponent(scaling.curve(report.Records(rows), "p", "seconds")) == pytest.approx(2.0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets an option of glibc")
@pytest.mark.parametrize(("mapped", "least", "most"), [(True, 0, 8e6), (False, 60e6, 80e6)])
def test_mapped_arrays_leave_no_holes(mapped, least, most):
    """Arrays of 1 MiB with ones of 64 KiB between them, freed. Without the option all of their 67 MB stays resident."""
    code = f"""
import torch
from benchmarks import measure
if {mapped}:
    measure.map_arrays()
torch.ones(2**22)  # freed at once, upon which glibc raises its threshold to 16 MiB
filler = [torch.ones(2**14) for _ in range(256)]  # in the holes that the imports left
before = measure._resident("VmRSS")
arrays = [(torch.ones(2**18), torch.ones(2**14)) for _ in range(64)]
small = [kept for _, kept in arrays]
del arrays
print(measure._resident("VmRSS") - before)
"""
    left = int(run("-c", code))
    assert least <= left <= most


def test_contenders_take_turns_and_the_slow_sit_out():
    seconds, asked = {"a": 1.0, "b": 2.0, "slow": 9.0}, []

    class Fake:
        def run(self, name):
            asked.append(name)
            return measure.Run(seconds[name])

    results = measure.interleave(dict.fromkeys(seconds, Fake()), 3, "a", slow=2.5)
    assert asked == ["a", "b", "slow", "b", "a", "a", "b"]
    assert [run and run.seconds for run in results["slow"]] == [9.0, None, None]
    measure.interleave(dict.fromkeys(seconds, Fake()), 3, "a", slow=2.5, always="slow")
    assert asked[7:] == ["a", "b", "slow", "b", "slow", "a", "slow", "a", "b"]
