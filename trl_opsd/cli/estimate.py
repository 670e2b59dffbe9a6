# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Memory of a recipe or a model on each GPU, part by part, and what makes it fit: `trl-opsd estimate`.

It loads neither torch nor the model, and needs no GPU: the formulas know the model by its config.json.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.planned_run.remedy_lines import launch_line, reason, recipe_lines
from trl_opsd.cli.planned_run.settings import Options, engine_of, run_of
from trl_opsd.cli.recipe_check import options_of, spelled
from trl_opsd.cli.tables import print_table, print_text
from trl_opsd.memory import (
    MODELS,
    NO,
    PHASES,
    YES,
    Change,
    Remedy,
    Run,
    Verdict,
    at,
    gb,
    judge,
    offloaded,
    parts,
    peak,
    remedies,
)


USAGE = "trl-opsd estimate (--config RECIPE | --model MODEL) [--gpus N] [--accelerate_config NAME] [--OPTION VALUE ...]"
ABOUT = """Memory of a recipe or a model on each GPU, part by part, and what makes it fit. It needs no GPU.

Any option of a recipe can be given too, and wins over the recipe (trl-opsd options WORD)."""
EPILOG = """examples:
  trl-opsd estimate --config my_recipe.yaml --gpus 8
  trl-opsd estimate --model qwen3-8b --gpus 8 --accelerate_config zero3 --teacher_model_kind live
"""
MORE_GPUS = (2, 4, 8)
# Options of a recipe that the table of settings shows
SHOWN = (
    "dtype", "bf16", "use_peft", "teacher_model_kind", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_iterations", "max_completion_length", "gradient_checkpointing", "use_vllm",
)  # fmt: skip
OF_VLLM = ("vllm_mode", "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size")


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command's own options; those of a recipe are left to [`options_of`]."""
    parser = argparse.ArgumentParser(
        prog="trl-opsd estimate", usage=USAGE, description=ABOUT, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", metavar="RECIPE", help="a recipe by name (trl-opsd recipes) or file")
    names = ", ".join(MODELS)
    parser.add_argument("--model", help=f"instead of a recipe, or of its model: a folder, a Hub id, or one of {names}")
    parser.add_argument("--gpus", type=int, help="GPUs that train; default: those of the launch config, else 8")
    parser.add_argument("--gpu_gb", type=float, default=80.0, help="memory of a GPU, GB; default: 80")
    parser.add_argument("--accelerate_config", metavar="NAME",
                        help="a launch config by name (ddp, zero1, zero2, zero3, fsdp2, multi_node) or file; default: "
                        "ddp, as trl-opsd train has it")  # fmt: skip
    parser.add_argument("--prompt_tokens", type=int, default=512, help="of a prompt; default: 512")
    text = "of the context, with the words around it, in the teacher's prompt; default: 1024"
    parser.add_argument("--context_tokens", type=int, default=1024, help=text)
    return parser


def run(argv: Sequence[str]) -> None:
    """Print the memory of a run, its settings, and what to change where it does not fit."""
    args, others = build_parser().parse_known_args(spelled(argv))
    for name in ("gpus", "gpu_gb", "prompt_tokens", "context_tokens"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf and (name, value) != ("context_tokens", 0):
            raise UserError(f"`--{name}` must be above 0, got {value:g}.")
    line, recipe = options_of([*others, *(["--config", args.config] if args.config else [])], own=vars(args))
    if args.model:
        line["model_name_or_path"] = args.model
    options = Options(line, recipe)
    if options["model_name_or_path"] is None:
        raise UserError("`--config` and `--model` are missing: name a recipe or a model.")
    engine, gpus = engine_of(args.accelerate_config, args.gpus)
    planned, uncounted = run_of(options, engine, gpus, args.gpu_gb, args.prompt_tokens, args.context_tokens)
    verdict = judge(planned)
    print_verdict(options["model_name_or_path"], planned, verdict)
    print_parts(planned)
    print_settings(options, planned, args)
    if planned.offload:
        print_text(f"`teacher_offload` moves {gb(offloaded(planned))} GB between the host and each GPU at a step.")
    if uncounted:
        print_text(f"Not counted: {'; '.join(uncounted)}.")
    named = build_parser().parse_known_args(argv)[0].config or "my_recipe.yaml"
    command = ["--config", named, *others]
    if verdict.fits == YES:
        print_way((), planned, options, command, args.accelerate_config)
    else:
        print_remedies(planned, options, command)


def print_verdict(model: str, planned: Run, verdict: Verdict) -> None:
    """Print the peak and whether it fits."""
    fits = {YES: "It fits.", NO: "It does not fit."}.get(verdict.fits, "It fits, but barely: keep a fifth free.")
    if verdict.starved and verdict.peak <= planned.gpu_gb * 1e9:
        fits = "It does not fit: vLLM has no room for a single rollout."
    on = "1 GPU" if planned.gpus == 1 else f"each of {planned.gpus} GPUs"
    print_text(
        f"{model}, {planned.shape.parameters / 1e9:.2f} billion parameters, on {on} of {planned.gpu_gb:g} GB, engine "
        f"{planned.engine}: {gb(verdict.peak)} GB at the peak, in the phase `{verdict.phase}`. {fits}"
    )
    print("Computed, not measured. GB of each phase of a step:\n")


def print_parts(planned: Run) -> None:
    """Print what each part takes in each phase, without parts below a tenth of a GB."""
    found = parts(planned)
    rows = [
        (part.name, *(gb(part.bytes) if phase in part.phases else "" for phase in PHASES))
        for part in found
        if float(gb(part.bytes))
    ]
    highest = peak(found)[1]
    sums = [f"{gb(at(found, phase))}{' <' if phase == highest else ''}" for phase in PHASES]
    print_table(("part", *PHASES), [*rows, ("sum", *sums)])


def print_settings(options: Options, planned: Run, args: argparse.Namespace) -> None:
    """Print the settings behind the figures, with their origins."""
    names = [*SHOWN, *(["lora_r"] if planned.lora else []), *(OF_VLLM if planned.vllm else [])]
    worded = {"bf16": planned.bf16, "dtype": planned.dtype}
    if not planned.utilization:
        worded["vllm_gpu_memory_utilization"] = "as needed"
    rows = [(name, str(worded.get(name, options[name])), options.origin(name)) for name in names]
    if planned.accumulation != options["gradient_accumulation_steps"]:
        rows.append(("micro-batches of a generation batch", str(planned.accumulation), "recipe"))
    given = build_parser()
    for name in ("prompt_tokens", "context_tokens"):
        value = getattr(args, name)
        rows.append((name, str(value), "assumed" if value == given.get_default(name) else "command line"))
    rows.append(("views of a rollout", str(planned.views), options.origin("privileged_source")))
    print()
    print_table(("setting", "value", "from"), rows)


def print_remedies(planned: Run, options: Options, command: Sequence[str]) -> None:
    """Print the changes that make a run fit, or how many more GPUs do."""
    found = remedies(planned)
    for factor in () if found or planned.bits else MORE_GPUS:  # 4 bits are not for an engine that shards
        more = replace(planned, gpus=planned.gpus * factor, engine="zero3", offload=False)
        found = [Remedy((), more, judge(more))] if judge(more).fits == YES else remedies(more)
        if found:
            print(f"\nNo change here makes it fit {planned.gpus} GPU(s) of {planned.gpu_gb:g} GB.")
            print(f"On {more.gpus}, where a step has {factor} times the rollouts:")
            break
    if not found:
        print("\nNo change that is known here makes it fit: take a smaller model, shorter texts or larger GPUs.")
    for number, remedy in enumerate(found, 1):
        last = remedy.verdict
        barely = "" if last.fits == YES else ", barely"
        learns = "It changes what is trained" if remedy.changes_training else "The training stays the same"
        print(f"\nWay {number}: {gb(last.peak)} GB at the peak, in `{last.phase}`{barely}. {learns}.")
        for change in remedy.changes:
            print_text(f"- {reason(change)}", "  ")
        print_way(remedy.changes, remedy.run, options, command)


def print_way(
    changes: Sequence[Change],
    planned: Run,
    options: Options,
    command: Sequence[str],
    accelerate_config: str | None = None,
) -> None:
    """Print lines for the recipe and the launch line, ready to paste."""
    lines = recipe_lines(changes, planned, options)
    if lines:
        print("\nIn the recipe:\n\n" + "\n".join(lines))
    print(f"\nLaunch:\n\n{launch_line(planned, command, accelerate_config)}")
