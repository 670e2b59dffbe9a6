# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Progress of a training in a terminal: a bar with five numbers; plain lines where nobody watches."""

import sys
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from trl_opsd.monitoring.names import PREFIX


# Label, metrics of which the first that is logged is shown, and format
NUMBERS = (
    ("reward", ("reward",), "{:.3g}"),
    ("loss", ("loss",), "{:.3g}"),
    ("divergence", (f"{PREFIX}divergence",), "{:.3g}"),
    ("length", ("completions/mean_length",), "{:.0f}"),
    ("views", (f"{PREFIX}view_share",), "{:.0%}"),
    ("s/step", ("step_time",), "{:.1f}"),
)
SUMMARY = "train_runtime"


class Progress(ProgressCallback):
    """
    Transformers' progress bar with five numbers of the last log, in place of a dict of all metrics for each log.

    In a pipe or a file there is no bar, and each log is one line. All numbers are in `metrics.jsonl` and the trackers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watched = sys.stderr.isatty()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **how: Any) -> None:
        if self.watched:
            super().on_train_begin(args, state, control, **how)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **how: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **how)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **how: Any) -> None:
        if self.watched:
            super().on_prediction_step(args, state, control, eval_dataloader, **how)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **how: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or SUMMARY in logs:
            return
        text = evaluated(logs) or numbers(logs)
        if self.training_bar is None:
            print(f"step {state.global_step}/{state.max_steps}  {text}", flush=True)
        elif evaluated(logs):
            self.training_bar.write(f"step {state.global_step}: {text}")
        else:
            self.training_bar.set_postfix_str(text)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **how: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **how)


def numbers(logs: dict[str, Any]) -> str:
    """Five numbers of a training log: reward or else loss, divergence, length, share of views, seconds."""
    found = {}
    for label, names, form in NUMBERS:
        value = next((logs[name] for name in names if logs.get(name) is not None), None)
        if value is not None:
            found[label] = form.format(value)
    if "reward" in found:
        del found["loss"]
    return "  ".join(f"{label} {text}" for label, text in found.items())


def evaluated(logs: dict[str, Any]) -> str:
    """Loss, reward and scores of an evaluation's log; empty for a training log."""
    own = [name for name in logs if name.startswith("eval_")]
    shown = [name for name in own if "@" in name or name.endswith(("_loss", "_reward"))]
    numbers = {name.removeprefix("eval_"): logs[name] for name in shown if isinstance(logs[name], (int, float))}
    return "evaluation: " + "  ".join(f"{name} {value:.3g}" for name, value in numbers.items()) if numbers else ""
