# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`CrashSafeGRPOTrainer`: a `GRPOTrainer` with complete checkpoints and exact resumption."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers.trainer_utils import TrainOutput
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trl_opsd.checkpoints.folders import (
    check_processes,
    is_complete,
    last_complete,
    resume_hint,
    rotate,
    to_resume,
    writing,
)
from trl_opsd.checkpoints.parts import Stateful, load_parts, save_parts
from trl_opsd.checkpoints.run_state import load_run_state, restore_loss, restore_run_state, save_run_state
from trl_opsd.engines.backend import Backend
from trl_opsd.engines.continuous_batching import preserve_model_state
from trl_opsd.engines.distributed import raise_on_all_ranks, reward_name
from trl_opsd.engines.vllm_cpu import sync_by_reload_on_cpu


logger = get_logger(__name__)


class CrashSafeGRPOTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with complete checkpoints, exact resumption, errors that reach every process, and fixes where
    generation engines and distribution meet training. It knows nothing of distillation.

    Checkpoints are protected in every run. The state of the run is saved and restored, and generation is mended, only
    where a subclass sets `is_plain_grpo` to `False` before `__init__`; elsewhere all of that is TRL's to the last
    digit. A subclass overrides [`save_own_state`], [`load_own_state`] and [`public_args`].
    """

    is_plain_grpo = True
    parts: dict[str, Stateful]  # what the subclass adds with a state of its own, by name
    _generation = 0  # generation batches so far
    _loss_so_far: dict[str, Any] | None = None  # of a checkpoint, until transformers' own is set to zero
    _start_time = 0.0
    _earlier_seconds = 0.0

    def __init__(self, *args: Any, **kwargs: Any):
        self.parts = {}
        super().__init__(*args, **kwargs)
        if self.use_vllm:
            sync_by_reload_on_cpu(self.vllm_generation)

    # What a subclass may override

    def save_own_state(self, folder: Path) -> None:
        """Write what the subclass adds into a checkpoint. Called on every process."""

    def load_own_state(self, folder: Path) -> None:
        """Restore what [`save_own_state`] wrote. Called on every process before the first step, with `_buffered_inputs`
        in place."""

    def flat_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A buffered micro-batch of plain values, of which [`load_own_state`] makes the same again."""
        return batch

    def public_args(self) -> GRPOConfig:
        """The arguments as `training_args.bin`, which is pushed to the Hub with the model, may hold them."""
        return self.args

    # Training, generation, rewards

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        run_dir = Path(self.args.output_dir)
        checkpoint = to_resume(resume_from_checkpoint, run_dir, self.accelerator)
        if checkpoint is not None:
            check_processes(checkpoint, self.accelerator)
        self._loss_so_far, self._earlier_seconds = None, 0.0
        try:
            return super().train(checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        except Exception as error:
            if self.state.global_step > 0 or last_complete(run_dir):
                error.add_note(f"Training stopped after step {self.state.global_step}. {resume_hint(run_dir)}")
            raise

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train and Backend(self.accelerator).is_ddp:
            # `evaluate` before `train` marks the model as prepared, and the ranks would then train without DDP, each on
            # its own (transformers 5.23, accelerate 1.15)
            vars(self.model).pop("_is_accelerate_prepared", None)
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]] | None]:
        if self.is_plain_grpo or not self.use_transformers_continuous_batching:
            return super()._generate_single_turn(*args, **kwargs)
        with preserve_model_state(self.model):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        arguments = inputs, prompts, completions, completion_ids_list
        if self.is_plain_grpo:
            return super()._calculate_rewards(*arguments)
        lacking = torch.zeros(len(prompts), len(self.reward_funcs), device=self.accelerator.device)
        join = partial(gather, lacking)
        with raise_on_all_ranks(self.accelerator, "the rewards", self.state.global_step, reward_name, join):
            return super()._calculate_rewards(*arguments)

    # Writing checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        limit = self.args.save_total_limit
        with writing(folder, self.accelerator, self.args.should_save):
            # Transformers would remove the older checkpoint when this one is not complete
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if limit is not None and self.args.should_save:  # the arguments as they are, and not as they were then
                with self._public_args():
                    torch.save(self.args, folder / "training_args.bin")
            if not self.is_plain_grpo:
                folder.mkdir(parents=True, exist_ok=True)  # nobody else may write to this disk (`save_only_model`)
                self.save_own_state(folder)
                save_parts(self.parts, folder, self.args.process_index)
                if not self.args.save_only_model:
                    started = self._start_time - self._earlier_seconds
                    save_run_state(self, folder, self._generation, self.flat_batch, started)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate(folder, limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str | os.PathLike) -> None:
        # Transformers pushes when its own files are written; `_save_checkpoint` comes back to it
        if is_complete(Path(checkpoint_folder)):
            with self._public_args():
                super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._public_args():
            super()._save(output_dir, state_dict)

    @contextmanager
    def _public_args(self) -> Iterator[None]:
        own = self.args
        self.args = self.public_args()
        try:
            yield
        finally:
            self.args = own

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with nullcontext() if self.is_plain_grpo else adapters_keep_their_type(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # transformers 5.23 saves vision-language models under other names than its Trainer looks for, and goes on
        if not self.is_plain_grpo and load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint names weights otherwise than the model does ({load_result.unexpected_keys[0]!r}), and "
                "transformers would train on without them. Train such a model with a PEFT adapter, or pass the "
                "checkpoint's folder as the model of a new run, without `resume_from_checkpoint`."
            )
        tied = getattr(self.model, "all_tied_weights_keys", {})
        if self.is_plain_grpo or not tied.keys() >= set(load_result.missing_keys):  # those are loaded by another name
            super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        with nullcontext() if self.is_plain_grpo else adapters_keep_their_type(self.model):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        newest = Path(checkpoint)
        if self.args.should_save and newest == last_complete(newest.parent):  # what a kill may have cut short
            rotate(newest, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.is_plain_grpo:
            return
        state, wrong = load_run_state(self, Path(checkpoint))
        if state is None:
            # Where the data loader will be in its rows, which come once for each micro-batch of a generation batch
            self._step, self._buffered_inputs = self.state.global_step * self.args.gradient_accumulation_steps, None
            logger.warning(
                f"The state of the run in {checkpoint} can't be taken up ({wrong}): rollouts that were still to be "
                "trained on are sampled anew, and metrics since the last log are lost. Weights, optimizer and teacher "
                "are those of the checkpoint, but the run is not exactly the uninterrupted one."
            )
        else:
            restore_run_state(self, state)
            self._generation, self._loss_so_far = state["generation"], state["loss"]
        load_parts(self.parts, Path(checkpoint), self.args.process_index)
        self.load_own_state(Path(checkpoint))

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _run_epoch(self, **kwargs: Any) -> None:
        epoch = kwargs["epoch"]
        self._start_time = kwargs["start_time"]
        resumed = kwargs["resume_from_checkpoint"] is not None and epoch == kwargs["epochs_trained"]
        if not self.is_plain_grpo and resumed:
            self._restore_loss()
            if self.state.global_step >= self.state.max_steps:  # transformers would take one step more
                self._load_rng_state(kwargs["resume_from_checkpoint"])
                self.control.should_training_stop = True
                return
            skip_epochs(getattr(self, "_train_sampler", None), epoch)
        super()._run_epoch(**kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self._restore_loss()
        return super()._finalize_training(trial, num_train_samples, start_time - self._earlier_seconds)

    def _restore_loss(self) -> None:
        loss, self._loss_so_far = self._loss_so_far, None
        if loss is not None:
            restore_loss(self, loss)
            self._earlier_seconds = loss["seconds"]


@contextmanager
def adapters_keep_their_type(model: nn.Module) -> Iterator[None]:
    """Loading of adapters within this block into the parameters that are there. PEFT would put new ones in float32 in
    their place, and TRL trains adapters on a quantized model in bfloat16."""
    if not isinstance(model, PeftModel):
        yield
        return
    model.load_adapter = partial(model.load_adapter, autocast_adapter_dtype=False)
    try:
        yield
    finally:
        del model.load_adapter


def skip_epochs(sampler: Sampler | None, epochs: int) -> None:
    """Advance TRL's sampler to a later epoch: its generator draws one permutation an epoch and is not saved.
    Transformers itself sets the epoch of a stream."""
    if isinstance(sampler, RepeatSampler) and sampler.shuffle:
        for _ in range(epochs):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
