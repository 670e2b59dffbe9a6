# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Record of single tokens of rollouts: one gzip file of JSON lines for a logged step, or for the probe after a step.

The first line has what the rollouts share: `step`, `temperature` of the log-probabilities, `stops`, tokens that end an
answer of either side, and `strings`, the text of each token of the lists by its id, empty for a part of a character.
Each further line is a rollout, in columns over its completion tokens:

- `index`, `group`, `rewards`, `success`, `leak`: of the rollout; empty or null where they are not known
- `student_prompt`: `ids` and `text` of what the student reads
- `ids`, `texts`: of the completion; a character that several tokens make stands at the last of them
- `written`: 1 at tokens that the model wrote, 0 at tool results
- `p`, `entropy`: the student's log-probability of the token and entropy; null where nothing is distilled
- `top`: the student's likeliest tokens there: `ids`, `p` and, by view, `q`
- `advantage`: of `sampled_token` mode, what the policy loss weighs the token by
- `views`: by name `prompt` (`ids`, `text`, and `context`, places of the context in it), `start` (tokens of the
  completion that are in it), `share` of the view in the token's loss, `q` and `entropy` of the teacher, `divergence`
  before the clips, `loss` after them, and `top`: the teacher's likeliest tokens with `ids`, `p` and `q`

Log-probabilities, entropies, divergences and losses are in nats, to three digits.
"""

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


FOLDER = "_tokens"  # `_`: not pushed to the Hub, as it holds contexts
# Kinds of records: rollouts of a step, before its update, and the probe's, which stay the same, after a step
STEP, PROBE = "step", "probe"
Line = dict[str, Any]
HEAD = {"temperature", "stops", "strings"}


def path_of(output_dir: str | Path, step: int, kind: str = STEP) -> Path:
    """File of a step."""
    return Path(output_dir) / FOLDER / f"{kind}-{step:06d}.jsonl.gz"


def steps_of(output_dir: str | Path, kind: str = STEP) -> dict[int, Path]:
    """Files of a run by their step, in order."""
    found = (Path(output_dir) / FOLDER).glob(f"{kind}-*.jsonl.gz")
    return {int(path.name.split("-")[1].split(".")[0]): path for path in sorted(found)}


def forget_after(output_dir: str | Path, step: int) -> None:
    """Delete the records of later steps, and of all where the run begins: those of an earlier run in this folder."""
    for kind in (STEP, PROBE):
        for number, path in steps_of(output_dir, kind).items():
            if number > step or step == 0:
                path.unlink()


def rounded(value: float) -> float | int | None:
    """A number to three digits; what is not finite is null in JSON."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short


def write(path: Path, head: Line, rollouts: Iterable[Line]) -> None:
    """Write the file of a step, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with gzip.open(unfinished, "wt", encoding="utf-8") as file:
        for line in (head, *rollouts):
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    unfinished.replace(path)


def read(path: Path) -> tuple[Line, list[Line]]:
    """
    Head and rollouts of a step.

    Raises:
        ValueError: If the file is no record of tokens.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head, *rollouts = map(json.loads, file)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no record of tokens: {error}") from error
    if missing := HEAD - head.keys():
        raise ValueError(f"{path} is no record of tokens of this version: its first line lacks {', '.join(missing)}.")
    return head, rollouts


def pieces(ids: Sequence[int], decode: Any) -> list[str]:
    """
    Text of each token, which together are the text of all. A character that several tokens make stands at the last of
    them, the others being empty.

    Args:
        ids (`Sequence[int]`): The tokens.
        decode (`Callable[[list[int]], str]`): From tokens to their text.
    """
    texts, begin, told = [], 0, 0
    for end in range(1, len(ids) + 1):
        # From a few tokens before on: some tokenizers leave out the space at the beginning of a text
        before, now = decode(list(ids[begin:told])), decode(list(ids[begin:end]))
        unfinished = now.endswith("\ufffd") and end < len(ids)
        if unfinished or len(now) < len(before):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        begin, told = told, end
    return texts
