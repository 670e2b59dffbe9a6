# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The command `trl-opsd`: help and listings, which load no torch, and the ways to start a training."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import processes
from scripts import catalog as catalog_script
from trl_opsd.cli import main as cli
from trl_opsd.cli import recipes
from trl_opsd.cli.catalog import FILE, catalog
from trl_opsd.methods import method_names, method_of


ROOT = Path(__file__).parents[2]


def told_by(capsys, *argv):
    cli.main(argv)
    return capsys.readouterr().out


def test_the_command_is_installed_with_the_package():
    with open(ROOT / "pyproject.toml", "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    module, _, name = scripts["trl-opsd"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


QUICK = [
    ["--help"], ["train", "--help"], ["recipes"], ["recipes", "smollm2_json"], ["methods"], ["methods", "rlsd"],
    ["methods", "--needs", "nothing"], ["sources"], ["sources", "sibling"], ["options"], ["options", "warmup"],
    ["options", "teacher_model_kind"],
]  # fmt: skip


def test_listings_load_no_torch():
    """One process for all of them, in which importing torch, transformers or trl is an error."""
    code = (
        "import json, sys\n"
        "for name in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'accelerate'): sys.modules[name] = None\n"
        "from trl_opsd.cli.main import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    try: main(argv)\n"
        "    except SystemExit as end: assert not end.code, argv\n"
    )
    done = processes.run([sys.executable, "-c", code, json.dumps(QUICK)], cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Self-Distilled RLVR" in done.stdout and "dataset_name: demo/data/json" in done.stdout


def test_the_catalog_is_that_of_the_code():
    """`python scripts/catalog.py` makes it. Options of other versions of transformers are left out."""
    made, held = json.loads(catalog_script.contents()), json.loads(FILE.read_text())
    if made["versions"] != held["versions"]:
        for one in (made, held):
            own = {name: option for name, option in one["options"].items() if option["origin"] == "trl_opsd"}
            one |= {"versions": {}, "launch": {}, "options": own}
    assert made == held


def test_methods_are_listed_by_need(capsys):
    told = told_by(capsys, "methods")
    assert all(re.search(f"^{name} +(reward|column|nothing) ", told, flags=re.M) for name in method_names())
    with_reward = told_by(capsys, "methods", "--needs", "reward")
    assert all((f"\n{name} " in with_reward) >= method_of(name).needs_reward for name in method_names())
    page = told_by(capsys, "methods", "rlsd")
    for words in (
        "Self-Distilled RLVR",
        "arxiv.org/abs/2604.03128",
        "A_t = A [",
        "teacher_sync_steps: 10",
        "share: 0.5",
    ):
        assert words in page
    assert "Recipes: methods/rlsd, methods/rlsd_paper" in page


def test_sources_and_conditions_are_listed(capsys):
    told = told_by(capsys, "sources")
    assert re.search(r"^sibling +source +Text of a successful rollout", told, flags=re.M)
    assert re.search(r"^failed +condition ", told, flags=re.M)
    assert "choice: 'first'" in told_by(capsys, "sources", "sibling")


def test_options_are_searched_ours_first(capsys):
    own = told_by(capsys, "options")
    assert "\ndistillation_weight " in own and "\nlearning_rate " not in own
    found = [line.split()[0] for line in told_by(capsys, "options", "clip").splitlines()[1:] if line[0] != " "]
    origins = [catalog()["options"][name]["origin"] for name in found if name in catalog()["options"]]
    assert origins == sorted(origins, key=("trl_opsd", "trl", "transformers").index) and len(set(origins)) > 1
    whole = told_by(capsys, "options", "--", "--teacher_model_kind")
    assert "one of base, live, ema, snapshot, checkpoint" in whole and "from trl_opsd" in whole


def test_recipes_are_listed_printed_and_copied(capsys, tmp_path):
    told = told_by(capsys, "recipes")
    assert all(f"\n{name} " in told for name in recipes.recipe_names())
    assert re.search(r"^smollm2_json +CPU +The demo: ", told, flags=re.M)
    assert re.search(r"^methods/rlsd_paper +GPU +yes +RLSD", told, flags=re.M)
    file = ROOT / "recipes" / "smollm2_json.yaml"
    assert told_by(capsys, "recipes", "smollm2_json") == file.read_text()
    told_by(capsys, "recipes", "rlsd", "--copy", str(tmp_path / "mine.yaml"))
    assert (tmp_path / "mine.yaml").read_text() == (ROOT / "recipes" / "methods" / "rlsd.yaml").read_text()
    with pytest.raises(SystemExit) as end:
        cli.main(["recipes", "rlsd", "--copy", str(tmp_path / "mine.yaml")])
    assert end.value.code == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "there is no command 'trian' (did you mean `train`?)"),
        (["methods", "rldsd"], "there is no method 'rldsd' (did you mean `rlsd`?)"),
        (["sources", "sibbling"], "there is no source or condition 'sibbling' (did you mean `sibling`?)"),
        (["options", "no_such_thing"], "no option has 'no_such_thing'"),
        (["recipes", "smolm2_json"], "smolm2_json: neither a file nor a recipe (did you mean `smollm2_json`?)"),
        (["recipes", "--copy", "x.yaml"], "`--copy` needs the name of a recipe"),
        (["chat", "no/such/model", "Hello"], "`model` is no/such/model, and there is no such folder"),
        (["data", "smollm2", "--output_dir", "x"], "`--output_dir` is for data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(capsys, argv, words):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and words in said and len(said.splitlines()) <= 3
    assert "Traceback" not in said


def test_the_traceback_of_a_mistake_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("TRL_OPSD_TRACEBACK", "")  # which the command sets for the processes that it starts
    with pytest.raises(SystemExit):
        cli.main(["methods", "rldsd", "--traceback"])
    said = capsys.readouterr().err
    assert "Traceback" in said and "\nerror: there is no method" in said


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m trl_opsd.cli.main recipes | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("recipe ") and not done.stderr and done.returncode == 0


@pytest.mark.parametrize(
    "door", [["scripts/opsd.py"], ["-m", "trl_opsd.cli.train"], ["-m", "trl_opsd.cli.main", "train"]], ids=" ".join
)
def test_each_door_leads_to_the_training(door, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("bf16: false\nmodel_name_or_path: some/model\noutput_dir: out\n")
    done = processes.run([sys.executable, *door, "--config", str(recipe)], cwd=ROOT, timeout=300)
    assert done.returncode == 2 and "error: `dataset_name` is missing" in done.stderr, done.stderr[-2000:]


def test_the_wheel_holds_recipes_and_examples(tmp_path):
    """Built from a copy, as setuptools writes beside what it builds."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "copy"
    copy.mkdir()
    held = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, held):
        if name.split("/")[0] in ("trl_opsd", "recipes", "pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-P", str(ROOT / name), str(copy / name)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        copy,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"trl_opsd/recipes/{name}.yaml" for name in recipes.recipe_names()}
    expected |= {f"trl_opsd/recipes/accelerate/{path.name}" for path in recipes.LAUNCH.glob("*.yaml")}
    page = ROOT / "trl_opsd" / "token_report"
    assets = [page / "page.html.j2", *(page / "page").iterdir()]
    expected |= {str(path.relative_to(ROOT)) for path in assets}
    assert expected | {"trl_opsd/examples/tasks.py", "trl_opsd/cli/catalog.json"} <= names and len(expected) > 100
