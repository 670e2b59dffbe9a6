# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Memory and time of a run on GPUs that are not there, by formulas (docs/scaling.md):

python scripts/scale.py --model qwen3-8b --gpus 8 --engine zero3 --teacher base
python scripts/scale.py --write-docs   # the tables of docs/scaling.md; --check compares with small models here

1 GB is 1e9 bytes. Every option has a default: see --help.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from bench import report
from sizing import tables
from sizing.setup import CHOICES, Setup
from sizing.shapes import SHAPES, find
from sizing.speed import Hardware


SCRIPTS = Path(__file__).parent
OUTPUT = SCRIPTS.parent / "docs" / "benchmarks"
OTHER_NAMES = {"gpus_per_node": "gpus"}
HELP = {
    "nodes": "nodes",
    "gpus_per_node": "GPUs of a node",
    "engine": "who holds what; `none` is one process",
    "dtype": "type that the model is loaded in, TRL's `dtype`",
    "bf16": "`bf16` of the training arguments",
    "lora": "rank of an adapter on all matrices of the body; 0 trains all weights",
    "teacher": "`teacher_model_kind`",
    "views": "views of each rollout",
    "rows": "`per_device_train_batch_size`",
    "accumulation": "`gradient_accumulation_steps`",
    "prompt": "tokens of a prompt",
    "completion": "tokens of a completion",
    "teacher_prompt": "tokens of the teacher's prompt, with the context",
    "checkpointing": "`gradient_checkpointing`",
    "vllm": "`vllm_mode`; `none` leaves generation out",
    "tensor_parallel": "`vllm_tensor_parallel_size`",
    "server_gpus": "GPUs of a vLLM server, taken off those that train",
    "utilization": "`vllm_gpu_memory_utilization`; by default what the rollouts of a step need",
    "sleep": "`vllm_enable_sleep_mode`",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="qwen3-8b", help=f"{', '.join(SHAPES)}, or a folder with a config.json")
    made.add_argument("--gpu-gb", type=float, default=80.0, help="memory of a GPU (default 80)")
    defaults = {field.name: field.default for field in fields(Setup)}
    for name, text in HELP.items():
        default = defaults[name]
        option = "--" + OTHER_NAMES.get(name, name).replace("_", "-")
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        else:
            kind = {"type": float if default is None else type(default), "choices": CHOICES.get(name)}
        made.add_argument(option, dest=name, default=default, help=f"{text} (default {default})", **kind)
    for field in fields(Hardware):
        option = "--" + field.name.replace("_", "-")
        made.add_argument(option, type=float, default=field.default, help=f"assumed (default {field.default:g})")
    made.add_argument("--write-docs", action="store_true", help="put the tables into docs/scaling.md")
    made.add_argument("--check", action="store_true", help="compare with small models, in half a minute; needs torch")
    made.add_argument("--output", type=Path, default=OUTPUT, help="folder beside which scaling.md lies")
    return made


def check(output: Path, write: bool) -> None:
    """Formulas beside measurements, in a process whose paths and threads suit them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "sizing.trial"]
    done = subprocess.run(command, cwd=SCRIPTS, env=environment, text=True, stdout=subprocess.PIPE)
    block = done.stdout.partition(tables.START)[2].strip()
    if write and done.returncode == 0:
        report.put(output, {"checks": block}, "scaling.md")
    else:
        print(block)
    sys.exit(done.returncode)


def main() -> None:
    options = parser()
    args = options.parse_args()
    try:
        hardware = Hardware(**{field.name: getattr(args, field.name) for field in fields(Hardware)})
        setup = Setup(find(args.model), gpu_bytes=args.gpu_gb * 1e9, **{name: getattr(args, name) for name in HELP})
    except ValueError as error:
        options.error(str(error))
    if args.check:
        check(args.output, args.write_docs)
    elif args.write_docs:
        report.put(args.output, tables.blocks(hardware), "scaling.md")
    else:
        print(tables.one_run(setup, hardware))


if __name__ == "__main__":
    main()
