# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Remedies of a run that does not fit, in the words of a recipe and of a launch line."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from trl_opsd.cli.own_data.recipe_text import yaml_line
from trl_opsd.cli.planned_run.settings import Options
from trl_opsd.memory import Change, Run, parts


NODE = 8  # GPUs
REASONS = {
    "sleep": "vLLM leaves the GPU while the model trains",
    "utilization": "vLLM's share of the GPU",
    "checkpointing": "activations are computed again instead of kept: slower by about a third",
    "rows": "smaller micro-batches and more of them: the same step, slower",
    "engine": "weights, gradients and optimizer are spread over the GPUs: {engine}",
    "tensor_parallel": "{tensor_parallel} GPUs share one engine of vLLM",
    "vllm": "transformers generates instead of vLLM: much slower",
    "gather": "the weights are gathered layer by layer while generating: much slower",
    "offload": "the teacher's copy is in host memory while it does not read: slower by its transfers",
    "iterations": "one pass over each generation batch: less is kept of the teacher's",
    "lora": "an adapter is trained, with a frozen teacher that is free; it often takes a higher learning rate",
    "teacher": "no copy of the weights as teacher, but another objective, which can collapse: docs/defaults.md",
}


def reason(change: Change) -> str:
    """Effect of a change in plain words."""
    if change.fields.get("engine") == "zero2":
        return "gradients and optimizer are spread over the GPUs: zero2"
    return REASONS[change.subject].format(**change.fields)


def recipe_lines(changes: Sequence[Change], run: Run, options: Options) -> list[str]:
    """
    Lines of a recipe for changes, and vLLM's share where it was left open.

    Args:
        changes (`Sequence[Change]`): Changes of a remedy.
        run ([`Run`]): The run with them.
        options ([`Options`]): Options before them.
    """
    lines: dict[str, Any] = {}
    for change in changes:
        lines |= of_change(change, options)
    if run.vllm and not run.utilization:
        found = parts(run)
        used = sum(part.bytes for part in found if part.name in ("vLLM weights", "KV cache"))
        lines["vllm_gpu_memory_utilization"] = math.ceil(used / (run.gpu_gb * 1e9) * 20) / 20
    return [yaml_line(name, value) for name, value in lines.items()]


def of_change(change: Change, options: Options) -> dict[str, Any]:
    """Options of a recipe that make a change."""
    fields = change.fields
    if change.subject == "rows":
        by = options["per_device_train_batch_size"] // fields["rows"]
        changed = {"per_device_train_batch_size": fields["rows"]}
        changed["gradient_accumulation_steps"] = options["gradient_accumulation_steps"] * by
        if options["steps_per_generation"]:
            changed["steps_per_generation"] = options["steps_per_generation"] * by
        return changed
    if change.subject == "lora":
        rank = fields["lora"]
        targets = {"lora_r": rank, "lora_alpha": 2 * rank, "lora_target_modules": ["all-linear"]}
        return {"use_peft": True, **targets, "dtype": fields["dtype"]}
    names = {
        "sleep": "vllm_enable_sleep_mode",
        "utilization": "vllm_gpu_memory_utilization",
        "checkpointing": "gradient_checkpointing",
        "tensor_parallel": "vllm_tensor_parallel_size",
        "vllm": "use_vllm",
        "gather": "ds3_gather_for_generation",
        "iterations": "num_iterations",
        "offload": "teacher_offload",
        "teacher": "teacher_model_kind",
    }  # fields have the subject's name; the engine belongs to the launch
    return {names[change.subject]: fields[change.subject]} if change.subject in names else {}


def launch_line(run: Run | None, command: Sequence[str], accelerate_config: str | None = None) -> str:
    """
    Command that trains so.

    Args:
        run ([`Run`], *optional*): The run; without it the launch is left to the machine.
        command (`Sequence[str]`): Options of `trl-opsd train`, with the recipe.
        accelerate_config (`str`, *optional*): Launch config that the user named, if it stays.
    """
    words = ["trl-opsd", "train", *map(shlex.quote, command)]
    if run is None:
        return " ".join(words)
    if run.engine != "none":
        words += ["--accelerate_config", accelerate_config or run.engine, "--num_processes", str(run.gpus)]
    if run.gpus > NODE:
        machines = math.ceil(run.gpus / NODE)
        words += ["--num_machines", str(machines), "--machine_rank", "RANK", "--main_process_ip", "FIRST_NODE"]
    line = " ".join(words)
    return f"{line}  # on each of {machines} nodes, with its own RANK" if run.gpus > NODE else line
