# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One of the processes that bench_scaling starts: seconds of a micro-batch, of each trainer in turn."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench.measure import measure
from bench.rollouts import Model
from bench.scaling import LIVE, load, series
from bench.trainers import Window


KINDS = {"GRPO": ("GRPO", {}), "pure, live": ("OPSD", LIVE)}


def main(folder: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    model = load(options["model"], options["dtype"])
    scenario, _ = series(options["quick"])["views"][0]
    windows = {}
    for name, (kind, extra) in KINDS.items():
        own = Model(model.name, copy.deepcopy(model.model), model.tokenizer)  # TRL patches the model that it is given
        windows[name] = Window(kind, own, scenario, options["device"], **extra)
    seconds: dict[str, list[float]] = {name: [] for name in windows}
    for _ in range(options["repeats"] + 1):
        for name, window in windows.items():
            seconds[name].append(measure(window, options["device"], trim=False).seconds)
    rounds = {name: values[1:] for name, values in seconds.items()}  # the first pays for what is set up once
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(rounds))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
