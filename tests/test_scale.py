# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The calculator of docs/scaling.md: its formulas against measurements here, its page against its output."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from launch import launch


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from sizing import memory, plans, speed, tables  # noqa: E402
from sizing.setup import Setup  # noqa: E402
from sizing.shapes import SHAPES, find, from_config  # noqa: E402
from trl_opsd.batches import teacher_batch  # noqa: E402
from trl_opsd.kernels import chunks  # noqa: E402


PAGE = (ROOT / "docs" / "scaling.md").read_text()
HARDWARE = speed.Hardware()


def scale(*options: object, code: int = 0) -> str:
    command = [sys.executable, ROOT / "scripts" / "scale.py", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout if code == 0 else done.stderr


def part(setup: Setup, name: str) -> float:
    return sum(one.bytes for one in memory.parts(setup) if one.name == name)


# Against measurements


@pytest.mark.slow
def test_formulas_hold_on_small_models(tmp_path):
    """`--check` ends with an error where a formula is off by more than its tolerance."""
    scale("--check", "--write-docs", "--output", tmp_path / "benchmarks")
    pattern = r"^\| (.*) \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([-+\d.]+) % \| ([\d.]+) % \|$"
    rows = re.findall(pattern, (tmp_path / "scaling.md").read_text(), re.M)
    assert sum(int(count) for _, count, *_ in rows) >= 90 and len(rows) >= 17
    exact = {kind for kind, *_, allowed in rows if allowed == "0"}
    assert exact >= {"parameters", "weights", "AdamW", "`base` teacher", "KV cache", "kept for backward"}
    # The page shows the same comparisons, with the same bytes but for those of a whole process
    shown = re.findall(pattern, PAGE, re.M)
    assert [row for row in rows if row[0] in exact] == [row for row in shown if row[0] in exact]
    if sys.platform == "linux":
        assert [row[:3] for row in rows] == [row[:3] for row in shown]


@pytest.mark.slow
def test_a_wrong_formula_is_noticed():
    code = """
from sizing import checks, memory
checks.SMALL = {"qwen3": checks.SMALL["qwen3"]}
right = memory.saved_per_token
memory.saved_per_token = lambda setup: right(setup) + 1
assert not all(check.holds for check in checks.activations())
room, most, tile = memory.CHUNKS["cpu"]
memory.CHUNKS["cpu"] = (room, 2 * most, tile)
assert not all(check.holds for check in checks.kernel())
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True, capture_output=True, timeout=120)


@pytest.mark.slow
def test_bytes_of_a_rank(tmp_path, tokenizer):
    """Two ranks hold what the formulas give them of weights, optimizer and teacher."""
    pytest.importorskip("deepspeed")
    options = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    engines = ["zero2", "zero3", "fsdp2"]
    worker = ROOT / "tests" / "scale_worker.py"
    launch(worker, str(tmp_path), json.dumps(options), json.dumps(engines), processes=2, seconds=120)
    shape = from_config(tiny.model(tokenizer, **options).config.to_dict(), "tiny")
    for rank in range(2):
        held = json.loads((tmp_path / f"held-{rank}.json").read_text())
        for engine in engines:
            setup = Setup(shape, engine, gpus_per_node=2, bf16=False, vllm="none")
            computed = {name: part(setup, name) for name in ("weights", "optimizer", "teacher")}
            # FSDP2 cuts along rows, of which there may be an odd number
            assert held[engine] == pytest.approx(computed, rel=1e-3), (engine, rank)


# Against the code


def test_sizes_that_the_package_has_too():
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        room, most, tile = memory.CHUNKS[name]
        assert (room, most) == chunks.budget(device)
        assert next(chunks.tiles(10**9, 1, device)).stop == tile
    assert memory.VIEWS_OF_A_FORWARD == teacher_batch._MOST_VIEWS


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(("rows", "completion"), [(1, 7), (4, 2048), (3, 1000)])
def test_chunks_are_cut_as_the_kernel_cuts_them(rows, completion, views):
    for device in ("cpu", "cuda"):
        setup = Setup(SHAPES["qwen3-8b"], rows=rows, completion=completion, views=views, device=device)
        cut = chunks.chunks(rows * completion, 151_936, views + 1, torch.bfloat16, torch.device(device), None)
        assert memory.chunk(setup) == cut[0].stop


def test_models_have_the_sizes_of_their_names():
    sizes = {name: shape.parameters / 1e9 for name, shape in SHAPES.items()}
    assert sizes == pytest.approx({"qwen3-1.7b": 1.7, "qwen3-8b": 8.2, "qwen3-32b": 32.8}, rel=0.02)


# What follows from what


def test_states_of_engines():
    """Bytes a parameter: of weights, gradients, optimizer and a `base` and an `ema` teacher, by hand."""
    shape, ranks = SHAPES["qwen3-8b"], 8
    by_hand = {
        ("ddp", "float32"): (4, 4, 8, 4, 4),
        ("ddp", "bfloat16"): (2, 2, 4, 2, 4),
        ("zero1", "float32"): (2, 2, 12 / ranks, 2, 4),
        ("zero2", "float32"): (2, 2 / ranks, 12 / ranks, 2, 4),
        ("zero3", "float32"): (2 / ranks, 2 / ranks, 12 / ranks, 2 / ranks, 4 / ranks),
        ("fsdp2", "bfloat16"): (4 / ranks, 4 / ranks, 8 / ranks, 4 / ranks, 4 / ranks),
    }
    for (engine, dtype), expected in by_hand.items():
        setup = Setup(shape, engine, dtype=dtype)
        found = [part(setup, name) for name in ("weights", "gradients", "optimizer", "teacher")]
        found.append(part(replace(setup, teacher="ema"), "teacher"))
        assert [size / shape.parameters for size in found] == pytest.approx(expected), engine


def test_a_new_adapter_has_its_base_teacher_for_nothing():
    setup = Setup(SHAPES["qwen3-8b"], lora=64, dtype="bfloat16")
    assert part(setup, "teacher") == part(setup, "teacher's head") == 0
    assert part(replace(setup, teacher="ema"), "teacher") == 4 * SHAPES["qwen3-8b"].adapter(64) / 8
    # ZeRO-3 gathers the whole model to merge the adapter, FSDP2 one parameter at a time
    assert part(setup, "weight sync") == 2 * SHAPES["qwen3-8b"].parameters
    assert part(replace(setup, engine="fsdp2"), "weight sync") == 2 * SHAPES["qwen3-8b"].head


def test_vllm_takes_what_is_free():
    setup = Setup(SHAPES["qwen3-8b"], "zero3", sleep=True)
    assert memory.concurrency(setup) == 32 and memory.fits(setup)
    # A rollout has 2 x 36 layers x 8 heads x 128 x 2 bytes x 2,560 tokens of keys and values
    needed = 2 * setup.shape.parameters + memory.VLLM_OVERHEAD + 32 * 2 * 36 * 8 * 128 * 2 * 2560
    assert memory.vllm_bytes(setup) == pytest.approx(needed)
    crowded = replace(setup, utilization=0.3)
    assert 0 < memory.concurrency(crowded) < 32
    assert speed.generation(crowded, HARDWARE).seconds > speed.generation(setup, HARDWARE).seconds
    assert memory.concurrency(replace(setup, utilization=0.2)) == 0 and not memory.fits(replace(setup, utilization=0.2))
    # Asleep it leaves the GPU to training
    awake = replace(setup, sleep=False)
    assert memory.at(awake, "backward") > memory.at(setup, "backward") + 2 * setup.shape.parameters
    assert memory.at(awake, "generate") == memory.at(setup, "generate")


def test_time_by_hand():
    """One GPU, one row: operations and bytes that can be counted on paper."""
    shape = SHAPES["qwen3-1.7b"]
    setup = Setup(
        shape, "none", gpus_per_node=1, rows=1, accumulation=1, checkpointing=False, prompt=0, teacher_prompt=0
    )
    rate, n = 989e12 * 0.4, 2048
    spans = {span.name: span for span in speed.spans(setup, HARDWARE)}
    attention = 28 * 2 * 2048 * n**2  # of 28 layers, 2,048 wide: half of 4 n n
    assert spans["teacher"].seconds == pytest.approx((2 * shape.matrices * n + attention) / rate)
    assert spans["student"].seconds == pytest.approx(3 * spans["teacher"].seconds)
    assert spans["head"].seconds == pytest.approx(8 * n * 2048 * 151_936 / rate)
    cache = 2 * 28 * 8 * 128 * 2 * n // 2  # half of it on average
    read = n * (2 * shape.parameters + cache)
    assert spans["generation"].seconds == pytest.approx(read / (3.35e12 * 0.6))
    assert spans["generation"].bound == "memory" and spans["teacher"].bound == "compute"
    again = speed.student(replace(setup, checkpointing=True), HARDWARE)
    assert again.seconds == pytest.approx(4 / 3 * spans["student"].seconds)


def test_links_bound_a_small_batch_between_nodes():
    small = Setup(SHAPES["qwen3-32b"], nodes=4, rows=1, accumulation=1, completion=64, prompt=8, tensor_parallel=4)
    assert speed.student(small, HARDWARE).bound == "links"
    # Three gathers of the weights and their gradients, each 31/32 of 2 N over eight cards of 50 GB/s
    moved = 3 * 2 * small.shape.parameters * 31 / 32
    assert speed.student(small, HARDWARE).seconds == pytest.approx(moved / (8 * 50e9 * 0.7))
    assert speed.student(replace(small, nodes=1, gpus_per_node=8), HARDWARE).seconds < moved / (8 * 50e9 * 0.7)


def test_recommendations_are_the_simplest_that_fit():
    chosen = {(model, nodes, lora): setup for model, nodes, lora, setup in plans.choices()}
    assert chosen["qwen3-32b", 1, 0] is None and chosen["qwen3-1.7b", 1, 0].engine == "ddp"
    for setup in filter(None, chosen.values()):
        assert memory.fits(setup) and memory.peak(setup)[0] <= 0.8 * setup.gpu_bytes
        order = plans.ENGINES[: plans.ENGINES.index(setup.engine)]
        simpler = [replace(setup, engine=engine) for engine in order if {engine, setup.engine} != {"zero3", "fsdp2"}]
        assert all(memory.peak(one)[0] > 0.8 * one.gpu_bytes for one in simpler)


# The page and the command


def test_the_page_shows_what_the_script_computes():
    for name, block in tables.blocks(HARDWARE).items():
        assert f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in PAGE, f"{name}: run scripts/scale.py --write-docs"


def test_figures_in_the_text_of_the_page():
    run = plans.plan("qwen3-8b", "zero3", 1, 0)
    plain, checkpointed = (tables.column(replace(run, checkpointing=value), "activations") for value in (False, True))
    assert f"are {plain / 1e9:.0f} GB instead of {checkpointed / 1e9:.0f}" in PAGE
    states = sum(one.bytes for one in memory.states(plans.plan("qwen3-32b", "zero3", 1, 0)))
    assert f"weights, gradients and optimizer alone are {states / 1e9:.1f} GB of each GPU" in PAGE


def test_the_page_names_functions_that_exist():
    named = re.findall(r"`(memory|speed|shapes|plans)\.(\w+)`", PAGE)
    modules = {"memory": memory, "speed": speed, "plans": plans, "shapes": sys.modules["sizing.shapes"]}
    assert len(named) > 15
    assert not [(module, name) for module, name in named if not hasattr(modules[module], name)]


def test_one_run(tmp_path, tokenizer):
    output = scale("--model", "qwen3-8b", "--gpus", 8, "--engine", "zero3", "--teacher", "base")
    assert output.startswith("Computed, not measured.") and "bounded by" in output
    tiny.model(tokenizer).save_pretrained(tmp_path)
    assert find(str(tmp_path)).parameters == sum(p.numel() for p in tiny.model(tokenizer).parameters())
    assert "It does **not** fit" in scale("--engine", "ddp", "--model", "qwen3-32b")


def test_the_calculator_needs_no_torch():
    code = "import scale, sys; scale.main(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--model", "nowhere"], "`--model`: nowhere is neither one of qwen3-1.7b"),
        (["--engine", "none"], "set `--gpus 1`"),
        (["--vllm", "server"], "`--server-gpus N` go together"),
        (["--vllm", "server", "--server-gpus", "8"], "leaves no GPU to train on"),
        (["--tensor-parallel", "3"], "must divide the 8 GPUs"),
        (["--utilization", "1.5"], "must lie between 0 and 1"),
    ],
)
def test_errors_name_the_option(options, names):
    assert names in scale(*options, code=2)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="the formulas cover qwen3, qwen2, llama"):
        from_config({"model_type": "gemma2"}, "it")
