# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_sharded_restarts.py: whole and resumed runs under engines that shard."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


from on_cpu import allow_engines_on_cpu, use_deepspeeds_slow_operators  # isort: skip, it hides the GPUs

import torch
from accelerate.state import AcceleratorState

import sharded_worker
import worker
from kill_worker import untimed
from trl_opsd import OPSDTrainer
from trl_opsd.teacher.weights import CopiedWeights


# A generation batch lasts for four steps, and the checkpoint that is gone on from lies inside one
OPTIONS: dict[str, Any] = {
    "rows_with_view": [0, 1, 6, 7],
    "reward": True,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_steps": 5,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "learning_rate": 0.1,
    "optim": "adamw_torch",
}


def whole_weights(trainer: OPSDTrainer, engine: str) -> dict[str, torch.Tensor]:
    """All parameters, put together from the shards."""
    weights = {}
    for name, param in trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters():
        if engine == "zero3":
            import deepspeed

            with deepspeed.zero.GatheredParameters([param]):
                weights[name] = param.detach().clone()
        else:
            full = param.detach().full_tensor() if engine == "fsdp2" else param.detach()
            weights[name] = full.clone()
    return weights


def run(folder: Path, engine: str, options: dict[str, Any], resume: str | None) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = worker.build(
        str(folder), {**OPTIONS, **options, **sharded_worker.engine_options(engine, "", bfloat16=False)}
    )
    trainer.train(resume_from_checkpoint=resume)
    teacher = trainer.teacher.weights
    return {
        "weights": whole_weights(trainer, engine),
        "teacher": teacher.copies if isinstance(teacher, CopiedWeights) else {},
        "log": untimed(trainer.state.log_history),
    }


def differences(folder: Path, engine: str, options: dict[str, Any]) -> list[str]:
    """What differs between a whole run and one resumed from its checkpoint."""
    whole = run(folder, engine, options, None)
    resumed = run(folder, engine, options, str(folder / "checkpoint-3"))
    names = [
        f"{name} of {kind}"
        for kind in ("weights", "teacher")
        for name, tensor in whole[kind].items()
        if not torch.equal(tensor, resumed[kind][name])
    ]
    return names + ([] if whole["log"] == resumed["log"] else ["the log"])


def main(folder: Path, cases: dict[str, list[Any]]) -> None:
    torch.set_num_threads(1)
    allow_engines_on_cpu()
    if any(engine.startswith("zero") for engine, _ in cases.values()):
        use_deepspeeds_slow_operators()
    results: dict[str, Any] = {}
    for number, (case, (engine, options)) in enumerate(cases.items()):
        try:
            results[case] = differences(folder / str(number), engine, options)
        except Exception:  # the other cases have their own say
            results[case] = traceback.format_exc()
    (folder / f"results-{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
