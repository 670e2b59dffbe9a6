# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of the test in test_hints.py: a group of four rollouts of an agent, on one process or on two."""

import json
import sys
from pathlib import Path

from datasets import Dataset

import agents
import conftest  # sets the environment before torch
from batches import batch_of
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.privileged import build_source


def main(folder: str, processes: int) -> None:
    options = {**conftest.ARGS, **agents.AGENT, "use_cpu": True, "shuffle_dataset": False}
    options |= {"per_device_train_batch_size": 4 // processes, "num_generations": 4}
    trainer = OPSDTrainer(
        agents.agent_model(),
        reward_funcs=[agents.small_reward],
        args=OPSDConfig(output_dir=folder, **options),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 3 times 4?"}]}] * 4),
        processing_class=agents.agent_tokenizer(),
        tools=[agents.multiply],
        privileged=build_source(agents.KOLIBRI),
    )
    agents.follow_scripts(trainer, agents.FAILING)
    batch = batch_of(trainer)
    shown = {
        "views": [[view.context for view in row] for row in trainer.collected.views],
        "advantages": sorted(zip(batch["distillation"].index.tolist(), batch["advantages"].tolist(), strict=True)),
        "share": trainer._metrics["train"]["self_distillation/policy_off_share"],
    }
    (Path(folder) / f"{processes}-{trainer.accelerator.process_index}.json").write_text(json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
