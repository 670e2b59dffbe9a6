# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whose weights answer, and how they follow."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from batches import batch_of, teacher_answer
from conftest import length_reward
from runs import LORA, SAMPLED, move
from trl_opsd.teacher.weights import CopiedWeights, StudentWeights


@pytest.mark.parametrize(
    ("kind", "lora", "weights"),
    [
        ("base", False, CopiedWeights),
        ("base", True, StudentWeights),
        ("live", False, StudentWeights),
        ("live", True, StudentWeights),
        ("ema", False, CopiedWeights),
        ("ema", True, CopiedWeights),
        ("snapshot", True, CopiedWeights),
    ],
)
def test_kinds(make_trainer, kind, lora, weights):
    """Before any step every kind answers as the start; after the student moved, all but `live` still do."""
    options = {"teacher_sync_steps": 2} if kind == "snapshot" else {}
    trainer = make_trainer(teacher_model_kind=kind, peft_config=LORA if lora else None, **options)
    assert type(trainer.teacher.weights) is weights
    inputs = batch_of(trainer)
    start = teacher_answer(trainer, inputs)
    move(trainer.model)
    moved = teacher_answer(trainer, inputs)
    assert torch.equal(start, moved) == (kind != "live")
    assert not start.requires_grad and trainer.model.training
    trainable = [param for param in trainer.model.parameters() if param.requires_grad]
    assert all(param.grad is None for param in trainable)


@pytest.mark.parametrize("init", ["trained", "pissa"])
def test_base_of_an_adapter_that_is_part_of_the_start(make_trainer, tokenizer, init):
    """With the adapter off, a model that came with a trained one (or with PiSSA's) would not be the start."""
    model = tiny.model(tokenizer)
    if init == "trained":
        model = get_peft_model(model, LORA)
        move(model)
        trainer = make_trainer(model)
    else:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
        trainer = make_trainer(model, peft_config=config)
    assert type(trainer.teacher.weights) is CopiedWeights
    inputs = batch_of(trainer)
    start = teacher_answer(trainer, inputs)
    with trainer.model.disable_adapter():
        bare = teacher_answer(trainer, inputs)
    assert not torch.allclose(start, bare, atol=1e-3)
    move(trainer.model)
    assert torch.equal(teacher_answer(trainer, inputs), start)


def test_scores_by_a_float32_head_of_a_bfloat16_teacher(make_trainer, tokenizer):
    """`cast_lm_head_to_fp32` holds for the teacher's head as for the student's."""
    model = tiny.model(tokenizer, tie_word_embeddings=False).to(torch.bfloat16)
    trainer = make_trainer(model, cast_lm_head_to_fp32=True, **SAMPLED)
    inputs = batch_of(trainer)
    logps, _ = trainer.objective._scores(trainer.model, inputs["distillation"])
    index = inputs["distillation"].mask.flatten().nonzero().squeeze(1)
    head = trainer.model.lm_head.weight.float()
    wanted = (teacher_answer(trainer, inputs).float() @ head.T / trainer.args.temperature).log_softmax(-1)
    labels = inputs["completion_ids"].flatten()[index].unsqueeze(1)
    torch.testing.assert_close(logps[0].flatten()[index], wanted.gather(1, labels).squeeze(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("every", [1, 3])
def test_ema_is_the_float32_average(make_trainer, lora, every):
    trainer = make_trainer(
        teacher_model_kind="ema", teacher_update_rate=0.1, teacher_sync_steps=every, peft_config=LORA if lora else None
    )
    expected = {name: tensor.double() for name, tensor in trainer.teacher.weights.copies.items()}
    for step in range(1, 8):
        move(trainer.model, 0.01)
        trainer.teacher.update(step)
        if step % every == 0:
            student = dict(trainer.model.named_parameters())
            for name in expected:
                expected[name] = 0.9 * expected[name] + 0.1 * student[name].double()
    for name, tensor in trainer.teacher.weights.copies.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_ema_of_a_bfloat16_student_moves_at_a_small_rate(make_trainer, tokenizer):
    """In bfloat16 an average at rate 0.001 would round every update away."""
    trainer = make_trainer(
        tiny.model(tokenizer).to(torch.bfloat16), teacher_model_kind="ema", teacher_update_rate=0.001
    )
    name, tensor = next(iter(trainer.teacher.weights.copies.items()))
    start, student = tensor.clone(), dict(trainer.model.named_parameters())[name]
    with torch.no_grad():
        student.add_(0.01)
    for step in range(1, 21):
        trainer.teacher.update(step)
    expected = start + (1 - 0.999**20) * (student.float() - start)
    torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(tensor.to(torch.bfloat16).float(), tensor)
    trainer.train()


def test_snapshot_is_renewed_every_sync_steps(make_trainer):
    trainer = make_trainer(teacher_model_kind="snapshot", teacher_sync_steps=2, max_steps=3)
    start = {name: tensor.clone() for name, tensor in trainer.teacher.weights.copies.items()}
    trainer.train()
    student = dict(trainer.model.named_parameters())
    for name, tensor in trainer.teacher.weights.copies.items():
        assert not torch.equal(tensor, start[name]) and not torch.equal(tensor, student[name])


def test_no_dropout_for_the_teacher_and_the_students_own_stays(make_trainer, tokenizer):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
    trainer = make_trainer(peft_config=config, teacher_model_kind="live")
    inputs = batch_of(trainer)
    modes = [module.training for module in trainer.model.modules()]
    assert torch.equal(teacher_answer(trainer, inputs), teacher_answer(trainer, inputs))
    assert [module.training for module in trainer.model.modules()] == modes and all(modes[:1])


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_a_trained_head_is_not_the_teachers(make_trainer, kind):
    """PEFT's `modules_to_save` trains a copy of the head: a base teacher keeps the old one."""
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(
        tiny.model(tiny.tokenizer(), tie_word_embeddings=False), peft_config=config, teacher_model_kind=kind
    )
    inputs = batch_of(trainer)
    trainer._compute_loss(trainer.model, inputs)
    head = trainer.teacher.head().weight.clone()
    move(trainer.model)
    teacher_answer(trainer, inputs)
    assert torch.equal(trainer.teacher.head().weight, head)
    student = trainer.model.get_base_model().get_output_embeddings().weight
    assert not torch.equal(student, head)


def test_checkpoint_teacher_is_plain_on_policy_distillation(make_trainer, tokenizer, tmp_path):
    """A larger model with the same vocabulary; rows without context are taught from the student's own prompt."""
    folder = tmp_path / "large"
    large = tiny.model(tokenizer, seed=3, hidden_size=64, vocab_size=len(tokenizer) + 5)
    large.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": [{"role": "user", "content": str(i)}]} for i in range(8)]
    trainer = make_trainer(
        dataset=Dataset.from_list(rows), teacher_model_kind="checkpoint", teacher_model_name_or_path=str(folder)
    )
    inputs = batch_of(trainer)
    assert torch.equal(inputs["distillation"].views["privileged"].prompt_ids, inputs["prompt_ids"])
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/view_share"] == 1.0 and log["self_distillation/divergence"] > 0


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, torch.float32),  # the student's
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.float16),  # the folder's
    ],
    ids=str,
)
def test_type_of_the_checkpoint_teacher(make_trainer, tokenizer, tmp_path, given, dtype):
    """Also by the former name of the option."""
    tiny.model(tokenizer).half().save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    options = {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(tmp_path / "half")}
    assert make_trainer(**options, teacher_model_init_kwargs=given).teacher.model.dtype == dtype
    with pytest.raises(ValueError, match="`dtype` and its former name `torch_dtype`"):
        make_trainer(**options, teacher_model_init_kwargs={"dtype": "auto", "torch_dtype": "auto"})


def test_weight_zero_runs_no_teacher(make_trainer):
    trainer = make_trainer(distillation_weight=0.0, reward_funcs=length_reward)
    assert not hasattr(trainer, "teacher")


def test_saved_teacher_state(make_trainer, tmp_path):
    trainer = make_trainer(teacher_model_kind="ema", save_strategy="steps", save_steps=1)
    trainer.train()
    saved = load_file(tmp_path / "out" / "checkpoint-2" / "teacher.safetensors")
    for name, tensor in trainer.teacher.weights.copies.items():
        assert torch.equal(saved[name], tensor)


def teacher_of_checkpoint(make_trainer, tmp_path, spoil, **options):
    """Resume from a checkpoint whose teacher was spoiled, and give the error."""
    make_trainer(teacher_model_kind="ema", save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    spoil(checkpoint)
    trainer = make_trainer(**{"teacher_model_kind": "ema", "max_steps": 3, **options})
    with pytest.raises(ValueError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert str(checkpoint) in str(error.value) and "start the teacher afresh" in str(error.value)
    return str(error.value)


def rewritten(change):
    def spoil(checkpoint):
        tensors = load_file(checkpoint / "teacher.safetensors")
        change(tensors)
        save_file(tensors, checkpoint / "teacher.safetensors")

    return spoil


def other_engine(checkpoint):
    state = json.loads((checkpoint / "teacher_state.json").read_text())
    (checkpoint / "teacher_state.json").write_text(json.dumps(state | {"sharded_by": "FSDP2"}))


SPOILT = {
    "another kind": (lambda checkpoint: None, {"teacher_model_kind": "snapshot", "teacher_sync_steps": 2}, "'ema'"),
    "another engine": (other_engine, {}, "written under FSDP2"),
    "no state": (lambda checkpoint: (checkpoint / "teacher_state.json").unlink(), {}, "but of None"),
    "no weights": (lambda checkpoint: (checkpoint / "teacher.safetensors").unlink(), {}, "No such file"),
    "cut off": (lambda checkpoint: (checkpoint / "teacher.safetensors").write_bytes(b"x" * 99), {}, "does not fit"),
    "another shape": (
        rewritten(lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)})), {},
        "'model.norm.weight' has the shape (3,) there and (32,)",
    ),
    "a parameter less": (rewritten(lambda tensors: tensors.pop("model.norm.weight")), {}, "is missing"),
    "a parameter more": (rewritten(lambda tensors: tensors.update(other=torch.ones(1))), {}, "'other' is there"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_teacher_state_that_does_not_fit(make_trainer, tmp_path, case):
    spoil, options, named = SPOILT[case]
    assert named in teacher_of_checkpoint(make_trainer, tmp_path, spoil, **options)


def test_autocast_does_not_mix_up_student_and_teacher(make_trainer):
    """Within one context, autocast casts a parameter once and remembers the result by the parameter."""
    trainer = make_trainer(teacher_model_kind="base", bf16=True, use_cpu=True)
    inputs = batch_of(trainer)
    start = teacher_answer(trainer, inputs)
    move(trainer.model)

    def student():
        return trainer.model.model(inputs["prompt_ids"]).last_hidden_state

    with torch.autocast("cpu", torch.bfloat16):
        alone = student()
        assert torch.equal(teacher_answer(trainer, inputs), start)
        assert torch.equal(student(), alone)


def test_the_student_gets_its_weights_back(make_trainer):
    """Also where the teacher's forward fails, and with the copies' own memory untouched."""
    trainer = make_trainer(teacher_model_kind="ema")
    own = {name: param.data_ptr() for name, param in trainer.model.named_parameters()}
    parts = {name: part.clone() for name, part in trainer.teacher.weights.copies.items()}
    with pytest.raises(ZeroDivisionError), trainer.teacher.teacher_forward(trainer.model):
        assert all(param.data_ptr() != own[name] for name, param in trainer.model.named_parameters())
        raise ZeroDivisionError
    assert {name: param.data_ptr() for name, param in trainer.model.named_parameters()} == own
    assert trainer.model.training
    assert all(torch.equal(part, parts[name]) for name, part in trainer.teacher.weights.copies.items())


def test_the_start_is_copied_once(make_trainer):
    """`attach` comes again when training begins, where a checkpoint may be in the student by then."""
    trainer = make_trainer(teacher_model_kind="base")
    start = {name: copy.clone() for name, copy in trainer.teacher.weights.copies.items()}
    move(trainer.model)
    trainer.teacher.attach()
    assert all(torch.equal(copy, start[name]) for name, copy in trainer.teacher.weights.copies.items())


def test_the_start_is_copied_from_the_engine(make_trainer, monkeypatch):
    """DeepSpeed and FSDP cast and shard the parameters when training begins: no copy is made before that."""
    monkeypatch.setattr("trl_opsd.engines.Backend.prepares_model_in_train", True)
    trainer = make_trainer(teacher_model_kind="base")
    assert not trainer.teacher.weights.copies
    move(trainer.model)
    trainer.teacher.attach()
    student = dict(trainer.model.named_parameters())
    assert trainer.teacher.weights.copies
    assert all(torch.equal(copy, student[name]) for name, copy in trainer.teacher.weights.copies.items())
