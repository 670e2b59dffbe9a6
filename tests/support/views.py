# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Privileged sources on real generation batches: the views they give."""

from datasets import Dataset

from batches import batch_of, teacher_reads
from scripted import right, sums, writing
from trl_opsd.privileged import rollouts_of


def giving(*views):
    """A source that gives every rollout these views."""
    return lambda groups: [list(views) for _ in rollouts_of(groups)]


def contexts_of(make_trainer, source, *texts, dataset=None, reward=right, **options):
    """The context of each rollout (`None` without a view), and what the teacher reads, in the order of the batch."""
    size = len(texts[0])
    trainer = make_trainer(
        dataset=dataset or sums(),
        reward_funcs=reward,
        privileged=source,
        rollout_func=writing(*texts),
        num_generations=size,
        per_device_train_batch_size=size * len(texts),
        max_completion_length=200,
        **options,
    )
    batch = batch_of(trainer)
    views = trainer.collected.views
    for row, ids in zip(batch["distillation"].index.tolist(), teacher_reads(batch), strict=True):
        if views[row]:
            assert views[row][0].context in trainer.processing_class.decode(ids), "the teacher reads it"
    return [row[0].context if row else None for row in views]


SUM_ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {a} plus {b}?"}], "solution": f"{a} and {b} make {a + b}."}
    for a, b in ((1, 2), (2, 2), (3, 1), (7, 8))
]


def views_and_reads(make_trainer, source, dataset=None, **options):
    """Views of each rollout of the first batch, what the teacher reads of its first view, and the trainer."""
    dataset = Dataset.from_list(SUM_ROWS) if dataset is None else dataset
    trainer = make_trainer(dataset=dataset, privileged=source, shuffle_dataset=False, **options)
    batch = batch_of(trainer)
    reads = {}
    for name in {view.name for views in trainer.collected.views for view in views}:
        texts = [trainer.processing_class.decode(ids) for ids in teacher_reads(batch, name)]
        by_rollout = dict(zip(batch["distillation"].index.tolist(), texts, strict=True))
        reads[name] = [by_rollout.get(i) for i in range(len(trainer.collected.views))]
    return trainer.collected.views, reads, trainer
