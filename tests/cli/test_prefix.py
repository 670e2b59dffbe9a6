# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Prefixes of recipes, and questions about a document."""

import json

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM

import tiny
from batches import batch_of
from trl_opsd.cli import main as cli
from trl_opsd.cli import train
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.prefix import check_prefix
from trl_opsd.cli.self_study import KINDS, random_chunk, study
from trl_opsd.examples import data, document


TEXT = "The shop opens at nine. It is closed on Sundays."
GOOD = {"prefix_tokens": 8, "gradient_checkpointing": False}


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """Path of a recipe with a prefix that starts from a text, and what changes it."""
    for part in (tiny.model(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    rows = [{"prompt": [{"role": "user", "content": "q" * n}], "privileged_context": TEXT} for n in (3, 20, 9, 5)]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text(TEXT + "\n")

    def write(**options):
        values = {
            "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"), "max_steps": 2,
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "report_to": "none", "bf16": False,
            "max_completion_length": 8, "save_strategy": "no", "learning_rate": 0.1, "privileged_place": "system",
            **GOOD, "prefix_text": str(tmp_path / "text.txt"), **options,
        }  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return path

    return write


def built(path):
    parsed = train.parse(["--config", str(path)])
    return train.build_trainer(*parsed[:3], train.load_data(parsed[0], parsed[3]))


def test_a_prefix_that_starts_from_the_whole_text_is_the_text(recipe, tokenizer):
    """As many tokens as the system message has: nothing is left to learn, but for the frozen ones in no case."""
    whole = len(tokenizer.apply_chat_template([{"role": "system", "content": TEXT}])["input_ids"])
    trainer = built(recipe(prefix_tokens=whole, prefix_frozen=2))
    trainer._compute_loss(trainer.model, batch_of(trainer))
    assert abs(trainer._metrics["train"]["self_distillation/divergence"][-1]) < 3e-7
    assert [len(param) for param in trainer.model.parameters() if param.requires_grad] == [whole - 2]


@pytest.mark.parametrize("start", ["text", "random"])
def test_a_recipe_trains_and_saves_a_prefix(recipe, tmp_path, capsys, start):
    path = recipe(**({} if start == "text" else {"prefix_text": None}))
    first = built(path).model.prompt_encoder["default"]
    cli_line = ["train", "--config", str(path)]
    train.main(*train.parse(cli_line[1:]))
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    saved = model.prompt_encoder["default"]
    assert model.peft_config["default"].num_virtual_tokens == 8
    assert torch.equal(saved.frozen_embedding, first.frozen_embedding) and len(saved.frozen_embedding) == 1
    assert not torch.equal(saved.trainable_embedding, first.trainable_embedding)
    capsys.readouterr()
    cli.main(["chat", str(tmp_path / "out"), "When?", "--max_new_tokens", "4", "--context", TEXT])
    assert capsys.readouterr().out.startswith("student: ")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prefix_tokens": 1000}, r"`prefix_text` .* has fewer tokens than `prefix_tokens=1000`"),
        ({"prefix_text": "no/such.txt"}, r"`prefix_text` is no/such.txt, which can't be read"),
    ],
)
def test_texts_that_cannot_be_a_start(recipe, options, match):
    with pytest.raises(UserError, match=match):
        built(recipe(**options))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"prefix_text": "a.txt"}, "`prefix_text` belongs to a prefix"),
        ({"prefix_frozen": 1}, "`prefix_frozen` belongs to a prefix"),
        ({**GOOD, "prefix_tokens": "0"}, "`prefix_tokens` must be at least 1, got 0"),
        ({**GOOD, "prefix_frozen": 8}, "`prefix_frozen` must be from 0 to `prefix_tokens` - 1"),
        ({**GOOD, "use_peft": True}, "`use_peft` is LoRA"),
        ({**GOOD, "use_vllm": "true"}, "`use_vllm` would sample without the prefix"),
        ({"prefix_tokens": 8}, "`gradient_checkpointing` is true by default"),
    ],
)
def test_options_beside_a_prefix(given, match):
    with pytest.raises(UserError, match=match):
        check_prefix(given)


def test_the_memory_of_a_prefix_is_not_estimated(recipe, capsys):
    with pytest.raises(SystemExit):
        cli.main(["estimate", "--config", str(recipe()), "--gpu_gb", "80"])
    assert "`prefix_tokens`" in capsys.readouterr().err


def test_questions_are_asked_about_their_own_part():
    """A scripted model asks about the first sentence of the part that it is shown; what repeats is asked for anew."""
    asked = []

    def write(prompts):
        asked.append(len(prompts))
        shown = [prompt[0]["content"].split("\n\n")[1] for prompt in prompts]
        return [f'"About {part.split(".")[0]}?"\nMore.' for part in shown]

    text = " ".join(f"Fact {i} is here." for i in range(50))
    rows = study(text, 20, 8, list(KINDS), seed=0, write=write)
    assert (
        asked[0] == 20 and len(asked) == 2 and asked[1] == 20 - len({r["question"] for r in rows[: asked[0]]})
    ) or rows
    assert len({row["question"] for row in rows}) == len(rows) <= 20
    for row in rows:
        assert row["question"] == f"About {row['privileged_context'].split('.')[0]}?"
        assert row["privileged_context"] in text and len(row["privileged_context"].split()) <= 8
    assert {row["kind"] for row in rows} == set(KINDS)
    assert study(text, 20, 8, list(KINDS), seed=0, write=write) == rows


def test_a_part_has_whole_sentences():
    import random

    sentences = [f"Sentence number {i}." for i in range(10)]
    for seed in range(20):
        part = random_chunk(sentences, 7, random.Random(seed))
        assert part in " ".join(sentences) and part.endswith(".") and 1 <= part.count("Sentence") <= 3


def test_the_command_writes_rows_that_train(recipe, tmp_path, capsys):
    recipe()
    line = ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "study"), "--rows", "6"]
    line += ["--chunk_words", "5", "--max_new_tokens", "8", "--temperature", "1", "--suffix", " Be brief."]
    cli.main(["self_study", str(tmp_path / "text.txt"), *line])
    rows = [json.loads(text) for text in (tmp_path / "study" / "train.jsonl").read_text().splitlines()]
    assert f"{len(rows)} questions are in" in capsys.readouterr().out and 1 <= len(rows) <= 6
    assert all(row["prompt"][0]["content"].endswith(" Be brief.") and row["privileged_context"] in TEXT for row in rows)
    assert {"prompt", "privileged_context", "kind"} == set(rows[0])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (["no/such.txt"], "the document no/such.txt can't be read"),
        (["{text}", "--rows", "0"], "`--rows` must be at least 1"),
    ],
)
def test_mistakes_of_the_command(recipe, tmp_path, capsys, line, match):
    recipe()
    line = [part.format(text=tmp_path / "text.txt") for part in line]
    with pytest.raises(SystemExit):
        cli.main(["self_study", *line, "--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "study")])
    assert match in capsys.readouterr().err


def test_the_example_document(tmp_path):
    """Each answer stands in its sentence and in no question, each training context holds its fact, and no training
    request is a question of the test."""
    folder = data.prepare("document", tmp_path / "document")
    rows = {split: [json.loads(t) for t in (folder / f"{split}.jsonl").read_text().splitlines()] for split in
            ("train", "test")}  # fmt: skip
    other = (tmp_path / "document_other" / "text" / "document.txt").read_text()
    text = (folder / "text" / "document.txt").read_text().strip()
    assert len(rows["test"]) == 40 and text == document.document()
    for row in rows["test"] + rows["train"]:
        assert document.names_answer([row["privileged_context"]], [row["answer"]]) == [1.0]
        assert document.names_answer([row["prompt"][0]["content"]], [row["answer"]]) == [0.0]
        assert row["privileged_context"] in text and row["privileged_context"] not in other
    asked = {split: {row["prompt"][0]["content"] for row in rows[split]} for split in rows}
    assert len(asked["train"]) == 80 and len(asked["test"]) == 40 and not asked["train"] & asked["test"]
