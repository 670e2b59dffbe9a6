# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""LoRA on the experts of a mixture (`target_parameters`): every kind of teacher, and one balancing loss a step."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen3_moe import modeling_qwen3_moe

from batches import batch_of, teacher_answer
from conftest import length_reward
from families import small_model
from runs import SAMPLED, assert_same_run, interrupted, move
from trl_opsd.teacher.weights import CopiedWeights


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
KINDS = {
    "base": {},
    "live": {},
    "ema": {"teacher_update_rate": 0.3},
    "snapshot": {"teacher_sync_steps": 2},
    "checkpoint": {},
}
MODES = {"pure": {}, "mixed": {"reward_funcs": length_reward}, "sampled": {"reward_funcs": length_reward, **SAMPLED}}

PAIRS = [("base", "pure"), ("base", "mixed"), ("live", "sampled"), ("ema", "mixed"), ("snapshot", "pure"),
         ("checkpoint", "sampled")]  # fmt: skip


def on_experts(**options):
    return LoraConfig(r=4, target_modules=["q_proj"], target_parameters=EXPERTS, **options)


@pytest.fixture
def make(make_trainer, tokenizer, tmp_path):
    """Build a trainer on a tiny mixture of experts with LoRA on them."""

    def build(kind="base", peft_config=None, **options):
        given = {"teacher_model_kind": kind, **KINDS[kind], **options}
        if kind == "checkpoint":
            if not (tmp_path / "other").exists():
                small_model("qwen3_moe", tokenizer, seed=3).save_pretrained(tmp_path / "other")
                tokenizer.save_pretrained(tmp_path / "other")
            given["teacher_model_name_or_path"] = str(tmp_path / "other")
        return make_trainer(small_model("qwen3_moe", tokenizer), peft_config=peft_config or on_experts(), **given)

    return build


def trained(trainer):
    return {name: param for name, param in trainer.model.named_parameters() if param.requires_grad}


def test_the_experts_are_trained(make):
    trainer = make()
    start = {name: param.detach().clone() for name, param in trained(trainer).items()}
    trainer.train()
    moved = [name for name, param in trained(trainer).items() if not torch.equal(param, start[name])]
    assert sum("experts" in name and "lora_B" in name for name in moved) == 4, "two parameters of each of two layers"


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_teacher(make, kind):
    """The start stays the teacher while the experts' adapter moves, unless the teacher is live."""
    trainer = make(kind)
    inputs = batch_of(trainer)
    start = teacher_answer(trainer, inputs)
    move(trainer.model)
    assert torch.equal(teacher_answer(trainer, inputs), start) == (kind != "live")
    if isinstance(trainer.teacher.weights, CopiedWeights):
        assert any("experts" in name for name in trainer.teacher.weights.copies)


def test_the_base_teacher_is_the_model_without_the_adapter(make, tokenizer):
    """Also after the experts have moved, against the model that no adapter is in."""
    trainer = make()
    move(trainer.model)
    inputs = batch_of(trainer)
    view = inputs["distillation"].views["privileged"]
    with trainer.teacher.teacher_forward(trainer.model) as teacher:
        adapted = teacher(view.prompt_ids, view.prompt_mask).logits
    plain = small_model("qwen3_moe", tokenizer).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted, plain(view.prompt_ids, view.prompt_mask).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_a_resumed_run_is_the_uninterrupted_one(make, tmp_path, kind, mode):
    options = {**MODES[mode], **SAVED}
    whole = make(kind, **options)
    whole.train()
    shutil.rmtree(tmp_path / "out")
    interrupted(lambda **given: make(kind, **given), 2, **options)
    resumed = make(kind, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_one_balancing_loss_for_a_micro_batch(make, monkeypatch, kind, mode):
    """Of the student's forward; the teacher's has none, whatever its config says. Its gradient is in the routers where
    they are trained, at its coefficient, and nowhere in the teacher."""
    whole = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=[*EXPERTS, "mlp.gate.weight"])
    trainer = make(kind, whole, router_aux_loss_coef=0.5, **MODES[mode])
    assert trainer.aux_loss_enabled
    inputs, computed = batch_of(trainer), []
    for module in (modeling_mixtral, modeling_qwen3_moe):  # TRL's, and the model's own

        def counted(*args, inner=module.load_balancing_loss_func):
            computed.append(inner(*args))
            return computed[-1]

        monkeypatch.setattr(module, "load_balancing_loss_func", counted)
    loss = trainer._compute_loss(trainer.model, inputs)
    assert len(computed) == 1 and computed[0].requires_grad
    trainer.aux_loss_enabled = False
    without = trainer._compute_loss(trainer.model, inputs)
    assert len(computed) == 1, "nobody asks for it then"
    torch.testing.assert_close(loss - without, 0.5 * computed[0], rtol=1e-4, atol=1e-5)
    routers = [param for name, param in trained(trainer).items() if "gate.lora_B" in name]
    (with_balance,) = [torch.autograd.grad(loss, routers)]
    (alone,) = [torch.autograd.grad(without, routers)]
    assert any((one - other).norm() > 1e-5 for one, other in zip(with_balance, alone, strict=True))


def test_an_adapter_on_experts_is_no_teacher(make, tokenizer, tmp_path):
    """`adapters` knows plain ones on linear layers."""
    from peft import get_peft_model

    get_peft_model(small_model("qwen3_moe", tokenizer), on_experts()).save_pretrained(tmp_path / "experts")
    options = {"teacher_model_kind": "adapters", "teacher_adapters": {"privileged": str(tmp_path / "experts")}}
    with pytest.raises(ValueError, match="a LoRA with target_parameters: it must be a plain one"):
        make(**options)


def test_rows_beyond_a_context_keep_their_experts(make):
    """Identical contexts give exactly zero, adapter on the experts or not: both sides route alike."""
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "seven"}]}] * 8)
    options = {"privileged_source": "bare", "teacher_share_prefix": False, "router_aux_loss_coef": 0.0}
    trainer = make("live", on_experts(), dataset=data, **options)
    move(trainer.model)
    assert trainer.compute_loss(trainer.model, batch_of(trainer)).item() == 0.0
