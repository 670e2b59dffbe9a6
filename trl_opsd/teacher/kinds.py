# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Kinds of teacher, one class for each value of `teacher_model_kind`.

A new kind is a class here and an entry in `TEACHER_KINDS`: the config's choices, the check of its options, the model
card and the trainer read the class.
"""

import math
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import create_model_from_path

from trl_opsd.engines.backend import loading_kwargs
from trl_opsd.model.virtual_tokens import prompt_learning_config
from trl_opsd.teacher.adapters import AdapterWeights, check_adapters, load_adapters
from trl_opsd.teacher.server import Server
from trl_opsd.teacher.teacher import Patch, Teacher
from trl_opsd.teacher.weights import CopiedWeights, SeparateModel, StudentWeights, TeacherWeights


OFFLOAD = {"teacher_offload": False}  # of kinds with weights of their own
# Ways to begin an adapter that change the weights under it
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Base(Teacher):
    """Frozen start: the weights as they were when training began, without extra memory under a new LoRA adapter. Under
    an adapter with virtual tokens it is the model without them, whatever they start from."""

    name = "base"
    description = "the same weights as they were at the start of training"
    options = OFFLOAD

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        new = hasattr(self.core, "peft_config") and adapter_starts_at_zero(self.core)
        if new or prompt_learning_config(self.core) is not None:
            if self.args.teacher_offload:
                raise ValueError(
                    "`teacher_offload=True` has nothing to offload: the `base` teacher of a new adapter is the student "
                    "with the adapter off, and no copy of it. Leave it out."
                )
            return StudentWeights(self.core, self.args.cast_lm_head_to_fp32, adapter=False)
        return self.copied_weights()

    def state(self) -> dict[str, Any]:
        state = super().state()
        if isinstance(self.weights, CopiedWeights):
            square_sum = self.weights.square_sum()
            if self.weights.shards.is_sharded:
                square_sum = self.accelerator.reduce(square_sum)
            state["square_sum_of_start"] = square_sum.item()
        return state

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        now, saved = self.state()["square_sum_of_start"], state.get("square_sum_of_start")
        # Only sums of another order of additions differ by less
        if None not in (now, saved) and not math.isclose(now, saved, rel_tol=1e-11):
            raise ValueError(
                f"The checkpoint {folder} was trained against another `base` teacher: the weights that this run "
                "started from are not the ones that run started from. Resume with the same `model` as the first time."
            )


class Live(Teacher):
    """Current weights: the student itself."""

    name = "live"
    description = "the current weights"
    num_updates = None

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        return StudentWeights(self.core, self.args.cast_lm_head_to_fp32)


class UpdatedTeacher(Teacher):
    """
    Base class of kinds whose weights are a copy that follows the student.

    Attributes:
        rate (`float`): Share of the student in an update; 1 copies it.
    """

    options = {"teacher_sync_steps": 1, **OFFLOAD}
    rate = 1.0
    weights: CopiedWeights

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        return self.copied_weights()

    def update(self, step: int) -> None:
        if step % self.args.teacher_sync_steps == 0:
            self.weights.update(self.rate)
            self.num_updates += 1

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.weights.shards.save(folder, self.weights.params, self.weights.copies, self.args.should_save)

    @torch.no_grad()
    def restore(self, state: dict[str, Any], folder: Path) -> None:
        if state.get("kind") != self.name:
            raise _unfit(folder, f"holds no state of an {self.name!r} teacher but of {state.get('kind')!r}")
        if state["sharded_by"] != self.weights.sharded_by:
            problem = f"was written under {state['sharded_by']}, and this run is under {self.weights.sharded_by}"
            raise _unfit(folder, problem)
        try:
            self.weights.shards.load(folder, self.weights.params, self.weights.copies)
        except (ValueError, OSError, SafetensorError) as error:
            raise _unfit(folder, f"does not fit: {error}") from error


class EMA(UpdatedTeacher):
    """Exponential moving average of the student's weights, kept in float32."""

    name = "ema"
    description = "a moving average of the weights"
    options = {"teacher_update_rate": 0.05, **UpdatedTeacher.options}

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        super().check(config, synced_by_method)
        if config.teacher_update_rate == 0.0:
            raise ValueError(
                "`teacher_update_rate=0` never moves the teacher. Use `teacher_model_kind='base'` for that."
            )

    @property
    def rate(self) -> float:
        return self.args.teacher_update_rate

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        return self.copied_weights(torch.float32)  # in bfloat16 a slow average would hardly move


class Snapshot(UpdatedTeacher):
    """Periodic copy of the student's weights, renewed every `teacher_sync_steps` or when the method says so."""

    name = "snapshot"
    description = "a periodic copy of the weights"

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        if config.teacher_sync_steps == 1 and not synced_by_method:
            raise ValueError(
                "`teacher_model_kind='snapshot'` with `teacher_sync_steps=1` is the live teacher. Set "
                "`teacher_sync_steps` above 1, or use `teacher_model_kind='live'`."
            )


class Checkpoint(Teacher):
    """Separate model with the same vocabulary, loaded from `teacher_model_name_or_path` and never updated."""

    name = "checkpoint"
    description = "other weights with the same vocabulary"
    options = {"teacher_model_name_or_path": None, "teacher_model_init_kwargs": None, **OFFLOAD}
    starts_as_student = False
    teaches_bare_rows = True

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        super().check(config, synced_by_method)
        if config.teacher_model_name_or_path is None:
            raise ValueError("`teacher_model_kind='checkpoint'` needs `teacher_model_name_or_path`.")
        if {"dtype", "torch_dtype"} <= set(config.teacher_model_init_kwargs or {}):
            raise ValueError("`teacher_model_init_kwargs` has `dtype` and its former name `torch_dtype`: keep `dtype`.")

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        if self.args.teacher_offload and self.backend.prepares_model_in_train:
            raise ValueError(
                "`teacher_offload=True` was not made for a `checkpoint` teacher under DeepSpeed or FSDP, which hold "
                "its parameters themselves. Leave it out, or use DDP."
            )
        model = self._load_model(tokenizer)
        patch(model)
        return SeparateModel(model, self.backend, self.args.cast_lm_head_to_fp32, self.args.teacher_offload)

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Load the model and compare its vocabulary with the student's."""
        path = self.args.teacher_model_name_or_path
        given = dict(self.args.teacher_model_init_kwargs or {})
        dtype = given.pop("torch_dtype", self.core.dtype)  # the former name of `dtype`
        kwargs = {"dtype": dtype, **given, **loading_kwargs()}
        model = create_model_from_path(path, **kwargs)
        own = AutoTokenizer.from_pretrained(path, revision=kwargs.get("revision"))
        heads = (each.get_output_embeddings().weight for each in (model, self.core))
        rows = min(getattr(weight, "ds_shape", weight.shape)[0] for weight in heads)  # ZeRO-3 leaves empty tensors
        if own.get_vocab() != tokenizer.get_vocab() or rows < len(tokenizer):
            raise ValueError(
                f"The teacher `teacher_model_name_or_path={path!r}` has another vocabulary ({len(own)} tokens) than "
                f"the student ({len(tokenizer)} tokens), so their distributions can't be compared token by token. "
                "Choose a teacher of the same family."
            )
        return model


class Adapters(Teacher):
    """LoRA adapters on the student's base model, each of which reads the views of its name; never updated."""

    name = "adapters"
    description = "other adapters on the same base model"
    options = {"teacher_adapters": None}
    starts_as_student = False
    teaches_bare_rows = True
    weights: AdapterWeights

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        super().check(config, synced_by_method)
        check_adapters(config.teacher_adapters)
        if config.eval_teacher_prompts and len(config.teacher_adapters) > 1:
            raise ValueError(
                "`eval_teacher_prompts` lets the teacher write, which several `teacher_adapters` can't: leave it out."
            )

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        if not hasattr(self.core, "peft_config"):
            raise ValueError(
                "`teacher_model_kind='adapters'` needs a student that trains an adapter, as training would change the "
                "weights on which the teacher's adapters stand. Set `use_peft`, or pass a `peft_config`."
            )
        if changed := [one for one in map(_init_of, self.core.peft_config.values()) if one.startswith(CHANGE_BASE)]:
            raise ValueError(
                "`teacher_model_kind='adapters'` needs the base model as it was, and "
                f"`init_lora_weights={changed[0]!r}` changes it. Leave that out."
            )
        adapters = load_adapters(self.core.get_base_model(), self.args.teacher_adapters)
        return AdapterWeights(self.core, self.args.cast_lm_head_to_fp32, adapters)

    def check_views(self, names: list[str]) -> None:
        adapters = self.weights.adapters
        if unknown := [name for name in names if name not in adapters and family(name) not in adapters]:
            raise ValueError(
                f"The source gave a view named {unknown[0]!r}, and `teacher_adapters` has {list(adapters)}: add an "
                "adapter for it, or name the views after the adapters."
            )

    def weights_of(self, view: str) -> str:
        found = [name for name in (view, family(view)) if name in self.weights.adapters]
        return found[0] if found else next(iter(self.weights.adapters))  # of a batch without views

    def reading(self, weights: str | None) -> AbstractContextManager[None]:
        return self.weights.reading(weights)

    def state(self) -> dict[str, Any]:
        sums = {name: adapter.square_sum() for name, adapter in self.weights.adapters.items()}
        return {**super().state(), "adapters": sums}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        now, saved = self.state()["adapters"], state.get("adapters", {})
        if now.keys() != saved.keys() or not all(math.isclose(now[one], saved[one], rel_tol=1e-9) for one in now):
            raise ValueError(
                f"The checkpoint {folder} was trained against other adapters. Resume with the `teacher_adapters` of "
                "the first time."
            )


TEACHER_KINDS: dict[str, type[Teacher]] = {
    kind.name: kind for kind in (Base, Live, EMA, Snapshot, Checkpoint, Adapters, Server)
}


def dependent_options() -> list[tuple[str, Any, tuple[str, ...]]]:
    """Options that only some kinds of teacher read: (option, default, names of these kinds)."""
    defaults = {option: default for kind in TEACHER_KINDS.values() for option, default in kind.options.items()}
    return [
        (option, default, tuple(name for name, kind in TEACHER_KINDS.items() if option in kind.options))
        for option, default in defaults.items()
    ]


def adapter_starts_at_zero(core: nn.Module) -> bool:
    """Whether the adapter is a new LoRA, so that the start of training is the model without it. PiSSA and similar
    initialisations change the base weights, and an adapter trained before is part of the start."""
    second = [param for name, param in core.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    others = [
        name
        for name, param in core.named_parameters()
        if param.requires_grad and "lora_" not in name and "modules_to_save" not in name
    ]
    # Sharded tensors are empty here and count as zero: an adapter made by `peft_config` under ZeRO-3 is new
    return bool(second) and not others and not any(bool(param.any()) for param in second)


def family(view: str) -> str:
    """The name that the views `NAME-1`, `NAME-2` and so on have in common."""
    return re.sub(r"-\d+$", "", view)


def _init_of(config: Any) -> str:
    return str(getattr(config, "init_lora_weights", "")).lower()


def _unfit(folder: Path, problem: str) -> ValueError:
    """Error of a teacher state that can't be restored."""
    return ValueError(
        f"The state of the teacher in the checkpoint {folder} {problem}. Resume with the `teacher_model_kind`, model, "
        "engine and number of processes that it was trained with, or start the teacher afresh: in a new run from the "
        "checkpoint's weights (pass the folder as the model, without `resume_from_checkpoint`) it starts from them."
    )
