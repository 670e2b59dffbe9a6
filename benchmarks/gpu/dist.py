# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Part `dist`: DDP and FSDP2 with one process that is told that it is one of one. Wrapping, NCCL and the collectives run;
nothing is sharded. In tiny sizes gloo stands in for NCCL.

python -m benchmarks.gpu.dist ENGINE FOLDER [--tiny]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.part import Part  # first: it makes the modules of the tests importable
from benchmarks.report import Row
from processes import free_port


ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
}
ONE_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def run(part: Part) -> None:
    for engine in ENGINES:
        part.attempt(engine, lambda engine=engine: launched(part, engine), need=8)


def launched(part: Part, engine: str) -> Row:
    command = [sys.executable, "-m", "benchmarks.gpu.dist", engine, str(part.folder), *(["--tiny"] * part.tiny)]
    environment = {**os.environ, **ONE_OF_ONE, **ENGINES[engine], "MASTER_PORT": str(free_port())}
    seconds = max(5.0, part.left() - 1)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    result = part.folder / f"dist_{engine}.json"
    if done.returncode or not result.exists():
        raise RuntimeError(f"status {done.returncode}: {(done.stderr or done.stdout)[-1200:]}")
    row = json.loads(result.read_text())
    result.unlink()
    return row


def main() -> None:
    """Train two steps as the only rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        allow_on_cpu(args.engine)

    from benchmarks.gpu.train import losses, make_trainer

    device = "cpu" if args.tiny and args.engine == "ddp" else "cuda"
    trainer = make_trainer(Path(tempfile.mkdtemp()), device, 2)
    trainer.train()
    state = trainer.accelerator.state
    row = {"wrapped": type(trainer.model_wrapped).__name__, "backend": str(state.backend)}
    row |= {"type": str(state.distributed_type), "losses": losses(trainer)}
    (args.folder / f"dist_{args.engine}.json").write_text(json.dumps(row))
    os._exit(0)  # the clean-up of gloo now and then aborts


def allow_on_cpu(engine: str) -> None:
    from accelerate.utils import DistributedType

    from on_cpu import allow_engines_on_cpu

    allow_engines_on_cpu(DistributedType.MULTI_GPU if engine == "fsdp2" else DistributedType.MULTI_CPU)


if __name__ == "__main__":
    main()
