# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""QLoRA: an adapter on a base model in 4 bits, with every kind of teacher, pure and mixed, through checkpoints."""

import json
import shutil

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

import tiny
from batches import batch_of, teacher_answer
from conftest import length_reward
from runs import SAMPLED, assert_same_run, interrupted, move
from trl_opsd.cli import train
from trl_opsd.teacher.weights import CopiedWeights, StudentWeights


bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")

LINEAR = LoraConfig(r=4, target_modules="all-linear")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tokenizer):
    """The tiny model on disk: quantization happens while loading."""
    path = tmp_path_factory.mktemp("model")
    tiny.model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def make(make_trainer, folder):
    """Build a trainer on the tiny model in 4 bits, by the options of `make_trainer`."""

    def build(model=folder, config=NF4, peft_config=LINEAR, **options):
        torch.manual_seed(0)  # of the adapter
        given = {"quantization_config": BitsAndBytesConfig(**config)} if config else {}
        return make_trainer(model, peft_config=peft_config, **given, **options)

    return build


KINDS = ["base", "live", "ema", "snapshot", "checkpoint", "checkpoint in 4 bits", "adapters"]
MODES = {"pure": {}, "mixed": {"reward_funcs": length_reward}, "sampled": {"reward_funcs": length_reward, **SAMPLED}}


@pytest.fixture(scope="session")
def teachers(tmp_path_factory, tokenizer):
    """Options of every kind of teacher, by its name: another model, and an adapter, are on disk."""
    path = tmp_path_factory.mktemp("teachers")
    tiny.model(tokenizer, seed=3).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    checkpoint = {"teacher_model_name_or_path": str(path / "model")}
    options: dict[str, dict] = {
        "snapshot": {"teacher_sync_steps": 2},
        "checkpoint": checkpoint,
        "checkpoint in 4 bits": {**checkpoint, "teacher_model_init_kwargs": {"quantization_config": dict(NF4)}},
        "adapters": {"teacher_adapters": {"privileged": tiny.save_adapter(path / "adapter", 1, 0.3)}},
    }
    return {kind: {"teacher_model_kind": kind.split()[0], **options.get(kind, {})} for kind in KINDS}


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def test_layers_are_in_four_bits_and_the_head_is_not(make):
    trainer = make()
    core = trainer.model.get_base_model()
    assert len(layers_of(core)) == 2 * 7 and type(core.lm_head) is torch.nn.Linear
    trained = {param.dtype for param in trainer.model.parameters() if param.requires_grad}
    assert trained == {torch.bfloat16}, "as TRL casts the adapters of a quantized model"


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_those_of_the_dequantized_weights(make, rows, mode, double):
    """Against the same model with plain matrices of the same values, adapters in float32; after a generation, in whose
    forward bitsandbytes packs weights on some CPUs."""
    data = Dataset.from_list([{**row, "privileged_context": "It is 7."} for row in rows])
    options = {**MODES[mode], "teacher_model_kind": "base", "dataset": data}
    trainer = make(config={**NF4, "bnb_4bit_use_double_quant": double}, **options)
    inputs = batch_of(trainer)
    plain = make(config=None, **options)
    dense = dict(plain.model.named_modules())
    for name, layer in layers_of(trainer.model).items():
        values = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert (values - dense[name].weight).norm() > 0.01 * values.norm()
        dense[name].weight.data = values
    of_adapters = dict(trainer.model.named_parameters())
    for name, param in plain.model.named_parameters():
        if param.requires_grad:
            of_adapters[name].data = of_adapters[name].data.float()
            param.data = of_adapters[name].data + 0.1 * torch.randn_like(param)
            of_adapters[name].data.copy_(param.data)
    plain.current_gradient_accumulation_steps = 1
    losses = [one.compute_loss(one.model, inputs) for one in (trainer, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    for name, param in plain.model.named_parameters():
        if param.requires_grad:
            found, wanted = of_adapters[name].grad, param.grad
            assert (found - wanted).norm() <= 1e-3 * wanted.norm() and wanted.norm() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_teacher(make, teachers, kind):
    """The start stays the teacher while the adapter moves, unless the teacher is live; only adapters are copied."""
    trainer = make(**teachers[kind])
    inputs = batch_of(trainer)
    start = teacher_answer(trainer, inputs)
    move(trainer.model, 0.5)
    assert torch.equal(teacher_answer(trainer, inputs), start) == (kind != "live")
    weights = trainer.teacher.weights
    if isinstance(weights, CopiedWeights):
        assert weights.copies and all("lora_" in name for name in weights.copies)
    else:
        assert isinstance(weights, StudentWeights) == (not kind.startswith("checkpoint"))
    assert bool(layers_of(trainer.teacher.model)) == (kind != "checkpoint")


@pytest.mark.parametrize(("kind", "mode"), [*((kind, mode) for kind in KINDS for mode in ("pure", "mixed")),
                                            ("base", "sampled")])  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one(make, teachers, tmp_path, kind, mode):
    """To the last bit: the adapters stay in bfloat16, where PEFT would load them in float32."""
    options = {**teachers[kind], **MODES[mode], **SAVED}
    whole = make(**options)
    whole.train()
    shutil.rmtree(tmp_path / "out")
    interrupted(make, 2, **options)
    resumed = make(**options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert not torch.equal(*(next(p for p in one.model.parameters() if p.requires_grad) for one in (whole, make())))


def test_a_resumed_adapter_that_is_part_of_the_start(make, tmp_path):
    """Its base teacher is a copy of the adapter, by the very parameters that the checkpoint is loaded into."""

    def build(**options):
        torch.manual_seed(0)
        return make(peft_config=LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), **options)

    whole = build(**SAVED)
    whole.train()
    shutil.rmtree(tmp_path / "out")
    interrupted(build, 2, **SAVED)
    resumed = build(**SAVED)
    assert isinstance(resumed.teacher.weights, CopiedWeights)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_identical_contexts_give_zero(make):
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "seven"}]}] * 8)
    options = {"privileged_source": "bare", "teacher_share_prefix": False}
    trainer = make(dataset=data, teacher_model_kind="live", **options)
    move(trainer.model, 0.5)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    assert loss.item() == 0.0 and trainer._metrics["train"]["self_distillation/view_share"] == [1.0]
    assert all(not param.grad.any() for param in trainer.model.parameters() if param.grad is not None)


def test_the_best_checkpoint_keeps_the_type(make, rows):
    options = {**SAVED, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = make(eval_dataset=Dataset.from_list(rows[:4]), teacher_model_kind="ema", **options)
    params = dict(trainer.model.named_parameters())
    trainer.train()
    assert all(params[name] is param for name, param in trainer.model.named_parameters())
    assert {param.dtype for name, param in params.items() if "lora_" in name} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_head_is_refused(make, tokenizer, tmp_path, tied):
    """A tied one has the embedding's floats as its weight, in a layer that can't multiply by them."""
    tiny.model(tokenizer, tie_word_embeddings=tied).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    everything = {**NF4, "llm_int8_skip_modules": []}
    attention = LoraConfig(r=4, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"Linear4bit.*`llm_int8_skip_modules=\['lm_head'\]`"):
        make(str(tmp_path / "model"), config=everything, peft_config=attention)


@pytest.mark.parametrize("how", ["argument", "options", "loaded"])
def test_vllm_is_refused(make_trainer, make, folder, how):
    """Before an engine is loaded: its sync would change the base model."""
    given = {
        "argument": {"model": folder, "quantization_config": BitsAndBytesConfig(**NF4)},
        "options": {"model": folder, "model_init_kwargs": {"quantization_config": dict(NF4)}},
    }
    options = given.get(how) or {"model": make().model}
    with pytest.raises(ValueError, match=r"`use_vllm=True` does not go with a model in 4 or 8 bits"):
        make_trainer(use_vllm=True, **options)


def test_merging_into_four_bits_changes_the_base_model(make):
    """Why vLLM is refused: TRL merges the adapter and takes it out again at each sync."""
    trainer = make()
    move(trainer.model)
    layer = next(iter(layers_of(trainer.model).values()))
    start = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    trainer.model.merge_adapter()
    trainer.model.unmerge_adapter()
    after = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert (after - start).norm() > 0.01 * start.norm()


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_from_a_recipe(folder, tmp_path, rows, kind):
    """By the options of TRL's own `ModelConfig`."""
    Dataset.from_list(rows).to_json(tmp_path / "data" / "train.jsonl")
    recipe = {
        "model_name_or_path": folder, "dataset_name": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"),
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True, "use_peft": True,
        "lora_r": 4, "lora_target_modules": ["all-linear"], "lora_dropout": 0.0, "dtype": "bfloat16",
        "teacher_model_kind": kind, "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 2,
        "bf16": False, "gradient_checkpointing": True, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train.main(*train.parse(["--config", str(tmp_path / "recipe.yaml")]))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 4 and (tmp_path / "out" / "adapter_model.safetensors").is_file()
