# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns of a model that sees: the second turn is written with the row's images, or others, and trained with its own."""

import pytest
import torch
from datasets import Dataset

import tiny_vlm
from batches import batch_of, student_prompts
from turn_cases import by_role


KINDS = pytest.mark.parametrize("kind", tiny_vlm.KINDS)
RED = {"fixed": {"context": "It is red.", "place": "after_user"}}


def pictured(in_prompt=False):
    rows = []
    for i in range(8):
        image, text = tiny_vlm.image(10 * i, 32), f"What {'very ' * (i % 3)}{i}?"
        if in_prompt:
            content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
            rows.append({"prompt": [{"role": "user", "content": content}]})
        else:
            rows.append({"prompt": [{"role": "user", "content": text}], "images": [image]})
    return Dataset.from_list(rows)


def made(make_trainer, kind, turns, dataset=None, **options):
    return make_trainer(
        tiny_vlm.model(kind), dataset=pictured() if dataset is None else dataset, turns=turns, shuffle_dataset=False,
        processing_class=tiny_vlm.processor(kind), **options,
    )  # fmt: skip


@KINDS
@pytest.mark.parametrize("weights", ["live", "teacher"])
def test_a_second_turn_is_written_with_the_image_and_the_context(make_trainer, kind, weights):
    """The sampler is given the row's pixels with the context's prompt; the bare prompt is trained, with the same."""
    turns = {"slots": ["distil"], "source": RED, "attempt": False, "weights": weights}
    trainer = made(make_trainer, kind, turns, privileged_source="turn_context", max_steps=1, max_completion_length=3)
    seen = []
    generate = trainer.model.generate

    def recorded(*args, **kwargs):
        seen.append({name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)})
        return generate(*args, **kwargs)

    for model in (trainer.model, trainer.teacher.model):
        model.generate = recorded
    batch = batch_of(trainer)
    assert by_role(trainer) == ["distil"] * 4
    (call,) = seen
    decode = trainer.processing_class.tokenizer.decode
    assert all("It is red." in decode(ids) for ids in call["input_ids"])
    pixels = batch["pixel_values"]
    assert call["pixel_values"].numel() == pixels.numel()
    assert call["pixel_values"].double().sum().item() == pytest.approx(pixels.double().sum().item(), rel=1e-5)
    assert not any("It is red." in decode(ids) for ids in student_prompts(batch))
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/divergence"] > 0


def test_roles_under_another_prompt_are_refused(make_trainer):
    kind = tiny_vlm.KINDS[0]
    with pytest.raises(ValueError, match="The role `second` of `turns` trains another prompt than the dataset's"):
        batch_of(
            made(
                make_trainer,
                kind,
                {"slots": ["first", "second"], "source": RED},
                num_generations=2,
                privileged_source="none",
            )
        )


def test_images_in_prompts_are_refused(make_trainer):
    kind = tiny_vlm.KINDS[0]
    with pytest.raises(ValueError, match="`turns` take images from the column `image` or `images`"):
        batch_of(
            made(
                make_trainer,
                kind,
                {"slots": ["distil"], "source": RED},
                pictured(in_prompt=True),
                privileged_source="none",
            )
        )
