# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Mistakes of a new user, each made as a user makes it, in a process of its own: one sentence with the culprit and the
cure, exit code 2, no traceback, and no import of torch where neither data, nor model, nor device is asked for.
"""

import http.server
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import processes
from trl_opsd.examples import data


ROOT = Path(__file__).parents[2]
MAIN = """
import sys
from trl_opsd.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *(name for name in ("torch", "trl") if name in sys.modules))
"""
RECIPE = {
    "model_name_or_path": "demo/models/smollm2-135m", "dataset_name": "demo/data/addition", "output_dir": "out",
    "per_device_train_batch_size": 8, "max_steps": 1, "bf16": False,
}  # fmt: skip
REWARD = {"reward_funcs": ["trl_opsd.examples.tasks.correct_sum"]}
TEMPLATE = {"privileged_template": "Hint: {privileged_context}"}
WHEN = {"when": {"condition": "faled", "source": "sibling"}}


def train(*line, text=None, **options):
    """Command line, and the recipe that it names."""
    return ["train", "--config", "recipe.yaml", *line], json.dumps(RECIPE | options) if text is None else text


# By name: command line and recipe, words of the sentence, and what is imported
MISTAKES = {
    "broken YAML": (train(text="a: [1\nb: 2\n"), ["recipe.yaml, line 2, column 2", "expected ',' or ']'"], ""),
    "column": (
        train(privileged_column="privileged_contxt"),
        ["no column `privileged_contxt` (did you mean `privileged_context`?)", "`privileged_column`"],
        "torch trl",
    ),
    "method without a reward": (train(method="rlsd"), ["'rlsd' learns from rewards: pass `reward_funcs`"], ""),
    "template beside a method's source": (
        train("--method", "sdpo", **TEMPLATE, **REWARD),
        ["'sdpo' brings its own `privileged_source`", "Leave `privileged_template` out"],
        "",
    ),
    "model id": (
        train("--model_name_or_path", "Qwen/Qwen3-0.6BB"),
        ["`model_name_or_path` is Qwen/Qwen3-0.6BB: neither a folder nor a model in the cache"],
        "",
    ),
    "number": (train("--max_steps", "many"), ["`max_steps` must be a whole number, got 'many'"], ""),
    "teacher kind": (
        train("--teacher_model_kind", "frozen"),
        ["`teacher_model_kind` is 'frozen': it must be one of base, live"],
        "",
    ),
    "method": (train(method="rldsd"), ["`method` is 'rldsd'", "did you mean `rlsd`?"], ""),
    "source": (train(privileged_source="sibbling"), ["no source 'sibbling' (did you mean `sibling`?)"], ""),
    "condition": (train(privileged_source=WHEN), ["no condition 'faled' (did you mean `failed`?)"], ""),
    "reward": (train(reward_funcs=["acuracy_reward"]), ["'acuracy_reward' (did you mean `accuracy_reward`?)"], ""),
    "recipe": ((["train", "--config", "smollm2_jsn"], ""), ["smollm2_jsn", "did you mean `smollm2_json`?"], ""),
    "option of a source": (
        train(privileged_source={"sibling": {"choise": "first"}}, **REWARD),
        ["`privileged_source.sibling`", "no option 'choise' (did you mean `choice`?)"],
        "",
    ),
    "placeholder twice": (
        train(privileged_template="{privileged_context} {privileged_context}"),
        ["`privileged_template` has the placeholder {privileged_context} 2 times"],
        "",
    ),
    "option": (train(distilation_weight=1), ["`distilation_weight` (did you mean `distillation_weight`?)"], ""),
    "no placeholder": (
        train(privileged_template="Hint: {context}"),
        ["`privileged_template` must contain the placeholder {privileged_context}", "'Hint: {context}'"],
        "",
    ),
    "place": (train(privileged_place="after_usr"), ["'after_usr' (did you mean `after_user`?)"], ""),
    "groups": (
        train(num_generations=3, **REWARD),
        ["`num_generations` is 3", "8 completions", "set it to 2, 4, 8, or the batch size to a multiple of 3"],
        "torch",
    ),
    "option of a method": (
        train(method="rlsd", method_options={"shares": 0.5}, **REWARD),
        ["`method_options`: the method 'rlsd' has no option 'shares' (did you mean `share`?)"],
        "",
    ),
    "data folder": (
        train("--dataset_name", "demo/data/adition"),
        ["demo/data/adition, which does not exist (did you mean `demo/data/addition`?)"],
        "",
    ),
    "dotted path": (
        train(reward_funcs=["my_rewads.length"]),
        ["my_rewads.length can't be imported: there is no module my_rewads (did you mean `my_rewards`?)"],
        "",
    ),
    "no recipe": ((["train"], ""), ["`--config` is missing: name a recipe"], ""),
    "name on a listing": ((["methods", "rldsd"], ""), ["no method 'rldsd' (did you mean `rlsd`?)"], ""),
    "command": ((["trian"], ""), ["there is no command 'trian' (did you mean `train`?)"], ""),
    "launch config": (train("--accelerate_config", "zero4"), ["is zero4", "did you mean `zero3`?"], ""),
    "bf16 on a CPU": (train("--bf16", "true"), ["`bf16=True` needs a device", "Leave `bf16` out"], "torch"),
    "learning rate": (train(learning_rate="fast"), ["`learning_rate` must be a number, got 'fast'"], ""),
    # Neighbours of these 27
    "model folder": (
        train("--model_name_or_path", "demo/models/smollm2-135"),
        ["which does not exist (did you mean `demo/models/smollm2-135m`?)"],
        "",
    ),
    "data id": (
        train("--dataset_name", "trl-lib/ultrafeedbak"),
        ["`dataset_name` is trl-lib/ultrafeedbak: neither a folder nor a data set in the cache"],
        "",
    ),
    "attribute of a dotted path": (
        train(reward_funcs=["my_rewards.lenght"]),
        ["my_rewards has no attribute 'lenght' (did you mean `length`?)"],
        "",
    ),
    "source of a method without a reward": (
        train(method="sdpo"),
        ["The source `sibling` looks at rewards, and this run has none", "source of the method 'sdpo'"],
        "",
    ),
    "model to chat with": (
        (["chat", "Qwen/Qwen3-0.6BB", "Hello"], ""),
        ["`model` is Qwen/Qwen3-0.6BB: neither a folder nor a model in the cache"],
        "",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Working directory of a user: data, a model's folder, a file of rewards."""
    folder = tmp_path_factory.mktemp("user")
    tokenizer.save_pretrained(folder / "demo" / "models" / "smollm2-135m")
    data.prepare("addition", folder / "demo" / "data" / "addition")
    (folder / "my_rewards.py").write_text(
        "import torch\n\n\ndef length(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    )
    return folder


def made(folder, argv, recipe="", **environment):
    """Finished process of a command line."""
    (folder / "recipe.yaml").write_text(recipe)
    own = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    return processes.run(
        [sys.executable, "-c", MAIN, *argv], cwd=folder, env=os.environ | own | environment, timeout=300
    )


def check(done, words, imported=""):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    said = done.stderr.splitlines()
    assert said[0].startswith("error: ") and len(said) <= 3, said
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout.splitlines()[-1] == f"imported: {imported}".strip()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(folder, name):
    (argv, recipe), words, imported = MISTAKES[name]
    check(made(folder, argv, recipe), words, imported)
    assert not (folder / "out").exists()


# The Hub


class Answers(http.server.BaseHTTPRequestHandler):
    """A Hub that has one model, and no other repository."""

    def do_GET(self):
        held = self.path.startswith("/api/models/some/model")
        body = json.dumps({"id": "some/model", "siblings": []} if held else {"error": "Repository not found"}).encode()
        self.send_response(200 if held and "lost" not in self.path else 404)
        if not held or "lost" in self.path:
            self.send_header("X-Error-Code", "RevisionNotFound" if held else "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    server.shutdown()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            ["--model_name_or_path", "some/modle"],
            ["is some/modle: neither a folder nor a model of the Hub"],
        ),
        (["--dataset_name", "some/dta"], ["`dataset_name` is some/dta: neither a folder nor a data set of the Hub"]),
        (
            ["--model_name_or_path", "some/model", "--model_revision", "lost"],
            ["`model_revision`: the model some/"],
        ),
        (["--model_name_or_path", "a b"], ["`model_name_or_path` is 'a b': neither a folder nor an id of the Hub"]),
    ],
    ids=["model", "data", "revision", "no id"],
)
def test_what_the_hub_does_not_have(folder, hub, line, words):
    check(made(folder, *train(*line), **hub), words)


@pytest.mark.parametrize("listens", [False, True], ids=["nobody there", "no answer"])
def test_a_hub_that_does_not_answer_is_told_of_at_once(folder, listens):
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        if listens:
            door.listen()
        started = time.monotonic()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{door.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        done = made(folder, *train("--model_name_or_path", "some/other"), **hub)
    check(done, ["`model_name_or_path` is some/other", "nor a model in the cache, and the Hub could not be reached"])
    assert time.monotonic() - started < 60


def test_what_is_there_passes(folder, hub):
    """A model on the Hub, and one and a data set in the caches while the Hub is not asked."""
    home = folder / "caches"
    model = home / "hub" / "models--my--adapter"
    for path in (model / "refs" / "main", model / "snapshots" / "abc" / "adapter_config.json"):
        path.parent.mkdir(parents=True)
        path.write_text("abc")
    (home / "datasets" / "my___big_data").mkdir(parents=True)
    code = (
        "from trl_opsd.cli.hub_check import check_hub\n"
        "check_hub({'model_name_or_path': 'some/model', 'teacher_model_name_or_path': 'my/adapter',\n"
        "           'dataset_name': 'my/BigData'})\n"
    )
    environment = os.environ | hub | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = processes.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    others = environment | {"RANK": "1"}
    code = code.replace("some/model", "some/modle")
    assert processes.run([sys.executable, "-c", code], env=environment, timeout=120).returncode != 0
    assert processes.run([sys.executable, "-c", code], env=others, timeout=120).returncode == 0, "one process asks"
