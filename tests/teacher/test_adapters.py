# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`teacher_model_kind='adapters'`: LoRA adapters on the student's base model, each for the views of its name."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tiny
from batches import batch_of
from conftest import length_reward
from scripted import long_answers
from tiny import save_adapter
from trl_opsd import OPSDConfig
from trl_opsd.teacher.adapters import Adapter


NAMES = ["math", "code"]


def lora(**options):
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **options})


@pytest.fixture
def folders(tmp_path):
    """Two adapters of other ranks and modules than the student's."""
    first = save_adapter(tmp_path / "math", 1, 0.3)
    return {"math": first, "code": save_adapter(tmp_path / "code", 2, 0.3, r=2, target_modules=["k_proj", "up_proj"])}


ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}?"}],
        "privileged_context": f"It is {i}.",
        "skill": NAMES[i % 2],
    }
    for i in range(8)
]
BY_ROW = {"privileged_source": {"column": {"name_column": "skill"}}}


def trainer_of(make_trainer, adapters, rows=ROWS, **options):
    given = {
        "peft_config": lora(init_lora_weights=False), "per_device_train_batch_size": 8, "rollout_func": long_answers,
        "shuffle_dataset": False, **options,
    }  # fmt: skip
    torch.manual_seed(5)  # of the student's adapter
    return make_trainer(
        dataset=Dataset.from_list(rows), teacher_model_kind="adapters", teacher_adapters=adapters, **given
    )


def gradients(trainer):
    """Of the sum over the distilled tokens, and the mean divergence of a token."""
    batch = batch_of(trainer)
    tokens = batch["distillation"].counts.distilled_tokens.item()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: tokens * one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
    return found, loss.item()


def test_it_computes_what_peft_does(folders):
    """To the last bit, at scale 1; and s times its own part at scale s."""
    ids = torch.arange(12).reshape(2, 6)
    for folder in folders.values():
        base = tiny.model(tiny.tokenizer()).eval()
        plain = base(ids).logits
        theirs = type(get_peft_model(tiny.model(tiny.tokenizer()), lora())).from_pretrained(
            tiny.model(tiny.tokenizer()), folder
        )
        with Adapter(base, folder, 1.0).added():
            ours = base(ids).logits
        assert torch.equal(ours, theirs.eval()(ids).logits) and not torch.equal(ours, plain)
        assert torch.equal(base(ids).logits, plain), "the hooks are gone"
        with Adapter(base, folder, 0.0).added():
            assert torch.equal(base(ids).logits, plain)


@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_the_size_of_what_it_adds(folders, scale):
    base = tiny.model(tiny.tokenizer())
    for folder in folders.values():
        adapter = Adapter(base, folder, scale)
        dense = sum(
            ((b.double() @ a.double()) * adapter.factor).square().sum().item() for a, b in adapter.parts.values()
        )
        assert adapter.square_sum() == pytest.approx(dense, rel=1e-9)


def test_an_adapter_of_zeros_teaches_what_the_base_does(make_trainer, tmp_path):
    """The student's adapter is new, so that `base` is the model without it."""
    folder = save_adapter(tmp_path / "zeros", 0, 0.0)
    own = {"peft_config": lora(), "max_steps": 3, "learning_rate": 0.1}
    ours = trainer_of(make_trainer, {"privileged": folder}, **own)
    ours.train()
    torch.manual_seed(5)
    theirs = make_trainer(
        dataset=Dataset.from_list(ROWS), teacher_model_kind="base", per_device_train_batch_size=8,
        rollout_func=long_answers, shuffle_dataset=False, **own,
    )  # fmt: skip
    theirs.train()
    others = dict(theirs.model.named_parameters())
    assert all(torch.equal(one, others[name]) for name, one in ours.model.named_parameters())
    assert ours.state.log_history[-2]["self_distillation/divergence"] > 0


@pytest.mark.parametrize("mode", [{}, {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}])
def test_the_students_own_adapter_with_its_own_prompt_teaches_nothing(make_trainer, tmp_path, mode):
    options = {"privileged_source": "bare", "teacher_share_prefix": False, **mode}
    probe = trainer_of(make_trainer, {"privileged": save_adapter(tmp_path / "any", 3)}, **options)
    probe.model.save_pretrained(tmp_path / "own")
    trainer = trainer_of(make_trainer, {"privileged": str(tmp_path / "own")}, **options)
    found, loss = gradients(trainer)
    assert loss == pytest.approx(0.0, abs=1e-7) and max(one.abs().max() for one in found.values()) < 1e-4
    half = trainer_of(make_trainer, {"privileged": {"folder": str(tmp_path / "own"), "scale": 0.5}}, **options)
    assert max(one.abs().max() for one in gradients(half)[0].values()) > 1e-2


@pytest.mark.parametrize("live", [False, True], ids=["adapters alone", "beside a live view"])
def test_two_adapters_by_row_are_two_runs_of_one_each(make_trainer, folders, live):
    """In one batch, and each on its own rows; sums over tokens, so that both together are the one."""
    beside = {"fixed": {"context": "Think.", "name": "own", "reader": "live"}}
    source = {"all_of": [BY_ROW["privileged_source"], beside]} if live else BY_ROW["privileged_source"]
    both, _ = gradients(trainer_of(make_trainer, folders, privileged_source=source))
    apart = []
    for name in NAMES:
        rows = [row for row in ROWS if row["skill"] == name]
        one = trainer_of(
            make_trainer, {name: folders[name]}, rows, privileged_source=source, per_device_train_batch_size=4
        )
        apart.append(gradients(one)[0])
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, apart[0][name] + apart[1][name], rtol=1e-3, atol=1e-4)
    swapped = {"math": folders["code"], "code": folders["math"]}
    other, _ = gradients(trainer_of(make_trainer, swapped, privileged_source=source))
    assert any((one - other[name]).abs().max() > 1e-2 for name, one in both.items())


def test_rows_without_a_context_by_name(make_trainer, folders):
    """Each row's own prompt, read by the adapter that the row names."""
    rows = [{**row, "privileged_context": None} for row in ROWS]
    source = {"column": {"name_column": "skill", "teach_bare_rows": True}}
    trainer = trainer_of(make_trainer, folders, rows, privileged_source=source)
    batch_of(trainer)
    assert [[(view.name, view.context) for view in views] for views in trainer.collected.views] == [
        [(NAMES[i % 2], None)] for i in range(8)
    ]
    assert [sorted(one.views) for one in batch_of(trainer)["distillation"].teacher_batches] == [["math"], ["code"]]


def test_only_the_student_is_trained_and_saved(make_trainer, folders, tmp_path):
    trainer = trainer_of(make_trainer, folders, **BY_ROW, max_steps=2, save_strategy="steps", save_steps=2)
    before = {name for name, _ in trainer.model.named_parameters()}
    trainer.train()
    assert {name for name, _ in trainer.model.named_parameters()} == before and not trainer.model._forward_hooks
    assert [*trainer.model.peft_config] == ["default"]
    folder = tmp_path / "out" / "checkpoint-2"
    assert sorted(json.loads((folder / "teacher_state.json").read_text())["adapters"]) == ["code", "math"]


def test_a_resumed_run(make_trainer, folders, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "steps_per_generation": 1, **BY_ROW}
    whole = trainer_of(make_trainer, folders, output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    again = trainer_of(make_trainer, folders, output_dir=str(tmp_path / "again"), **options)
    again.train(resume_from_checkpoint=checkpoint)
    others = dict(whole.model.named_parameters())
    assert all(torch.equal(one, others[name]) for name, one in again.model.named_parameters())
    changed = {**folders, "code": {"folder": folders["code"], "scale": 0.5}}
    with pytest.raises(ValueError, match="trained against other adapters"):
        trainer_of(make_trainer, changed, output_dir=str(tmp_path / "other"), **options).train(
            resume_from_checkpoint=checkpoint
        )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "needs `teacher_adapters`"),
        ({}, "needs `teacher_adapters`"),
        ({"a": 3}, "gives the view 'a' 3: it must be a folder"),
        ({"a": {"scale": 1.0}}, "it must be a folder, or"),
        ({"a": {"folder": "x", "scale": "much"}}, "with a number"),
        ({"a": {"folder": "x", "weight": 1.0}}, "it must be a folder, or"),
    ],
)
def test_mistakes_of_the_option(given, text):
    with pytest.raises(ValueError, match=text):
        OPSDConfig("unused", bf16=False, teacher_model_kind="adapters", teacher_adapters=given)


def test_mistakes_of_folders(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        OPSDConfig("unused", bf16=False, teacher_model_kind="adapters", teacher_adapters={"a": str(tmp_path)})
    with pytest.raises(ValueError, match="`eval_teacher_prompts` lets the teacher write"):
        two = {"a": "x", "b": "y"}
        OPSDConfig("unused", bf16=False, teacher_model_kind="adapters", teacher_adapters=two, eval_teacher_prompts=1)


def test_mistakes_of_adapters(make_trainer, tmp_path):
    good = save_adapter(tmp_path / "good", 1)
    cases = {
        str(tmp_path / "nowhere"): "which has no adapter_config.json",
        "nobody": "which holds no adapter of PEFT's",
        save_adapter(tmp_path / "dora", 1, use_dora=True): "a LoRA with use_dora: it must be a plain one",
        save_adapter(tmp_path / "bias", 1, bias="lora_only"): "a LoRA with bias",
    }
    for folder, text in cases.items():
        with pytest.raises(ValueError, match=text):
            trainer_of(make_trainer, {"privileged": folder})
    model = get_peft_model(tiny.model(tiny.tokenizer(), hidden_size=16), lora())
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="the student has no linear layer of that name and size"):
        trainer_of(make_trainer, {"privileged": str(tmp_path / "small")})
    with pytest.raises(ValueError, match="needs a student that trains an adapter"):
        trainer_of(make_trainer, {"privileged": good}, peft_config=None)
    with pytest.raises(ValueError, match="`init_lora_weights='pissa'` changes it"):
        trainer_of(make_trainer, {"privileged": good}, peft_config=lora(init_lora_weights="pissa"))


def test_a_view_without_an_adapter(make_trainer, folders):
    trainer = trainer_of(make_trainer, folders)
    with pytest.raises(ValueError, match=r"a view named 'privileged', and `teacher_adapters` has \['math', 'code'\]"):
        batch_of(trainer)


def test_a_batch_without_views_trains_nothing(make_trainer, folders):
    trainer = trainer_of(make_trainer, folders, privileged_source=None, privileged=lambda groups: [[]] * 8, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0


def test_several_adapters_write_nothing(make_trainer, folders):
    trainer = trainer_of(make_trainer, folders, reward_funcs=length_reward, policy_weight=0.0, **BY_ROW)
    with pytest.raises(ValueError, match="asked to write a text"):
        trainer.text_generator(["Hm"], weights="teacher", max_new_tokens=2)
    one = trainer_of(make_trainer, {"math": folders["math"]}, **BY_ROW)
    assert isinstance(one.text_generator(["Hm"], weights="teacher", max_new_tokens=2)[0], str)


@pytest.mark.parametrize(
    ("rows", "source", "text"),
    [
        (ROWS, {"name_column": "skil"}, "no column `skil`"),
        (
            [{**ROWS[0], "skill": None}, *ROWS],
            {"name_column": "skill"},
            "Row 0 of `train_dataset` has None in the column",
        ),
        (ROWS, {"column": ["privileged_context"], "name_column": "skill"}, "leave out one of them"),
    ],
)
def test_mistakes_of_names(make_trainer, folders, rows, source, text):
    with pytest.raises(ValueError, match=text):
        trainer_of(make_trainer, folders, rows, privileged_source={"column": source})
