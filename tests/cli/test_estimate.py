# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl-opsd estimate`: figures of the page, settings of recipes, ways to make a run fit, and configs of models."""

import json
import os
import re
import shlex
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import processes
from scripts import scaling_docs
from trl_opsd.cli import estimate, launch
from trl_opsd.cli import main as cli
from trl_opsd.cli.planned_run import settings as planned
from trl_opsd.memory import MODELS


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
COMMANDS = re.findall(r"^trl-opsd (estimate .*?)(?: +#.*)?$", PAGE, flags=re.M)
RECIPE = {"model_name_or_path": "Qwen/Qwen3-8B", "dataset_name": "some/data", "output_dir": "out"}


@pytest.fixture
def told(capsys):
    """Output of the command."""

    def run(*argv):
        cli.main(["estimate", *map(str, argv)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def recipe(tmp_path):
    """Path of a recipe with these options."""

    def write(**options):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE | options))
        return path

    return write


def headline(text):
    """Peak, phase and whether it fits."""
    text = " ".join(text.split())
    peak, phase, fits = re.search(r"([\d.]+) GB at the peak, in the phase `(\w+)`\. It (.*?)[.:]", text).groups()
    return [peak, phase, {"fits": "yes", "does not fit": "**no**", "fits, but barely": "barely"}[fits]]


def settings(text):
    """Value and origin of each setting."""
    lines = text.partition("\nsetting ")[2].partition("\n\n")[0].splitlines()[1:]
    return {name: tuple(rest) for name, *rest in (re.split("  +", line) for line in lines)}


# The page


def rows():
    """Cells of each row of the page's tables by model, and the command line that computes it."""
    for marker, block in re.findall(r"<!-- (memory [\w.-]+|teachers) -->\n(.*?)\n<!-- /", PAGE, flags=re.S):
        model = marker.removeprefix("memory ").replace("teachers", "qwen3-8b")
        for line in block.splitlines()[2:]:
            gpus, trained, engine, teacher, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
            argv = f"--model {model} --gpus {gpus} --accelerate_config {engine} --teacher_model_kind {teacher}"
            if trained != "all":
                argv += f" --use_peft --lora_r {trained.split()[1]} --dtype bfloat16"
            if model == "qwen3-32b":
                argv += " --vllm_tensor_parallel_size 4"
            yield argv, cells[-3:]


def test_the_command_gives_each_row_of_the_page(told):
    found = list(rows())
    assert len(found) == 60
    for argv, cells in found:
        assert headline(told(*argv.split())) == cells, argv


def normal(argv):
    """Options of a command line, without the page's default teacher."""
    return {part.strip() for part in argv.removeprefix("estimate ").split("--") if part} - {"teacher_model_kind base"}


def test_the_commands_of_the_page_run_and_give_its_figures(told):
    known = {frozenset(normal(argv)): cells for argv, cells in rows()}
    of_rows = 0
    for command in COMMANDS:
        text = told(*shlex.split(command)[1:])
        assert "Computed, not measured" in text
        if cells := known.get(frozenset(normal(command))):
            assert headline(text) == cells, command
            of_rows += 1
    assert len(COMMANDS) >= 4 and of_rows >= 2
    assert headline(told(*shlex.split(COMMANDS[1])[1:])) == ["51.1", "generate", "yes"]


def test_the_tables_are_those_of_the_formulas():
    assert scaling_docs.written(PAGE) == PAGE, "run python scripts/scaling_docs.py"


# Recipes


def test_options_have_the_origin_that_wins(told, recipe):
    path = recipe(method="rlsd", num_iterations=2, max_completion_length=100, per_device_train_batch_size=2)
    found = settings(told("--config", path, "--max_completion_length", 200, "--gpus", 2))
    assert found["teacher_model_kind"] == ("snapshot", "method rlsd")
    assert found["num_iterations"] == ("2", "recipe")
    assert found["max_completion_length"] == ("200", "command line")
    assert found["gradient_accumulation_steps"] == ("1", "default")
    assert found["prompt_tokens"] == ("512", "assumed")
    assumed = settings(told("--model", "qwen3-8b", "--accelerate_config", "zero3"))
    assert assumed["per_device_train_batch_size"] == ("4", "assumed")


def run_of(*argv):
    """Run that a command line describes."""
    args, others = estimate.build_parser().parse_known_args([str(text) for text in argv])
    line, given = estimate.options_of([*others, *(["--config", args.config] if args.config else [])])
    engine, gpus = planned.engine_of(args.accelerate_config, args.gpus)
    return planned.run_of(planned.Options(line, given), engine, gpus, args.gpu_gb, 512, 1024)


def test_a_recipe_is_read_whole(recipe):
    source = {"all_of": [{"column": {"column": ["a", "b"]}}, {"when": {"condition": "failed", "source": "sibling"}}]}
    run, left_out = run_of(
        "--config", recipe(
            use_vllm=True, vllm_enable_sleep_mode=True, vllm_gpu_memory_utilization=0.4, vllm_tensor_parallel_size=2,
            use_peft=True, lora_r=8, dtype="bfloat16", bf16=False, fp16=True, gradient_checkpointing=False,
            steps_per_generation=6, privileged_source=source, teacher_max_length=600, max_completion_length=500,
            beta=0.1, optim="adafactor",
        ), "--accelerate_config", "fsdp2", "--gpus", "4", "--gpu_gb", "48",
    )  # fmt: skip
    shown = {name: getattr(run, name) for name in (
        "engine", "gpus", "gpu_gb", "dtype", "bf16", "lora", "rows", "accumulation", "checkpointing", "vllm", "sleep",
        "utilization", "tensor_parallel", "views", "completion", "teacher_prompt",
    )}  # fmt: skip
    assert shown == {
        "engine": "fsdp2", "gpus": 4, "gpu_gb": 48.0, "dtype": "bfloat16", "bf16": True, "lora": 8, "rows": 8,
        "accumulation": 6, "checkpointing": False, "vllm": True, "sleep": True, "utilization": 0.4,
        "tensor_parallel": 2, "views": 3, "completion": 500, "teacher_prompt": 100,
    }  # fmt: skip
    assert [text.split(":")[0] for text in left_out] == [
        "the reference model of `beta`", "the choice of `lora_target_modules`", "the optimizer adafactor",
    ]  # fmt: skip


def test_generation_elsewhere_and_the_size_of_its_batch(recipe):
    run, _ = run_of("--config", recipe(use_vllm=True, vllm_mode="server", generation_batch_size=64), "--gpus", 2)
    assert (run.vllm, run.server, run.accumulation) == (False, True, 4)
    run, _ = run_of("--config", recipe(gradient_accumulation_steps=3), "--accelerate_config", "multi_node")
    assert (run.vllm, run.server, run.accumulation, run.engine, run.gpus) == (False, False, 3, "zero3", 32)


@pytest.mark.parametrize(
    ("spec", "views"),
    [
        (None, 1), ("sibling", 1), ({"column": ["a", "b", "c"]}, 3), ({"column": "a"}, 1),
        ({"first_of": ["sibling", {"column": ["a", "b"]}]}, 2), ({"with_baselines": {"source": "column"}}, 3),
        ({"with_baselines": {"source": "column", "bare": False}}, 2), ({"critic": {"model": "x"}}, 1),
    ],
)  # fmt: skip
def test_views_are_counted_as_far_as_a_source_tells(spec, views):
    assert planned.count_views(spec) == views


# Ways to make it fit


def test_what_is_printed_makes_the_recipe_fit(told, recipe):
    options = {"gradient_checkpointing": False, "use_vllm": True, "per_device_train_batch_size": 16, "max_steps": 3}
    path = recipe(**options)
    text = told("--config", path, "--gpus", 8)
    assert headline(text)[2] == "**no**"
    ways = text.split("\nWay ")[1:]
    assert ways and "The training stays the same." in ways[0]
    for way in ways:
        lines = way.partition("In the recipe:\n\n")[2].partition("\n\nLaunch:")[0]
        recipe(**options | (yaml.safe_load(lines) or {}))
        command = shlex.split(way.partition("Launch:\n\n")[2].partition("\n\n")[0])
        assert command[:4] == ["trl-opsd", "train", "--config", str(path)]
        again = told(*command[2:5], *command[5:6], "--gpus", command[command.index("--num_processes") + 1])
        assert headline(again) == [*re.search(r"([\d.]+) GB at the peak, in `(\w+)`", way).groups(), "yes"]
        taken, own = launch.launch_options(command[2:])
        assert own == ["--config", str(path)] and taken[-2:] == ["--num_processes", "8"]
    assert "gradient_checkpointing: true" in ways[0] and "--accelerate_config zero3" in ways[0]


def test_smaller_micro_batches_in_the_words_of_a_recipe(told, recipe):
    path = recipe(
        model_name_or_path="qwen3-1.7b", per_device_train_batch_size=16, gradient_accumulation_steps=2,
        steps_per_generation=4, max_completion_length=32_768, teacher_model_kind="live", use_vllm=True,
        vllm_enable_sleep_mode=True,
    )  # fmt: skip
    first = told("--config", path, "--accelerate_config", "zero3").split("\nWay ")[1]
    lines = yaml.safe_load(first.partition("In the recipe:\n\n")[2].partition("\n\nLaunch:")[0])
    by = 16 // lines["per_device_train_batch_size"]
    assert by > 1 and (lines["gradient_accumulation_steps"], lines["steps_per_generation"]) == (2 * by, 4 * by)


def test_an_adapter_is_said_to_change_the_training(told):
    ways = told("--model", "qwen3-8b", "--gpus", 1).split("\nWay ")[1:]
    assert len(ways) == 1 and "It changes what is trained." in ways[0]
    assert "lora_target_modules: [all-linear]" in ways[0] and "lora_alpha: 128" in ways[0]
    assert ways[0].rstrip().endswith("trl-opsd train --config my_recipe.yaml"), "one GPU needs no launch config"


def test_more_gpus_where_no_change_helps(told):
    text = told("--model", "qwen3-32b", "--gpus", 1, "--gpu_gb", 40)
    assert "No change here makes it fit 1 GPU(s) of 40 GB." in text
    assert re.search(r"On [248], where a step has [248] times the rollouts:\n\nWay 1: ", text)
    assert "No change that is known here makes it fit" in told("--model", "qwen3-32b", "--gpus", 1, "--gpu_gb", 2)


def test_transfers_of_an_offloaded_teacher(told, recipe):
    """A copy in bfloat16 and its head, for each of four micro-batches."""
    options = {"teacher_offload": True, "dtype": "bfloat16", "gradient_accumulation_steps": 4}
    said = " ".join(told("--config", recipe(**options), "--gpus", 1).split())
    assert f"`teacher_offload` moves {4 * 2 * (8.19 + 0.622):.1f} GB between the host and each GPU at a step." in said


def test_the_recipe_of_a_small_card_comes_to_what_it_says(told):
    path = ROOT / "recipes" / "qwen3_8b_qlora_24gb.yaml"
    peak, phase, fits = headline(told("--config", path, "--gpus", 1, "--gpu_gb", 24))
    assert (phase, fits) == ("generate", "yes")
    places = (path, ROOT / "docs" / "adapters.md", ROOT / "README.md")
    assert all(f"{peak} GB" in place.read_text() for place in places)


def test_several_nodes(told):
    text = told("--model", "qwen3-32b", "--accelerate_config", "multi_node", "--vllm_tensor_parallel_size", 4)
    assert "--num_processes 32 --num_machines 4 --machine_rank RANK" in text and "  # on each of 4 nodes" in text


# Models


def test_a_folder_of_a_model(told, tmp_path, recipe):
    (tmp_path / "config.json").write_text(json.dumps(MODELS["qwen3-0.6b"] | {"dtype": "bfloat16"}))
    text = told("--config", recipe(model_name_or_path=str(tmp_path), dtype="auto"), "--gpus", 1)
    assert "0.60 billion parameters" in " ".join(text.split()) and settings(text)["dtype"] == ("bfloat16", "recipe")


class Hub(BaseHTTPRequestHandler):
    """Files of a hub: one model, one that is gated, and no other."""

    def do_GET(self):
        gated, there = self.path.startswith("/org/gated"), self.path == "/org/small/resolve/main/config.json"
        body = json.dumps(MODELS["qwen3-0.6b"] if there else {}).encode()
        self.send_response(200 if there else 401 if gated else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def in_a_process(tmp_path, *argv, **variables):
    """The command in a process of its own, which must not have imported torch."""
    code = (
        "import sys\nfrom trl_opsd.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), **variables}
    return processes.run([sys.executable, "-c", code, "estimate", *argv], cwd=ROOT, timeout=60, env=env)


def test_a_model_of_the_hub_and_of_its_cache(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    try:
        done = in_a_process(tmp_path, "--model", "org/small", **address)
        assert done.returncode == 0 and "org/small, 0.60 billion parameters" in done.stdout, done.stderr
        for name, reason in (("org/gated", "401"), ("org/none", "404")):
            done = in_a_process(tmp_path, "--model", name, **address)
            assert done.returncode == 2 and f"is {name}: " in done.stderr and reason in done.stderr
            assert len(done.stderr.splitlines()) == 1
    finally:
        server.shutdown()
    folder = tmp_path / "hf" / "hub" / "models--org--held"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(MODELS["qwen3-4b"]))
    done = in_a_process(tmp_path, "--model", "org/held", **address)
    assert done.returncode == 0 and "4.02 billion parameters" in done.stdout, done.stderr
    start = time.monotonic()
    done = in_a_process(tmp_path, "--model", "org/small", **address)
    assert time.monotonic() - start < 20, "one try"
    assert done.returncode == 2 and "the Hub did not give it" in done.stderr


def test_a_recipe_by_name_loads_no_torch(tmp_path):
    done = in_a_process(tmp_path, "--config", "qwen3_1.7b_opsd_paper", "--gpus", "8")
    assert done.returncode == 0 and "Qwen/Qwen3-1.7B" in done.stdout, done.stderr
    assert "\ntrl-opsd train --config qwen3_1.7b_opsd_paper --accelerate_config ddp --num_processes 8" in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", ["`--config` and `--model` are missing"]),
        ("--config smolm2_json", ["did you mean `smollm2_json`?"]),
        ("--model /nowhere/model", ["the folder /nowhere/model, which does not exist"]),
        ("--model recipes", ["the folder recipes, which has no config.json"]),
        ("--model qwen3-9b", ["`model_name_or_path` is qwen3-9b", "did you mean `qwen3-8b`?"]),
        ("--model gpt2_folder", ["the formulas cover qwen3, qwen2, llama", "'gpt2'"]),
        ("--model broken_folder", ["broken_folder, whose config.json is no JSON"]),
        ("--model qwen3-8b --gpus 0", ["`--gpus` must be above 0"]),
        ("--model qwen3-8b --gpu_gb nan", ["`--gpu_gb` must be above 0"]),
        ("--model qwen3-8b --acelerate_config zero3", ["`acelerate_config` (did you mean `accelerate_config`?)"]),
        ("--model qwen3-8b --accelerate_config zero4", ["did you mean `zero3`?"]),
        ("--model qwen3-8b --accelerate_config fsdp1", ["fsdp1: the formulas cover DDP, ZeRO-1 to 3 and FSDP2"]),
        ("--model qwen3-8b --accelerate_config cpu --gpus 8", ["one process without an engine", "not on 8"]),
        ("--model qwen3-8b --accelerate_config offload.yaml", ["offload.yaml, which offloads"]),
        ("--model qwen3-8b --vllm_tensor_parallel_size 3", ["`vllm_tensor_parallel_size=3` must divide the 8 GPUs"]),
        ("--model qwen3-8b --per_device_train_batch_size 0", ["`per_device_train_batch_size` must be at least 1"]),
        ("--model qwen3-8b --vllm_gpu_memory_utilization 30", ["`vllm_gpu_memory_utilization` must be from 0 to 1"]),
        ("--model qwen3-8b --num_iterations many", ["`num_iterations` must be a whole number, got 'many'"]),
        ("--model qwen3-8b --teacher_model_kind checkpoint", ["`teacher_model_kind` is checkpoint"]),
        ("--model qwen3-8b extra", ["'extra' belongs to no option"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(capsys, tmp_path, monkeypatch, argv, words):
    for name, text in (("gpt2_folder", '{"model_type": "gpt2"}'), ("broken_folder", "{"), ("recipes", "")):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "config.json").write_text(text)
    zero3 = yaml.safe_load((ROOT / "recipes" / "accelerate" / "zero3.yaml").read_text())
    zero3["deepspeed_config"]["offload_optimizer_device"] = "cpu"
    (tmp_path / "offload.yaml").write_text(yaml.safe_dump(zero3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["estimate", *argv.split()])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    assert all(word in said for word in words), said
