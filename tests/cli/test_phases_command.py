# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl-opsd collect` and `trl-opsd phases`: their files, what is repeated, and their mistakes."""

from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from transformers import AutoModelForCausalLM

import tiny
from trl_opsd.cli import main as cli
from trl_opsd.cli import phases as command
from trl_opsd.cli import train
from trl_opsd.examples import data
from trl_opsd.phases.phase_list import phases_of, run_phases


@pytest.fixture
def options(tmp_path, tokenizer, monkeypatch):
    """Options of a short run in an empty working directory, with model and data in it."""
    monkeypatch.chdir(tmp_path)
    tiny.model(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    data.prepare("addition", Path("data"))
    return {
        "model_name_or_path": "model", "dataset_name": "data", "per_device_train_batch_size": 4,
        "max_completion_length": 4, "bf16": False, "report_to": "none", "gradient_checkpointing": False,
        "max_steps": 1, "save_strategy": "no", "dataloader_pin_memory": False, "use_cpu": True,
    }  # fmt: skip


def write(name, content):
    Path(name).write_text(yaml.safe_dump(content))
    return name


def failing(capsys, *argv):
    """Error of a command, which must be one line and end with exit code 2."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(argv))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and error.startswith("error: ") and error.endswith((".", "?"))
    return error.removeprefix("error: ")


# collect


def test_collect(options, capsys, monkeypatch):
    """Its options by their short names; nothing is pushed, and the recipe's folder is not the run's."""
    recipe = write("recipe.yaml", {**options, "output_dir": "unused", "push_to_hub": True, "hub_token": "none"})
    line = ["--config", recipe, "--rows", "6", "--layout", "answer", "distil", "--keep=unique", "--output_dir", "out"]
    cli.main(["collect", *line])
    told = capsys.readouterr().out
    assert "6 prompts were sampled." in told and "answer: 6 of 6 samples are kept" in told
    assert "trl sft --dataset_name out" in told
    rows = load_dataset("out")["train"]
    assert sorted(rows["layout"]) == ["answer"] * 6 + ["distil"] * 6
    assert [path.name for path in Path("out").iterdir()] == ["_collected"] and not Path("unused").exists()
    assert "`output_dir` has rows already" in failing(capsys, "collect", *line)


def test_a_condition_with_arguments_on_the_command_line(options):
    parsed = train.parse(["--output_dir", "o", "--model_name_or_path", "model", "--dataset_name", "data",
                          "--collect_keep", '{"reward_from": {"value": 0.5}}', "unique"])  # fmt: skip
    assert parsed[0].collect_keep == [{"reward_from": {"value": 0.5}}, "unique"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--layout", "answers"], "`collect_layout` is 'answers' (did you mean `answer`?)"),
        (["--keep", "succeeded"], "`collect_keep`: succeeded"),
        (["--rows", "two"], "`collect_rows` must be a whole number"),
        (["--preflight"], "those of trl-opsd train"),
        (["--view", "mine", "--layout", "distil"], "the view 'mine' (`collect_view`)"),
    ],
)
def test_mistakes_of_collect(options, capsys, line, words):
    recipe = write("recipe.yaml", {**options, "output_dir": "out"})
    assert words in failing(capsys, "collect", "--config", recipe, *line)
    assert not Path("out/_collected").exists()


# phases


@pytest.fixture
def started(monkeypatch):
    """Phases in this process, in place of processes of their own: those that ran, and the exit code of the next."""
    ran, codes = [], {}

    def start(phase, count):
        ran.append(phase.number)
        assert yaml.safe_load(phase.file.read_text()) == phase.options
        return codes.pop(phase.number, 0)

    monkeypatch.setattr(command, "start", start)
    return ran, codes


class Done:
    """A process that has ended well."""

    returncode = 0


def three(options, **changes):
    """A list: rows, fine-tuning on them, distillation of the result."""
    sft = {name: value for name, value in options.items() if name not in ("max_completion_length", "dataset_name")}
    first = {"run": "collect", "options": {**options, "collect_rows": 4, "collect_layout": ["distil"]}}
    second = {"run": "sft", "options": {**sft, "dataset_name": "{1}", **changes}}
    third = {"run": "train", "options": {**options, "model_name_or_path": "{2}"}}
    return {"output_dir": "out", "phases": [first, second, third]}


def test_three_phases(options, capfd, tokenizer):
    """In processes of their own: each trains the model that the one before it has made."""
    cli.main(["phases", write("list.yaml", three(options))])
    told = capfd.readouterr().out
    assert "Phase 1 of 3: collect -> out/1-collect" in told and "All 3 phases are finished" in told
    models = [AutoModelForCausalLM.from_pretrained(name) for name in ("model", "out/2-sft", "out/3-train")]
    weights = [model.lm_head.weight for model in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    (rows,) = Path("out/1-collect").rglob("*.jsonl")
    assert len(rows.read_text().splitlines()) == 4
    assert all(len(path.parts) > 2 or path.name.startswith("_") for path in Path("out").glob("*.yaml"))
    cli.main(["phases", "list.yaml"])
    assert "Phase 1" not in capfd.readouterr().out, "nothing is repeated"


def test_a_failure_ends_the_list_and_the_next_call_goes_on(options, capsys, started):
    ran, codes = started
    write("list.yaml", three(options))
    codes[2] = 7
    with pytest.raises(SystemExit) as end:
        cli.main(["phases", "list.yaml"])
    assert end.value.code == 7 and ran == [1, 2] and "phase 2 (sft) failed" in capsys.readouterr().err
    cli.main(["phases", "list.yaml", "--dry_run"])
    assert capsys.readouterr().out.count("finished") == 1
    cli.main(["phases", "list.yaml"])
    assert ran == [1, 2, 2, 3]
    cli.main(["phases", "list.yaml"])
    assert ran == [1, 2, 2, 3]


def test_finished_with_other_options(options, capsys, started):
    ran, _ = started
    cli.main(["phases", write("list.yaml", three(options))])
    error = failing(capsys, "phases", write("list.yaml", three(options, learning_rate=1e-3)))
    assert "phase 2 (sft) has finished with another value of `learning_rate`" in error and ran == [1, 2, 3]
    Path("out/_1-collect.finished.yaml").unlink()
    error = failing(capsys, "phases", write("list.yaml", three(options)))
    assert "phase 2 (sft) is finished, and phase 1 (collect), which it follows, is not" in error


def test_a_training_goes_on_from_its_last_whole_checkpoint(options, monkeypatch):
    """The last one by number that was saved to its end."""
    (_, sft, _) = phases_of(three(options), None, lambda *_: {})
    for name, whole in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        folder = sft.folder / name
        folder.mkdir(parents=True)
        if whole:
            (folder / "trainer_state.json").write_text("{}")
    assert sft.checkpoint == sft.folder / "checkpoint-10"
    lines = []
    monkeypatch.setattr(command.subprocess, "run", lambda line, **_: lines.append(line) or Done)
    assert run_phases([sft], lambda phase: command.start(phase, 1)) == 0
    assert lines[0][-2:] == ["--resume_from_checkpoint", str(sft.folder / "checkpoint-10")]


def test_a_config_and_a_launch(options, monkeypatch):
    """Options win over the recipe; those of `accelerate launch` go to the command line."""
    recipe = write("recipe.yaml", {**options, "output_dir": "unused", "learning_rate": 0.5})
    phase = {"run": "train", "config": recipe, "options": {"max_steps": 3}, "launch": {"num_processes": 2}}
    (found,) = command.checked(Path(write("list.yaml", {"output_dir": "out", "phases": [phase]})), None)
    assert found.options["learning_rate"] == 0.5 and found.options["max_steps"] == 3
    assert found.options["output_dir"] == "out/1-train"
    lines = []
    monkeypatch.setattr(
        command.subprocess, "run", lambda line, **_: lines.append(line) or type("D", (), {"returncode": 0})
    )
    command.start(found, 1)
    assert lines[0][-2:] == ["--num_processes", "2"]


def test_another_output_folder(options, started):
    cli.main(["phases", write("list.yaml", three(options)), "--output_dir", "elsewhere"])
    assert Path("elsewhere/_3-train.finished.yaml").is_file() and not Path("out").exists()
    assert (
        yaml.safe_load(Path("elsewhere/_3-train.finished.yaml").read_text())["model_name_or_path"] == "elsewhere/2-sft"
    )


WRONG = [
    ({"phases": []}, "`output_dir` is missing"),
    ({"output_dir": "o", "phases": []}, "`phases` must be a list"),
    ({"output_dir": "o", "phase": []}, "unknown key in the file: `phase` (did you mean `phases`?)"),
    ({"output_dir": "o", "phases": [{"run": "tarin"}]}, "got 'tarin' (did you mean `train`?)"),
    ({"output_dir": "o", "phases": [{"run": "sft", "option": {}}]}, "unknown key in phase 1 (sft): `option`"),
    ({"output_dir": "o", "phases": [{"run": "sft", "options": ["a"]}]}, "phase 1 (sft): `options` must hold options"),
    ({"output_dir": "o", "phases": [{"run": "sft", "options": {"output_dir": "x"}}]}, "leave out `output_dir`"),
    ({"output_dir": "o", "phases": [{"run": "sft", "options": {"dataset_name": "{1}"}}]}, "{1} names no earlier phase"),
    ({"output_dir": "o", "phases": [{"run": "sft", "config": "none.yaml"}]}, "`config` of `sft` is none.yaml"),
    ({"output_dir": "o", "phases": [{"run": "train", "config": "smolm2_json"}]}, "did you mean `smollm2_json`?"),
]


@pytest.mark.parametrize(("content", "words"), WRONG)
def test_wrong_lists(options, capsys, content, words):
    assert words in failing(capsys, "phases", write("list.yaml", content))


@pytest.mark.parametrize(
    ("number", "changes", "words"),
    [
        (
            1,
            {"max_step": 1},
            "phase 1 (collect): unknown option in its options: `max_step` (did you",
        ),
        (1, {"max_steps": "many"}, "phase 1 (collect): `max_steps` must be a whole number"),
        (
            2,
            {"learning_rat": 1},
            "phase 2 (sft): `trl sft` has no option `learning_rat` (did you",
        ),
        (2, {"dataset_name": None}, "phase 2 (sft): `dataset_name` is missing"),
        (3, {"model_name_or_path": "a/b/c"}, "phase 3 (train): `model_name_or_path` is the folder a/b/c"),
        (3, {"privileged_source": "colum"}, "phase 3 (train): `privileged_source`: there is no source 'colum'"),
    ],
)
def test_wrong_options_are_told_before_the_first_phase(options, capsys, started, number, changes, words):
    described = three(options)
    described["phases"][number - 1]["options"].update(changes)
    assert words in failing(capsys, "phases", write("list.yaml", described))
    assert started[0] == [] and not Path("out").exists()


def test_a_wrong_launch_option_and_a_list_that_is_not_there(options, capsys):
    described = three(options)
    described["phases"][2]["launch"] = {"num_proceses": 2}
    assert "(did you mean `num_processes`?)" in failing(capsys, "phases", write("list.yaml", described))
    assert "neither a file nor a list of phases" in failing(capsys, "phases", "gone")
    assert "A recipe is YAML" in failing(
        capsys, "phases", str(Path(write("bad.yaml", {})).write_text("a: [") and "bad.yaml")
    )


def test_the_lists_of_the_package(options, capsys, monkeypatch):
    """All are found by name, and every option is one."""
    cli.main(["phases"])
    told = capsys.readouterr().out
    monkeypatch.setattr("trl_opsd.cli.recipe_check.check_folder", lambda option, name: None)
    for path in command.LISTS.glob("*.yaml"):
        assert path.stem in told
        assert command.checked(command.find_list(path.stem), None)
