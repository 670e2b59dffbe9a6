# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Records of single tokens of checkpoints: the same prompts answered by each, and what the teacher makes of it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.logging import get_logger
from peft import PeftModel
from peft.utils import CONFIG_NAME

from trl_opsd.batches.distillation_batch import KEY
from trl_opsd.diagnostics.drawn_batches import drawn_batches
from trl_opsd.diagnostics.preserve_trainer_state import preserve_trainer_state
from trl_opsd.engines import Backend
from trl_opsd.engines.random_state import keep_random_state
from trl_opsd.rollouts.rollout import reaches
from trl_opsd.token_report.load import CHECKPOINTS, Group
from trl_opsd.token_report.record import Line, rounded
from trl_opsd.trainer.scoring import Scorer


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

logger = get_logger(__name__)

START = "start"  # names the weights that the training starts from


def checkpoint_tokens(trainer: "OPSDTrainer", checkpoints: Sequence[str], rows: int = 8) -> list[Group]:
    """
    Let each checkpoint answer the same prompts, and record single tokens of these answers, for a token report.

    Prompts are drawn from the training set. Each checkpoint answers with the same random numbers, as often as in
    training, so that every source of contexts has its groups; the first answer to each prompt is recorded. The trainer
    has the weights of the last checkpoint afterwards, and is not meant to be trained.

    Args:
        trainer ([`OPSDTrainer`]): Not trained, in one process.
        checkpoints (`list[str]`): Folders that hold weights of its model, or its adapter; `"start"` names the weights
            that it has.
        rows (`int`, *optional*, defaults to `8`): Prompts.

    Returns:
        `list[Group]`: One for each checkpoint, in their order.

    Raises:
        ValueError: If a folder does not hold what the trainer trains, or a teacher that follows the student has no
            state there.
    """
    _check(trainer, checkpoints)
    groups = {}
    with preserve_trainer_state(trainer):
        batches = drawn_batches(trainer, rows, lambda text: logger.warning(f"Token report: {text}"))
        # Before the first folder takes the place of these weights
        for name in sorted(checkpoints, key=lambda name: name != START):
            if name != START:
                trainer.load_weights(Path(name))
            head, lines = _answers(trainer, batches, rows)
            same = trainer.teacher.name == "live" or (name == START and trainer.teacher.starts_as_student)
            groups[name] = Group(_label(name), head, lines, same, CHECKPOINTS)
    return [groups[name] for name in checkpoints]


def _check(trainer: "OPSDTrainer", checkpoints: Sequence[str]) -> None:
    if trainer.is_plain_grpo:
        raise ValueError("A token report compares teacher and student; this trainer has no teacher (see its `args`).")
    if Backend(trainer.accelerator).prepares_model_in_train or trainer.accelerator.num_processes > 1:
        raise ValueError("Checkpoints are recorded in one process, without DeepSpeed or FSDP.")
    if len(set(checkpoints)) < len(checkpoints):
        raise ValueError(f"Each checkpoint can be named once, got {', '.join(checkpoints)}.")
    trains_adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    for name in checkpoints:
        folder = Path(name)
        if name == START:
            continue
        if not folder.is_dir():
            raise ValueError(
                f"There is no folder {name}: name checkpoints of the training, or {START!r} for its start."
            )
        if (folder / CONFIG_NAME).is_file() != trains_adapter:
            holds, trains = ("all weights", "an adapter") if trains_adapter else ("an adapter", "all weights")
            raise ValueError(f"The checkpoint {name} holds {holds}, and the recipe trains {trains}: they must agree.")


def _answers(trainer: "OPSDTrainer", batches: list[list[dict]], rows: int) -> tuple[Line, list[Line]]:
    """Head and lines of a record: the first answer to each prompt under the weights as they are."""
    log, each = copy.copy(trainer.token_log), trainer.num_generations
    log.lines, found = [], []
    scorer = Scorer(trainer, trainer.score_func) if trainer.score_func else None
    with keep_random_state(trainer.accelerator.device, trainer.args.seed):
        for number, batch in enumerate(batches):
            sampled = trainer.sample(batch)
            micro_batches = trainer.micro_batches(sampled)
            log.know(micro_batches[0][KEY].generation, trainer.collected.known())
            for micro_batch in micro_batches:
                firsts = [row for row, index in enumerate(micro_batch[KEY].index.tolist()) if index % each == 0]
                trainer.score_tokens(micro_batch, log, firsts)
            scores = scorer.of_rollouts(trainer.collected.rollouts) if scorer else []
            for line in log.lines[len(found) :]:
                if scorer:
                    score = scores[line["index"]]
                    right = reaches(score, trainer.args.success_reward_threshold)
                    line |= {"rewards": {**line["rewards"], "score": rounded(score)}, "success": right}
                line["index"] = line["index"] // each + number * len(batch) // each
            found = list(log.lines)
    head, lines = log.gathered()
    return head, lines[:rows]


def _label(name: str) -> str:
    return name if name == START else "/".join(Path(name).resolve().parts[-2:])
