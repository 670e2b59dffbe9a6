# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Lists of phases: commands that run one after the other, each of which may read the output of earlier ones.

A phase has a folder, `NUMBER-COMMAND`, and beside it a file with its options, whose name begins with `_` as it may hold
texts for the teacher alone. The file's name says whether the phase is finished.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trl_opsd.options import near


COMMANDS = ("collect", "prune", "sft", "train")
KEYS = ("run", "config", "options", "launch")
EARLIER = re.compile(r"\{(\d+)\}")


@dataclass(frozen=True)
class Phase:
    """
    One command of a list.

    Args:
        number (`int`): Position, from 1.
        command (`str`): Name of the command.
        options (`dict[str, Any]`): All of its options, those of its config file among them.
        folder (`Path`): Output folder.
        launch (`dict[str, Any]`): Options of `accelerate launch`.
    """

    number: int
    command: str
    options: dict[str, Any]
    folder: Path
    launch: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in errors."""
        return f"phase {self.number} ({self.command})"

    @property
    def file(self) -> Path:
        """Options with which the phase runs."""
        return self.folder.with_name(f"_{self.folder.name}.yaml")

    @property
    def finished_file(self) -> Path:
        """Options with which the phase has finished."""
        return self.folder.with_name(f"_{self.folder.name}.finished.yaml")

    @property
    def is_finished(self) -> bool:
        return self.finished_file.is_file()

    @property
    def checkpoint(self) -> Path | None:
        """Last checkpoint of a training that was interrupted."""
        states = self.folder.glob("checkpoint-*/trainer_state.json")  # which transformers writes last
        folders = sorted((path.parent for path in states), key=lambda path: int(path.name.rpartition("-")[2]))
        return folders[-1] if folders else None


def phases_of(
    described: Mapping[str, Any], output_dir: str | Path | None, read: Callable[[str, str], Mapping[str, Any]]
) -> list[Phase]:
    """
    Phases that a file describes, with the folders of earlier ones in place of `{1}`, `{2}` and so on.

    Args:
        described (`Mapping`): `output_dir`, and `phases`, a list of `run`, `config`, `options` and `launch`.
        output_dir (`str`, *optional*): Instead of that of the file.
        read (`Callable[[str, str], Mapping]`): From a command and its `config` to the options in it.

    Raises:
        ValueError: For the first mistake; it names the phase.
    """
    _check_keys(described, ("output_dir", "phases"), "the file")
    output_dir = output_dir or described.get("output_dir")
    if not output_dir:
        raise ValueError("`output_dir` is missing: say where the folders of the phases go.")
    found = described.get("phases")
    if not isinstance(found, list) or not found:
        raise ValueError("`phases` must be a list of phases, each with `run`, `config` and `options`.")
    phases: list[Phase] = []
    for number, one in enumerate(found, 1):
        if not isinstance(one, Mapping) or one.get("run") not in COMMANDS:
            shown = one.get("run") if isinstance(one, Mapping) else one
            advice = near(str(shown), COMMANDS)
            raise ValueError(f"phase {number}: `run` must be one of {', '.join(COMMANDS)}, got {shown!r}{advice}.")
        where = f"phase {number} ({one['run']})"
        _check_keys(one, KEYS, where)
        own, launch = (_mapping(one, key, where) for key in ("options", "launch"))
        if "output_dir" in own:
            raise ValueError(f"{where}: leave out `output_dir`, as each phase has its folder under that of the list.")
        config = read(one["run"], one["config"]) if one.get("config") else {}
        folder = Path(output_dir) / f"{number}-{one['run']}"
        options = {**config, **own, "output_dir": str(folder)}
        folders = [str(phase.folder) for phase in phases]
        phases.append(Phase(number, one["run"], _filled(options, folders, where), folder, launch))
    return phases


def check_finished(phases: list[Phase]) -> None:
    """
    Check that what is finished is what the list says, from its beginning on.

    Raises:
        ValueError: If a finished phase had other options, or follows one that is not finished.
    """
    for before, phase in zip([None, *phases], phases, strict=False):
        if not phase.is_finished:
            continue
        if before is not None and not before.is_finished:
            raise ValueError(
                f"{phase.name} is finished, and {before.name}, which it follows, is not: delete {phase.finished_file} "
                f"and {phase.folder} to run it again."
            )
        had = yaml.safe_load(phase.finished_file.read_text(encoding="utf-8"))
        other = sorted(name for name in {*had, *phase.options} if had.get(name) != phase.options.get(name))
        if other:
            raise ValueError(
                f"{phase.name} has finished with another value of `{'`, `'.join(other)}`: delete "
                f"{phase.finished_file} and {phase.folder} to run it again, or name another `output_dir`."
            )


def run_phases(phases: list[Phase], start: Callable[[Phase], int]) -> int:
    """
    Run the phases that are not finished, up to the first that fails.

    Args:
        phases (`list[Phase]`): The list.
        start (`Callable[[Phase], int]`): Runs a phase with the options in its `file`, and returns its exit code.

    Returns:
        `int`: Exit code of the phase that failed, 0 if none did.
    """
    check_finished(phases)
    for phase in phases:
        if phase.is_finished:
            continue
        phase.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(phase.options, allow_unicode=True, sort_keys=False)
        phase.file.write_text(text, encoding="utf-8")
        if code := start(phase):
            return code
        phase.file.rename(phase.finished_file)
    return 0


def _mapping(described: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    given = described.get(key) or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: `{key}` must hold options, `name: value` on each line; got {given!r}.")
    return dict(given)


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown key in {where}: `{name}`{near(str(name), known)}; it has {', '.join(known)}.")


def _filled(value: Any, folders: list[str], where: str) -> Any:
    """Value of an option with the folders of earlier phases."""
    if isinstance(value, dict):
        return {name: _filled(one, folders, where) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, folders, where) for one in value]
    if not isinstance(value, str):
        return value
    for number in map(int, EARLIER.findall(value)):
        if not 1 <= number <= len(folders):
            raise ValueError(f"{where}: {{{number}}} names no earlier phase in {value!r}.")
    return EARLIER.sub(lambda match: folders[int(match[1]) - 1], value)
