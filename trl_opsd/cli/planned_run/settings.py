# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Settings of a run for the memory calculator, from a recipe, its method, the command line and defaults."""

from pathlib import Path
from typing import Any

import yaml

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.planned_run.model_files import config_of, shape_of
from trl_opsd.cli.recipes import find_launch_config
from trl_opsd.memory import Run


# Without a recipe: those of docs/scaling.md
ASSUMED = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "max_completion_length": 2048,
    "use_vllm": True,
    "vllm_enable_sleep_mode": True,
    "vllm_gpu_memory_utilization": 0.0,
}
UNCOUNTED = {
    "beta": "the reference model of `beta`",
    "reward_model_name_or_path": "the reward model",
}
ENGINES = {"NO": "none", "MULTI_GPU": "ddp"}
# Options of which there is one at least
COUNTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
    "num_iterations", "max_completion_length", "vllm_tensor_parallel_size", "lora_r",
)  # fmt: skip


class Options:
    """
    Values of options with their origins: command line, recipe, method, default.

    Args:
        line (`dict[str, Any]`): Options of the command line.
        recipe (`dict[str, Any]` or `None`): Options of the recipe, `None` where there is no recipe.
    """

    def __init__(self, line: dict[str, Any], recipe: dict[str, Any] | None):
        method = (line | (recipe or {})).get("method")
        published = catalog()["methods"].get(method, {}).get("defaults", {})
        defaults = {name: one["default"] for name, one in catalog()["options"].items()}
        self.layers = {
            "command line": line,
            "recipe": recipe or {},
            f"method {method}": published,
            "assumed": {} if recipe is not None else ASSUMED,
            "default": defaults,
        }

    def origin(self, name: str) -> str:
        return next(origin for origin, layer in self.layers.items() if name in layer)

    def __getitem__(self, name: str) -> Any:
        """Value of an option, as its type."""
        value = self.layers[self.origin(name)][name]
        kind = catalog()["options"][name]["type"].replace(" | None", "")
        if value is None:
            return None
        if kind == "bool":
            return str(value).lower() in ("yes", "true", "t", "y", "1")
        return {"int": lambda text: int(float(text)), "float": float}.get(kind, lambda kept: kept)(value)


def engine_of(accelerate_config: str | None, gpus: int | None) -> tuple[str, int]:
    """
    Engine and number of GPUs of a launch config; without one, those that `trl-opsd train` starts.

    Args:
        accelerate_config (`str`, *optional*): Its name or file.
        gpus (`int`, *optional*): GPUs that the user names.

    Raises:
        UserError: If the formulas do not cover its engine.
    """
    if accelerate_config is None:
        gpus = gpus or 8
        return ("ddp" if gpus > 1 else "none"), gpus
    path = find_launch_config(accelerate_config)
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    kind = str(config.get("distributed_type", "NO"))
    gpus = gpus or (1 if kind == "NO" else int(config.get("num_processes", 1)))
    deepspeed, fsdp = config.get("deepspeed_config") or {}, config.get("fsdp_config") or {}
    places = [deepspeed.get("offload_optimizer_device"), deepspeed.get("offload_param_device")]
    if fsdp.get("fsdp_offload_params") or any(place not in (None, "none") for place in places):
        raise UserError(f"`--accelerate_config` is {accelerate_config}, which offloads, and no formula covers that.")
    if kind == "DEEPSPEED" and deepspeed.get("zero_stage") in (1, 2, 3):
        return f"zero{deepspeed['zero_stage']}", gpus
    if kind == "FSDP" and fsdp.get("fsdp_version") == 2:
        return "fsdp2", gpus
    if kind not in ENGINES:
        raise UserError(
            f"`--accelerate_config` is {accelerate_config}: the formulas cover DDP, ZeRO-1 to 3 and FSDP2, and this is "
            f"another engine ({kind})."
        )
    return ENGINES[kind], gpus


def count_views(spec: Any) -> int:
    """Most views of a rollout, as far as a description of a source tells."""
    name, inner = (*spec.items(),)[0] if isinstance(spec, dict) and len(spec) == 1 else (spec, None)
    if name == "column":
        columns = inner.get("column") if isinstance(inner, dict) else inner
        return len(columns) if isinstance(columns, list) else 1
    if name in ("first_of", "all_of") and isinstance(inner, list) and inner:
        return (sum if name == "all_of" else max)(map(count_views, inner))
    if name in ("when", "with_baselines") and isinstance(inner, dict):
        added = sum(bool(inner.get(one, True)) for one in ("alone", "bare")) if name == "with_baselines" else 0
        return count_views(inner.get("source")) + added
    return 1


def micro_batches(options: Options, gpus: int) -> int:
    """Micro-batches of a generation batch on a GPU."""
    if options["steps_per_generation"]:
        return options["steps_per_generation"]
    if options["generation_batch_size"]:
        return max(1, options["generation_batch_size"] // (options["per_device_train_batch_size"] * gpus))
    return options["gradient_accumulation_steps"]


def run_of(
    options: Options, engine: str, gpus: int, gpu_gb: float, prompt_tokens: int, context_tokens: int
) -> tuple[Run, list[str]]:
    """
    Run that options describe, and what of it the formulas leave out.

    Args:
        options ([`Options`]): Options of the recipe.
        engine (`str`): Engine, see [`~trl_opsd.memory.Run`].
        gpus (`int`): GPUs that train.
        gpu_gb (`float`): Memory of a GPU, GB.
        prompt_tokens, context_tokens (`int`): Tokens of a prompt, and those that the context adds to it.

    Raises:
        UserError: If the formulas do not cover it.
    """
    if options["prefix_tokens"] is not None:
        raise UserError("`prefix_tokens` trains a prefix alone, which no formula covers: estimate with LoRA of rank 1.")
    for name in COUNTS:
        if options[name] is not None and options[name] < 1:
            raise UserError(f"`{name}` must be at least 1, got {options[name]}.")
    if not 0 <= options["vllm_gpu_memory_utilization"] <= 1:
        raise UserError(
            f"`vllm_gpu_memory_utilization` must be from 0 to 1, got {options['vllm_gpu_memory_utilization']}."
        )
    model, teacher = options["model_name_or_path"], options["teacher_model_kind"]
    if teacher == "checkpoint":
        raise UserError(
            "`teacher_model_kind` is checkpoint, another model, which the formulas do not cover: for one of the "
            "student's size estimate with `--teacher_model_kind base`."
        )
    if teacher == "server":
        raise UserError(
            "`teacher_model_kind` is server: the teacher takes no memory of the GPUs that train. The formulas have no "
            "such teacher; `--teacher_model_kind live` gives an upper bound."
        )
    config = config_of(model, options["model_revision"] or "main")
    dtype = options["dtype"] or "float32"
    if dtype == "auto":
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    completion = options["max_completion_length"] or ASSUMED["max_completion_length"]
    teacher_prompt = prompt_tokens + context_tokens
    if options["teacher_max_length"]:
        teacher_prompt = max(1, min(teacher_prompt, options["teacher_max_length"] - completion))
    on_same_gpus = options["use_vllm"] and options["vllm_mode"] == "colocate"
    try:
        run = Run(
            shape_of(model, config), engine, gpus, gpu_gb, dtype,
            bf16=options["bf16"] is not False or options["fp16"],  # the default is what a GPU can
            lora=options["lora_r"] if options["use_peft"] else 0,
            bits=4 if options["load_in_4bit"] else 0,
            nested=options["use_bnb_nested_quant"],
            teacher=teacher,
            offload=options["teacher_offload"],
            views=count_views(options["privileged_source"]),
            rows=options["per_device_train_batch_size"],
            accumulation=micro_batches(options, gpus),
            iterations=options["num_iterations"],
            prompt=prompt_tokens, completion=completion, teacher_prompt=teacher_prompt,
            checkpointing=options["gradient_checkpointing"],
            vllm=on_same_gpus,
            server=options["use_vllm"] and not on_same_gpus,
            tensor_parallel=options["vllm_tensor_parallel_size"],
            sleep=options["vllm_enable_sleep_mode"],
            utilization=options["vllm_gpu_memory_utilization"],
            gather=options["ds3_gather_for_generation"],
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
    return run, left_out(options)


def left_out(options: Options) -> list[str]:
    """Options of a recipe that the formulas do not count, or count otherwise."""
    found = [text for name, text in UNCOUNTED.items() if options[name]]
    if options["load_in_8bit"]:
        found.append("weights in 8 bits, which are counted whole")
    if options["use_peft"] and options["lora_target_modules"] not in ("all-linear", ["all-linear"]):
        found.append("the choice of `lora_target_modules`: an adapter on all matrices is counted")
    if not str(options["optim"]).startswith("adamw_torch") or "bit" in str(options["optim"]):
        found.append(f"the optimizer {options['optim']}: AdamW is counted")
    return found
