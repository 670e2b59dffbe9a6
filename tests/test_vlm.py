# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Vision-language models: which pixels the teacher sees, through TRL's own batches, and what it makes of them."""

import copy

import pytest
import torch
from datasets import Dataset

import tiny_vlm
from conftest import length_reward
from test_places import completions, giving, student_prompts, teacher_reads
from test_trainer_loss import batch_of
from trl_opsd import View
from trl_opsd.images import images_of, rows_of_pixels
from trl_opsd.privileged import ImageView, rollouts_of, with_images, without_images


both_kinds = pytest.mark.parametrize("kind", ["qwen", "llava"])
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
LIVE = {"teacher_model_kind": "live"}


def pictured(counts=(1,), number=8, **columns):
    """Rows of several widths and as many images as `counts` says in turn, each of its own colors and size."""
    rows = []
    for i in range(number):
        images = [tiny_vlm.image(10 * i + j, 32 + 16 * (i % 2)) for j in range(counts[i % len(counts)])]
        row = {"prompt": [{"role": "user", "content": "What " + "very " * (i % 3) + f"{i}?"}], "images": images}
        rows.append(row | {name: made(i) for name, made in columns.items()})
    return Dataset.from_list(rows)


@pytest.fixture
def make(make_trainer):
    def made(kind, dataset=None, **options):
        dataset = pictured() if dataset is None else dataset
        return make_trainer(
            tiny_vlm.model(kind), dataset=dataset, processing_class=tiny_vlm.processor(kind), **options
        )

    return made


def kind_of(trainer):
    return "llava" if "Llava" in type(trainer.model).__name__ else "qwen"


def dense(trainer, prompt_ids, images, completion, temperature=1.0):
    """Log-probabilities `(C, V)` of one row in float64, from the processor's own tensors of its images."""
    model = copy.deepcopy(trainer.model).double().eval()
    model.__dict__.pop("forward", None)
    ids = torch.tensor([prompt_ids + completion])
    seen = {}
    if images:
        text = ["<|image_pad|>" * len(images)]
        seen = dict(trainer.processing_class(images=[images], text=text, return_tensors="pt"))
        seen = {name: seen[name] for name in ("pixel_values", "image_grid_thw") if name in seen}
        seen["pixel_values"] = seen["pixel_values"].double()
    if kind_of(trainer) == "qwen":
        seen["mm_token_type_ids"] = (ids == trainer.processing_class.image_token_id).long()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).logits[0]
    return (logits[len(prompt_ids) - 1 : -1] / temperature).log_softmax(-1)


def rollouts_in(trainer, batch):
    by_index = {rollout.index: rollout for rollout in trainer.collector.rollouts}
    return [by_index[index] for index in batch["rollout_index"].tolist()]


def check_loss(trainer, batch, seen_by_teacher, names=("privileged",)):
    """The loss is the forward KL of a dense computation, row by row, with the pixels that each side is said to see."""
    total, tokens = 0.0, 0
    for row, rollout in enumerate(rollouts_in(trainer, batch)):
        completion = completions(batch)[row]
        log_p = dense(trainer, student_prompts(batch)[row], images_of(rollout.prompt), completion)
        for name in names:
            if not batch[f"teacher_weight/{name}"][row]:
                continue
            images = seen_by_teacher(rollout) if callable(seen_by_teacher) else seen_by_teacher[name](rollout)
            log_q = dense(trainer, teacher_reads(batch, name)[row], images, completion)
            total += (log_q.exp() * (log_q - log_p)).sum().item() / len(names)
            tokens += len(completion) / len(names)
    loss = trainer._compute_loss(trainer.model, batch)
    assert tokens > 0 and loss.item() == pytest.approx(total / tokens, rel=2e-4)
    return loss


@both_kinds
def test_the_loss_equals_a_dense_reference(make, kind):
    """The same image in both contexts, and a text that the student does not read."""
    trainer = make(kind, privileged=giving(View("It is red.")), **LIVE)
    batch = batch_of(trainer)
    loss = check_loss(trainer, batch, lambda rollout: images_of(rollout.prompt))
    assert loss.item() > 1e-3
    loss.backward()
    tower = [param for name, param in trainer.model.named_parameters() if "vis" in name]
    assert any(param.grad is not None and param.grad.abs().max() > 0 for param in tower), "the student sees"
