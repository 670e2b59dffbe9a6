# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Checkpoint folders: detection of complete ones, choice of the one to resume from, crash-safe writing, rotation.

A folder `checkpoint-N` holds the file `INCOMPLETE` from the moment it appears until every process has written its part
and all of it is on the disk. Appearing and vanishing are one renaming each, so that no moment of a kill leaves half a
checkpoint that looks like a complete one.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import sort_checkpoints

from trl_opsd.engines import Backend


logger = get_logger(__name__)

MARKER = "INCOMPLETE"
_MARKER_TEXT = "This checkpoint is being written, or the run ended while it was. It can't be resumed from.\n"


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a complete checkpoint: one without the marker, which other trainers never write."""
    return (folder / "trainer_state.json").is_file() and not (folder / MARKER).exists()


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders of a run in the order of their steps, complete or not."""
    folders = run_dir.iterdir() if run_dir.is_dir() else []
    found = [folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.split("-")[1]))


def last_complete(run_dir: Path) -> Path | None:
    """Complete checkpoint of the highest step, `None` where there is none."""
    return next((folder for folder in reversed(checkpoints(run_dir)) if is_complete(folder)), None)


def resume_hint(run_dir: Path) -> str:
    """Advice for an error message: which checkpoint to resume from, and how."""
    last = last_complete(run_dir)
    if last is None:
        return f"There is no complete checkpoint in {run_dir}: start without `resume_from_checkpoint`."
    return f"The last complete checkpoint is {last}: go on from it with `train(resume_from_checkpoint=True)`."


def to_resume(asked: str | os.PathLike | bool | None, run_dir: Path, accelerator: Accelerator) -> str | None:
    """
    Checkpoint that `train(resume_from_checkpoint=asked)` resumes from, the same on every process.

    Args:
        asked (`str`, `bool` or `None`): A folder, or `True` for the last complete one of the run.
        run_dir (`Path`): The run's `output_dir`.
        accelerator (`Accelerator`): Its main process looks; the others are told.

    Raises:
        ValueError: If the folder is half-written, or `True` finds none that is complete.
    """
    if asked is None or asked is False:
        return None
    answer: list[tuple[str | None, str | None]] = [(None, None)]
    if accelerator.is_main_process:
        answer = [_choose(asked, run_dir)]
    chosen, error = broadcast_object_list(answer)[0]
    if error is not None:
        raise ValueError(error)
    return chosen


def _choose(asked: str | os.PathLike | bool, run_dir: Path) -> tuple[str | None, str | None]:
    """Chosen folder, or the text of an error."""
    if asked is not True:
        folder = Path(asked)
        if (folder / MARKER).exists():
            return None, f"The checkpoint {folder} is half-written. {resume_hint(folder.parent)}"
        if folder.parent.resolve() != run_dir.resolve() and (files := unpickled(folder)):
            logger.warning(
                f"The checkpoint {folder} is from elsewhere than `output_dir`, and holds files that are read with "
                f"`pickle` ({', '.join(files[:3])}), which runs code that who wrote them may have put there. Go on "
                "only with a checkpoint that you trust."
            )
        return str(folder), None
    last = last_complete(run_dir)
    if last is None:
        broken = ", ".join(folder.name for folder in checkpoints(run_dir))
        what = f"All of them are half-written ({broken}). " if broken else ""
        return None, f"`resume_from_checkpoint=True` found no complete checkpoint. {what}{resume_hint(run_dir)}"
    found = checkpoints(run_dir)
    if passed_over := [folder.name for folder in found[found.index(last) + 1 :]]:
        logger.warning(f"Resuming from {last}. Passed over, as half-written: {', '.join(passed_over)}.")
    return str(last), None


def unpickled(folder: Path) -> list[str]:
    """Files of a checkpoint that are read with `pickle`, which can run code: torch's `.metadata` of sharded weights
    (FSDP, and the teacher under FSDP2), and DeepSpeed's states. All others are safetensors, JSON, or `weights_only`."""
    found = [*folder.rglob(".metadata"), *folder.glob("global_step*/*.pt")]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def check_processes(checkpoint: str, accelerator: Accelerator) -> None:
    """
    Validate the number of processes: DeepSpeed resumes only with the number that wrote the checkpoint, and would stop
    with a bare assertion.

    Raises:
        ValueError: If the number is another one under DeepSpeed. FSDP2 and DDP go on with any.
    """
    written = Backend(accelerator).required_processes(Path(checkpoint))
    if written in (None, accelerator.num_processes):
        return
    raise ValueError(
        f"The checkpoint {checkpoint} was written by {written} processes under DeepSpeed, which can't go on with "
        f"{accelerator.num_processes}. Resume with {written} (`--num_processes {written}`), or start a new run from "
        "its weights (pass the folder as the model, without `resume_from_checkpoint`)."
    )


@contextmanager
def writing(folder: Path, accelerator: Accelerator, writes: bool) -> Iterator[None]:
    """
    Crash-safe writing: every process writes its part of the checkpoint `folder` in the block, after which it is
    complete. Half-written checkpoints of the run are removed first.

    Args:
        folder (`Path`): `checkpoint-N` of the run.
        accelerator (`Accelerator`): Waits for the other processes.
        writes (`bool`): Whether this process writes for the others (`args.should_save`).

    Raises:
        Exception: What the block raises, with a note; the marker then stays.
    """
    try:
        if writes:
            _clear(folder)
            hidden = _hidden(folder)
            hidden.mkdir(parents=True)
            (hidden / MARKER).write_text(_MARKER_TEXT)
            hidden.rename(folder)
        accelerator.wait_for_everyone()
        yield
        accelerator.wait_for_everyone()
        # Of each machine, as only it can flush what its processes wrote: where the disk is not shared, maybe nothing
        if accelerator.is_local_main_process and folder.is_dir():
            _flush([*folder.rglob("*"), folder, folder.parent])
        accelerator.wait_for_everyone()
        if writes:
            (folder / MARKER).unlink()
            _flush([folder])  # before an older checkpoint goes
    except Exception as error:
        error.add_note(
            f"While the checkpoint {folder} was written (process {accelerator.process_index}): it stays marked as "
            "half-written. Make sure that the disk has room and can be written to."
        )
        raise


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """
    Remove the oldest checkpoints beyond `save_total_limit`, by the rule of transformers: the newest and the best stay.
    Half-written ones do not count. Remains of an interrupted removal go too.

    Args:
        newest (`Path`): The checkpoint just written.
        limit (`int` or `None`): `save_total_limit`; none is removed without one.
        best (`str` or `None`): `best_model_checkpoint`.
    """
    _clear_hidden(newest.parent)
    if limit is None or limit <= 0:
        return
    found = [Path(folder) for folder in sort_checkpoints(str(newest.parent), use_mtime=True)]
    found = [folder for folder in found if not (folder / MARKER).exists()]
    kept = {newest, *([Path(best)] if best is not None else [])}
    surplus = len(found) - max(limit, len(kept))
    for folder in [folder for folder in found if folder not in kept][: max(surplus, 0)]:
        _remove(folder)


def _hidden(folder: Path) -> Path:
    """Hidden path beside `folder`, which is not taken for a checkpoint."""
    return folder.with_name(f".{folder.name}.part")


def _clear(folder: Path) -> None:
    """Remove half-written checkpoints of a killed run, and `folder` itself, whose files must not mix with new ones."""
    _clear_hidden(folder.parent)
    for old in checkpoints(folder.parent):
        if old == folder or (old / MARKER).exists():
            _remove(old)


def _clear_hidden(run_dir: Path) -> None:
    for rest in run_dir.glob(".checkpoint-*.part"):
        shutil.rmtree(rest)


def _remove(folder: Path) -> None:
    folder.rename(_hidden(folder))  # at once: half of its files must not look like a checkpoint
    shutil.rmtree(_hidden(folder))


def _flush(paths: Iterable[Path]) -> None:
    """Flush files and directory entries to the disk."""
    for path in paths:
        # Some file systems can't flush folders and need not
        with suppress(OSError) if path.is_dir() else nullcontext():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
