# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl-opsd preflight`: what the teacher reads, what both sides write, and how that is scored."""

import json

import pytest
import yaml

import tiny
from trl_opsd import View
from trl_opsd.cli import main as cli
from trl_opsd.diagnostics.preflight_examples import Example, answer_text, indented
from trl_opsd.examples import data
from trl_opsd.prompts.teacher_prompt import marked


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SCORE = "trl_opsd.examples.tasks.correct_sum"


@pytest.fixture
def recipe(tmp_path, tokenizer):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    options = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_completion_length": 4,
        "bf16": False, "report_to": "none", "gradient_checkpointing": False,
        "privileged_template": "Know this: {privileged_context} Use it.",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    return str(tmp_path / "recipe.yaml")


def test_three_rows_are_shown(recipe, capsys):
    cli.main(["preflight", "--config", recipe, "--rows", "4", "--score", SCORE])
    told = capsys.readouterr().out
    for number in (1, 2, 3):
        assert f"Row {number}, own/privileged. The teacher reads, with the context in [[ ]]:" in told
    assert "Row 4" not in told and told.count("Student, score 0:") == told.count("Teacher, score 0:") == 3
    assert "4 scored prompts are too few" in told and "look yourself" not in told


def test_without_a_score_it_says_what_to_look_at(recipe, capsys):
    cli.main(["preflight", "--config", recipe, "--rows", "8"])
    told = capsys.readouterr().out
    assert told.count("\nStudent:\n") == 3 and "does the teacher read the context" in told
    assert "no prediction is possible" in told


def test_json(recipe, capsys):
    """The whole output is JSON; what the teacher reads is the template's text around the row's context."""
    cli.main(["preflight", "--config", recipe, "--rows", "4", f"--score={SCORE}", "--json"])
    report = json.loads(capsys.readouterr().out)
    (view,) = report["views"]
    assert (view["verdict"], view["scored"], report["student_score"]) == ("unsure", 4, 0.0)
    assert view["p_better"] == 1.0 and len(report["examples"]) == 4
    for example in report["examples"]:
        prompt = example["teacher_prompt"]
        start, end = prompt.index("[["), prompt.index("]]")
        assert prompt[:start].endswith("sentence.\n\nKnow this: ") and prompt[end:].startswith("]] Use it.<|im_end|>")
        assert "=" in prompt[start:end]
        assert example["student_answer"] != "" and example["teacher_score"] == 0.0


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("correct_summ", "`score_func`: TRL has no reward 'correct_summ'"),
        ("trl_opsd.examples.tasks.nothing", "`score_func`: "),
        ("trl_opsd.examples.tasks.text_of", "is no reward function"),
    ],
)
def test_a_score_that_is_none(recipe, capsys, score, told):
    with pytest.raises(SystemExit) as end:
        cli.main(["preflight", "--config", recipe, "--score", score])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.splitlines()[-1].startswith("error: ") and told in error


def test_help(capsys):
    cli.main(["preflight", "--help"])
    assert "--score NAME" in capsys.readouterr().out


# How examples are shown


@pytest.mark.parametrize(
    ("text", "view", "expected"),
    [
        ("What is 4 + 2?\n\n4", View("4"), "What is 4 + 2?\n\n[[4]]"),
        ("4\n\nWhat is 4 + 2?", View("4", place="system"), "[[4]]\n\nWhat is 4 + 2?"),
        ("It is 4. Sum 4?\n\nIt is 4.", View("4", template="It is {privileged_context}."),
         "It is 4. Sum 4?\n\nIt is [[4]]."),
        ("user: a\nassistant: b\nuser: a", View(MESSAGES), "user: [[a]]\nassistant: [[b]]\nuser: a"),
        ("nothing of it", View("4"), "nothing of it"),
    ],
)  # fmt: skip
def test_the_context_is_marked(text, view, expected):
    assert marked(text, view) == expected


def test_long_texts_and_patches_are_cut():
    shown = indented("<|image|>" * 300 + "Hello " * 1_000)
    assert "<|image|> x 300Hello" in shown and len(shown) < 1_700 and "characters ...]" in shown
    assert indented("") == "  | (nothing)" and indented("a\nb") == "  | a\n  | b"


def test_calls_of_tools_are_part_of_an_answer():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ]
    assert answer_text(messages) == ("assistant: {'name': 'add', 'arguments': {'a': 1}}\ntool: 3\nassistant: Three.")
    assert answer_text([{"role": "assistant", "content": "Three."}]) == answer_text("Three.") == "Three."
    lines = Example("own", "v", "p", "s", "t", float("nan"), 0.5).lines(1)
    assert "Student:" in lines and "Teacher, score 0.5:" in lines
