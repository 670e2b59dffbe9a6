# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
LoRA adapters as teachers, each for the views of its name, on the base model under the student's own adapter.

They are no adapters of PEFT's within the student: those would be saved with it, and switching to one would change what
is trained (see [`~trl_opsd.teacher.weights.CopiedWeights`]). While a teacher reads, hooks add B A x to the outputs of
the modules that its adapter changes.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.save_and_load import load_peft_weights
from torch import nn

from trl_opsd.teacher.weights import StudentWeights


PREFIX = "base_model.model."  # of the names in PEFT's files
UNSAID = "\0"  # no view that is read
# Of a config: what this computes, and no other variant of LoRA
PLAIN = {
    "use_dora": False, "bias": "none", "modules_to_save": None, "alpha_pattern": {}, "rank_pattern": {},
    "lora_bias": False, "target_parameters": None,
}  # fmt: skip


class Adapter:
    """
    A LoRA adapter from a folder, beside a model and not within it.

    Args:
        base (`nn.Module`): The model whose modules it changes.
        folder (`str`): Where PEFT saved it.
        scale (`float`): Factor on what it adds.

    Raises:
        ValueError: If the folder holds no such adapter, or one of another model.
    """

    def __init__(self, base: nn.Module, folder: str, scale: float):
        try:
            config, weights = PeftConfig.from_pretrained(folder), load_peft_weights(folder, device="cpu")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"`teacher_adapters` names {folder!r}, which holds no adapter of PEFT's: {error}"
            ) from None
        if not isinstance(config, LoraConfig):
            raise ValueError(f"`teacher_adapters` names {folder!r}, a {config.peft_type.value}: it must be a LoRA.")
        if other := [name for name, value in PLAIN.items() if (getattr(config, name, value) or value) != value]:
            raise ValueError(
                f"`teacher_adapters` names {folder!r}, a LoRA with {', '.join(other)}: it must be a plain one, of "
                "matrices A and B of one rank alone. Merge it into a model for `teacher_model_kind='checkpoint'`."
            )
        scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        self.factor, self.parts = scale * scaling, dict(self._parts(base, folder, weights))

    def _parts(
        self, base: nn.Module, folder: str, weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
        """Each module that it changes, with A and B in float32, as PEFT keeps them."""
        paths = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in weights}
        modules = dict(base.named_modules())
        for path in sorted(paths):
            pair = [weights.get(f"{PREFIX}{path}.lora_{one}.weight") for one in "AB"]
            module = modules.get(path)
            sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
            if None in pair or sizes != (pair[0].shape[1], pair[1].shape[0]):
                raise ValueError(
                    f"`teacher_adapters` names {folder!r}, which changes {path!r}: the student has no linear layer of "
                    "that name and size. Give adapters of the student's own base model."
                )
            yield module, tuple(one.float() for one in pair)

    @contextmanager
    def added(self) -> Iterator[None]:
        """Add it to the outputs of its modules within this block."""
        handles = [module.register_forward_hook(self._add) for module in self.parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        first, second = (one.to(output.device) for one in self.parts[module])
        self.parts[module] = first, second
        added = nn.functional.linear(nn.functional.linear(inputs[0].to(first.dtype), first), second)
        return (output + added * self.factor).to(output.dtype)

    def square_sum(self) -> float:
        """Sum of the squares of what it adds to each weight, B A times its factor, by its rank's small products."""
        products = ((b.double().T @ b.double()) * (a.double() @ a.double().T) for a, b in self.parts.values())
        return self.factor**2 * sum(float(one.sum()) for one in products)


class AdapterWeights(StudentWeights):
    """
    The student's base model under one of several adapters, chosen by the view that is read.

    Args:
        core (`nn.Module`): The student with its PEFT wrapper, before any other wrapping.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
        adapters (`Mapping[str, Adapter]`): By the names of views.
    """

    def __init__(self, core: nn.Module, float32_head: bool, adapters: Mapping[str, Adapter]):
        super().__init__(core, float32_head, adapter=False)
        self.adapters, self._read = adapters, UNSAID

    @contextmanager
    def reading(self, adapter: str | None) -> Iterator[None]:
        """Choose the adapter that is active within this block, or with `None` the base model alone."""
        before, self._read = self._read, adapter
        try:
            yield
        finally:
            self._read = before

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        adapter = self._chosen()
        with super().active(model) as teacher, nullcontext() if adapter is None else adapter.added():
            yield teacher

    def _chosen(self) -> Adapter | None:
        if self._read != UNSAID:
            return None if self._read is None else self.adapters[self._read]
        if len(self.adapters) > 1:
            raise ValueError(
                "The teacher was asked to write a text, and `teacher_adapters` has one for each of the views "
                f"{list(self.adapters)}: give one adapter alone, or let another author write."
            )
        return next(iter(self.adapters.values()))


def load_adapters(base: nn.Module, given: Mapping[str, str | Mapping[str, Any]]) -> dict[str, Adapter]:
    """The adapters of `teacher_adapters`, by the names of views."""
    entries = {name: {"folder": one} if isinstance(one, str) else one for name, one in given.items()}
    return {
        name: Adapter(base, str(Path(one["folder"]).expanduser()), one.get("scale", 1.0))
        for name, one in entries.items()
    }


def check_adapters(given: Any) -> None:
    """
    Refuse values of `teacher_adapters`.

    Raises:
        ValueError: If they are no names of views with a folder each.
    """
    if not given:
        raise ValueError(
            "`teacher_model_kind='adapters'` needs `teacher_adapters`, such as `{'math': 'folder', 'code': {'folder': "
            "'other', 'scale': 0.5}}`: names of views, each with the adapter that reads it."
        )
    for name, one in given.items():
        folder = one.get("folder") if isinstance(one, Mapping) else one
        scale = one.get("scale", 1.0) if isinstance(one, Mapping) else 1.0
        known = not isinstance(one, Mapping) or one.keys() <= {"folder", "scale"}
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale)
        if not (known and isinstance(folder, str) and folder and number):
            raise ValueError(
                f"`teacher_adapters` gives the view {name!r} {one!r}: it must be a folder, or `{{'folder': ..., "
                "'scale': ...}}` with a number."
            )
        is_path = folder.startswith((".", "/", "~")) or folder.count("/") > 1  # and no name on the Hub
        if (is_path or Path(folder).is_dir()) and not (Path(folder).expanduser() / "adapter_config.json").is_file():
            raise ValueError(
                f"`teacher_adapters` gives the view {name!r} the folder {folder!r}, which has no adapter_config.json: "
                "name the folder in which PEFT saved the adapter."
            )
