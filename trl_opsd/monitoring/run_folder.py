# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Record of a run in its `output_dir`, whatever the trackers are: `metrics.jsonl`, `warnings.jsonl` and `run.json`.

None of them holds a context.
"""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_opsd.monitoring.json_lines import Line, append, read, write


PACKAGES = ("trl-opsd", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "vllm", "deepspeed")


class RunFolder(TrainerCallback):
    """
    Recorder of a run's numbers, warnings and settings, in the main process.

    `metrics.jsonl` has one line a log: what was evaluated before training, then the trainer's `log_history`. A run that
    resumes goes on where its checkpoint was, without a line missing or doubled.

    Args:
        datasets (`dict[str, Any]`): Training and evaluation data by name; rows, columns and fingerprint are recorded.
        options (`dict[str, Any]`, *optional*): Further settings for `run.json`, such as those of a script.
    """

    def __init__(self, datasets: dict[str, Any], options: dict[str, Any] | None = None) -> None:
        self.datasets, self.options = datasets, dict(options or {})
        self.folder: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            if self.folder is None or state.global_step:
                self._open(args, state)
            write(self.folder / "run.json", [self._settings(args)], indent=2)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not state.log_history:
            return
        if self.folder is None:  # an evaluation before training
            self._open(args, state)
        append(self.folder / "metrics.jsonl", state.log_history[-1])

    def warn(self, text: str, step: int) -> None:
        """Record a warning, in the main process alone."""
        if self.folder is not None:
            append(self.folder / "warnings.jsonl", {"step": step, "warning": text})

    def _open(self, args: TrainingArguments, state: TrainerState) -> None:
        """Begin the files: empty for a new run, with what was said up to its checkpoint for one that resumes."""
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics, warnings = (self.folder / name for name in ("metrics.jsonl", "warnings.jsonl"))
        told, warned = (read(path) if state.global_step else [] for path in (metrics, warnings))
        write(metrics, [line for line in told if line["step"] == 0] + (state.log_history if state.global_step else []))
        write(warnings, [line for line in warned if line["step"] <= state.global_step])

    def _settings(self, args: TrainingArguments) -> Line:
        origins = getattr(args, "origins", {})
        values = args.to_dict().items()
        options = {name: {"value": value, "origin": origins.get(name, "default")} for name, value in values}
        return {
            "versions": {"python": platform.python_version(), **versions()},
            "commit": commit(),
            "device": str(args.device),
            "processes": args.world_size,
            "data": {name: about(data) for name, data in self.datasets.items() if data is not None},
            "options": options | self.options,
        }


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the working directory, with `+changes` where files differ from it; `None` outside of git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout else "")


def about(data: Any) -> Line:
    """Rows, columns and fingerprint of a data set, or of each of several by name."""
    if isinstance(data, dict):
        return {str(name): about(one) for name, one in data.items()}
    return {
        "rows": len(data) if hasattr(data, "__len__") else None,
        "columns": getattr(data, "column_names", None),
        "fingerprint": getattr(data, "_fingerprint", None),
    }
