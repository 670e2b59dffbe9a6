# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Generation batches of rows that are drawn from the training data, and collectors of the sources to be compared."""

import copy
import itertools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from trl_opsd.privileged import as_source
from trl_opsd.rollouts.view import PrivilegedSource
from trl_opsd.trainer.rehearsal import generation_batches, training_rows
from trl_opsd.trainer.setup_checks import check_datasets
from trl_opsd.trainer.view_collector import ViewCollector


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

OWN = "own"  # name of the trainer's source in a report
Note = Callable[[str], None]


def drawn_batches(trainer: "OPSDTrainer", rows: int, note: Note) -> list[list[dict[str, Any]]]:
    """
    The local part of each generation batch: each row as often as it is sampled, groups side by side.

    Args:
        trainer ([`OPSDTrainer`]): Whose training data.
        rows (`int`): Rows to draw, rounded up to whole generation batches.
        note (`Callable[[str], None]`): Told if there are fewer.

    Raises:
        ValueError: If the data has too few rows for one generation batch.
    """
    dataset = trainer.train_dataset
    size = trainer.args.generation_batch_size // trainer.num_generations
    wanted = -(-rows // size) * size
    if isinstance(dataset, Dataset):
        numbers = random.Random(trainer.args.seed).sample(range(len(dataset)), min(wanted, len(dataset)))
        chosen = training_rows(trainer, numbers)
    else:
        chosen = list(itertools.islice(dataset, wanted))
    if len(chosen) < size:
        raise ValueError(
            f"`train_dataset` has {len(chosen)} rows, and one generation batch takes {size}: it could not be "
            "trained on either. Lower `per_device_train_batch_size` or `steps_per_generation`."
        )
    if len(chosen) < wanted:
        note(f"the dataset has {len(chosen)} rows, fewer than were asked for.")
    return generation_batches(trainer, chosen)


def compared_collectors(trainer: "OPSDTrainer", sources: Mapping[str, PrivilegedSource]) -> dict[str, ViewCollector]:
    """
    A collector for the trainer's source, under `OWN`, and for each further one, which are set up. They write no files,
    and drop what is too long where the training would stop.

    Args:
        trainer ([`OPSDTrainer`]): Whose source, data and options.
        sources (`Mapping[str, PrivilegedSource]`): Further sources by name.

    Raises:
        ValueError: If one has the name of the trainer's own, or does not fit the data or the run.
    """
    if OWN in sources:
        raise ValueError(f"`sources` must not be named {OWN!r}: that is the trainer's own source.")
    own = trainer.collector
    args, encoder = copy.copy(trainer.args), copy.copy(own.encoder)
    args.log_privileged_context = False  # those files are of training
    if encoder.overlong == "error":
        encoder.overlong = "drop_view"  # to be counted and reported
    everyone = {OWN: trainer.privileged, **{name: as_source(source) for name, source in sources.items()}}
    collectors = {
        name: ViewCollector(args, source, encoder, trainer.accelerator, own.required)
        for name, source in everyone.items()
    }
    for name in sources:
        check_datasets(everyone[name], trainer.train_dataset, None)
        everyone[name].check_run(trainer.has_reward, args.num_generations)
        collectors[name].setup(own.run)
    return collectors
