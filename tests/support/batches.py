# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Micro-batches that a trainer has sampled itself, and what student and teacher read in them."""


def batch_of(trainer):
    """One micro-batch, sampled by the trainer itself."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    generation_batch = next(iter(trainer.get_train_dataloader()))
    return trainer._prepare_inputs(generation_batch)


def teacher_reads(batch, name="privileged"):
    """Token ids of the teacher's prompt of each row, in one view."""
    view = batch["distillation"].views[name]
    return [row[kept.bool()].tolist() for row, kept in zip(view.prompt_ids, view.prompt_mask, strict=True)]


def teacher_answer(trainer, inputs):
    """Hidden states of the teacher on a batch."""
    return trainer.objective._teacher_outputs(
        trainer.model, inputs["distillation"], inputs["distillation"].mask.flatten().nonzero().squeeze(1)
    )[0][0]


def student_prompts(batch):
    """Token ids of the student's prompt of each row."""
    pairs = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    return [row[kept.bool()].tolist() for row, kept in pairs]


def completions(batch):
    """Token ids of the completion of each row."""
    pairs = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    return [row[kept.bool()].tolist() for row, kept in pairs]


def taught_by_row(trainer, batch, name):
    """Texts of the tokens that a view teaches, row by row."""
    rows = zip(
        completions(batch), batch["distillation"].views[name].taught & batch["distillation"].mask.bool(), strict=True
    )
    decode = trainer.processing_class.decode
    return [decode([i for i, kept in zip(ids, mask, strict=False) if kept]) for ids, mask in rows]


def contains(ids, needle):
    """Whether the ids hold these ones in a row."""
    return any(ids[i : i + len(needle)] == needle for i in range(len(ids) - len(needle) + 1))


def taught_by_rollout(trainer, batch):
    """Texts that the views teach, by rollout. Rows that teach nothing have left the micro-batch."""
    marks = batch["distillation"].views["privileged"].taught & (
        batch["distillation"].views["privileged"].weight > 0
    ).unsqueeze(1)
    texts = [""] * len(trainer.collected.rollouts)
    for index, ids, row in zip(batch["distillation"].index.tolist(), completions(batch), marks.tolist(), strict=True):
        texts[index] = trainer.processing_class.decode([i for i, kept in zip(ids, row, strict=False) if kept])
    return texts
