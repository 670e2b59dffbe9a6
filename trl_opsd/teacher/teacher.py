# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Teacher of a run: its forward context, its updates after optimizer steps, and its checkpoint state.

[`Teacher`] has what all kinds share. `kinds.py` has one class for each `teacher_model_kind`, `weights.py` the storage
of the weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch
from trl_opsd.engines import Backend
from trl_opsd.kernels import Head
from trl_opsd.model.evaluation import without_dropout
from trl_opsd.teacher.weights import CopiedWeights, TeacherWeights


STATE_FILE = "teacher_state.json"
Patch = Callable[[PreTrainedModel], None]


class Teacher:
    """
    Teacher of one run. A kind of teacher is a subclass that says where its weights come from and, if they change, how.

    Args:
        args ([`OPSDConfig`]): `teacher_*` options.
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        accelerator (`Accelerator`): The trainer's.
        tokenizer (`PreTrainedTokenizerBase`): The student's, to compare vocabularies with another model.
        patch (`Callable[[PreTrainedModel], None]`): Gives another model the forward that the trainer calls.

    Attributes:
        name (`str`): Value of `teacher_model_kind`.
        description (`str`): Its weights in a few words, for the model card.
        options (`Mapping[str, Any]`): Config options that no other setting reads, with their defaults.
        starts_as_student (`bool`): Whether it has the student's weights before the first step.
        teaches_bare_rows (`bool`): Whether it teaches rows without privileged context, from the student's own prompt.
        is_local (`bool`): Whether its weights are in this process. Otherwise it has [`answer`] in place of a forward.
        unknown_stats (`tuple[str]`): Statistics of its distributions that it can't tell, and that are not logged.
        num_updates (`int` or `None`): Number of weight updates; cached teacher outputs are valid while it is unchanged.
            `None` for a live teacher (never cacheable).

    Raises:
        ValueError: If the kind does not exist for this model or engine.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    starts_as_student: ClassVar[bool] = True
    teaches_bare_rows: ClassVar[bool] = False
    is_local: ClassVar[bool] = True
    unknown_stats: ClassVar[tuple[str, ...]] = ()
    num_updates: int | None = 0

    def __init__(
        self, args: Any, core: nn.Module, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, patch: Patch
    ):
        self.args, self.core, self.accelerator, self.backend = args, core, accelerator, Backend(accelerator)
        self.weights = self.make_weights(tokenizer, patch)

    # What a kind defines

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        """
        Validate the options of this kind.

        Args:
            config ([`OPSDConfig`]): All options.
            synced_by_method (`bool`): Whether the method decides when the teacher is synchronised with the student.

        Raises:
            ValueError: If options are missing or contradict the kind or the method.
        """
        if synced_by_method:
            raise ValueError(
                f"The method {config.method!r} says when a snapshot is renewed: `teacher_model_kind` must be "
                f"'snapshot', not {config.teacher_model_kind!r}."
            )

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        """Create the weights that answer. The arguments are those of the class."""
        raise NotImplementedError

    def update(self, step: int) -> None:
        """
        Update the weights after an optimizer step, if they follow the student.

        Args:
            step (`int`): Optimizer steps taken so far.
        """

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, JSON-serialisable. All ranks call it."""
        return {"kind": self.name, "sharded_by": self.weights.sharded_by, "square_sum_of_start": None}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """
        Restore the state written by [`save`]. All ranks call it.

        Args:
            state (`dict`): What [`state`] gave, empty if the checkpoint has none.
            folder (`Path`): The checkpoint.

        Raises:
            ValueError: If the state belongs to another kind, engine, model or start.
        """

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and completion that it reads, where that is not in the config of its model."""
        return None

    def prefetch(self, batches: list[TeacherBatch]) -> None:
        """
        Begin what [`answer`] will be asked for. A collective.

        Args:
            batches (`list[TeacherBatch]`): Planned forwards of a generation batch.
        """

    def answer(self, batch: TeacherBatch) -> Outputs:
        """
        Scores by a teacher that is not local. A collective.

        Args:
            batch ([`TeacherBatch`]): What to read.

        Returns:
            At `batch.tokens`: log-probabilities `(T,)` of the tokens, and of the k likeliest ones their ids and
            log-probabilities, `(T, k)`.
        """
        raise NotImplementedError

    def write(self, prompts: list[list[int]], options: dict[str, Any], ends: list[int]) -> list[list[int]]:
        """
        Texts by a teacher that is not local. No collective.

        Args:
            prompts (`list[list[int]]`): Token ids of what is read.
            options (`dict[str, Any]`): Options of transformers' generation.
            ends (`list[int]`): Tokens that end a text.

        Returns:
            `list[list[int]]`: Token ids of each text.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, tuple[float, float]]:
        """Local sums and counts since the last call, by name in the log, the same names on every process."""
        return {}

    # What all kinds share

    def attach(self) -> None:
        """Copy the start weights if that had to wait for the engine. To be called once the engine has the model, and
        before a checkpoint is loaded into it."""
        self.weights.attach()

    @contextmanager
    def teacher_forward(self, model: nn.Module) -> Iterator[nn.Module]:
        """
        Teacher's forward context, without gradient and without dropout: gives the model to call.

        Args:
            model (`nn.Module`): The wrapped student.
        """
        with torch.no_grad(), self.weights.active(model) as teacher, without_dropout(teacher):
            yield teacher

    def check_views(self, names: list[str]) -> None:
        """
        Refuse views that no weights read.

        Args:
            names (`list[str]`): Their names, the same on every process.

        Raises:
            ValueError: If there are any.
        """

    def weights_of(self, view: str) -> str:
        """Key of the weights that read the views of this name: views of one key share a forward."""
        return ""

    def reading(self, weights: str | None) -> AbstractContextManager[None]:
        """
        Choose the weights that [`teacher_forward`] puts in place within this block.

        Args:
            weights (`str`, *optional*): From [`weights_of`]. `None` for those that all views have in common.
        """
        return nullcontext()

    @property
    def model(self) -> nn.Module:
        """Unwrapped model whose weights answer: the student or a separate model."""
        return self.weights.core

    @property
    def reader(self) -> nn.Module:
        """Model that reads: without its PEFT wrapper where the teacher is the student with its adapter off."""
        return self.weights.reader

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward, by all ranks."""
        return self.weights.head()

    def save(self, folder: Path) -> None:
        """Write the state into the checkpoint `folder`. All ranks call it."""
        state = self.state()
        if self.args.should_save:
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Restore the state written by [`save`]. All ranks call it."""
        path = folder / STATE_FILE
        self.restore(json.loads(path.read_text()) if path.exists() else {}, folder)

    def copied_weights(self, dtype: torch.dtype | None = None) -> CopiedWeights:
        """
        Copies of the student's weights.

        Args:
            dtype (`torch.dtype`, *optional*): Type of the copies, by default the parameters' own.

        Raises:
            ValueError: If the engine holds parameters in a form that can't be copied.
        """
        shards = self.backend.shards
        if shards is None:
            raise ValueError(
                f"`teacher_model_kind={self.name!r}` needs a copy of the weights, and FSDP1 holds them flattened. Set "
                "`fsdp_version: 2` in the accelerate config, or use `teacher_model_kind='live'`, or a new LoRA adapter "
                "(`peft_config`) with `'base'`."
            )
        offload = self.args.teacher_offload
        if offload and shards.is_sharded:
            raise ValueError(
                f"`teacher_offload=True` was not made for {shards.name}, where each process holds a share of the "
                "teacher alone. Leave it out, or shard the optimizer only (ZeRO-1, ZeRO-2)."
            )
        weights = CopiedWeights(self.core, shards, dtype, self.args.cast_lm_head_to_fp32, offload)
        # An engine that prepares the model in `train` loads a checkpoint only after that; else it is loaded before
        if not self.backend.prepares_model_in_train:
            weights.attach()
        return weights


class TeacherUpdateCallback(TrainerCallback):
    """
    Updates the teacher after each optimizer step, before a checkpoint of that step is written.

    Args:
        teacher ([`Teacher`]): The teacher of the run.
        may_update (`Callable[[], bool]`): Whether the method allows an update after this step.
    """

    def __init__(self, teacher: Teacher, may_update: Callable[[], bool]):
        self.teacher, self.may_update = teacher, may_update

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.may_update():
            self.teacher.update(state.global_step)


@contextmanager
def live_forward(model: nn.Module) -> Iterator[nn.Module]:
    """Student's forward context on the teacher's terms: without gradient and without dropout."""
    with torch.no_grad(), without_dropout(model):
        yield model
