# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Teacher hacking (2502.02671): the student comes ever closer to its teacher and gets worse at the task.

The proxy is the divergence of an evaluation, and the golden measure its score, avg@k. A warning comes where the score
has fallen since an earlier window of evaluations, by more than chance, and the divergence has fallen since then too.
"""

import itertools
import math
import re
from collections import defaultdict
from dataclasses import dataclass

from accelerate.logging import get_logger

from trl_opsd.monitoring.names import PREFIX


logger = get_logger(__name__)

KIND = "teacher_hacking"
_LEAST = 6  # evaluations: two windows
_WINDOW = 3  # evaluations of a window, and a third of all of them where that is more
# Standard errors by which the last window's score must be below the best one's, at any evaluation of the run. Of 1,500
# series of noise beside a falling divergence at most 2 % passed it, at each of 12, 25, 50 and 100 evaluations
_ERRORS = 5
_SCORE = re.compile(r"(eval(?:_.+)?)_avg@\d+")


@dataclass(frozen=True)
class Evaluated:
    """
    Figures of one evaluation.

    Args:
        score (`float`): Golden measure, the higher the better.
        divergence (`float`): Proxy, the divergence of student and teacher on held-out prompts.
    """

    score: float
    divergence: float


Series = dict[int, Evaluated]  # by optimizer step, in order


class HackingMonitor:
    """Watches the evaluation logs of each eval set, and says once for each whether the student hacks its teacher."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = defaultdict(dict)
        self.said: set[str] = set()

    def observe(self, logs: dict[str, float], step: int) -> dict[str, str]:
        """
        Observe one evaluation log.

        Args:
            logs (`dict[str, float]`): What the trainer logs.
            step (`int`): Optimizer step.

        Returns:
            `dict[str, str]`: The warning given now, by its kind.
        """
        found = {kind: f"Step {step}: {text}" for kind, text in self._new_signs(logs, step).items()}
        for text in found.values():
            logger.warning(text)
        return found

    def recall(self, log_history: list[dict[str, float]]) -> None:
        """Recall the logs of a resumed run up to its checkpoint. Its warnings are not given again."""
        self.series, self.said = defaultdict(dict), set()
        for logs in log_history:
            self._new_signs(logs, logs["step"])

    def _new_signs(self, logs: dict[str, float], step: int) -> dict[str, str]:
        for name, score in logs.items():
            match = _SCORE.fullmatch(name)
            divergence = logs.get(f"{match[1]}_{PREFIX}divergence") if match else None
            if divergence is None or not (math.isfinite(score) and math.isfinite(divergence)):
                continue
            series = self.series[match[1]]
            series[step] = Evaluated(score, divergence)
            text = hacking(series, name) if name not in self.said else None
            if text:
                self.said.add(name)
                return {KIND: text}  # an evaluation log is of one eval set
        return {}


def hacking(series: Series, name: str = "score") -> str | None:
    """
    Warning of teacher hacking, from all evaluations so far. `None` without the sign, or before there are enough.

    Args:
        series (`dict[int, Evaluated]`): The evaluations by step.
        name (`str`): Name of the score in the log.
    """
    if len(series) < _LEAST:
        return None
    steps, values = list(series), list(series.values())
    size = max(_WINDOW, len(values) // 3)
    scores = [value.score for value in values]
    # Of the windows that have no evaluation in common with the last one
    best = max(range(len(values) - 2 * size + 1), key=lambda start: _mean(scores[start : start + size]))
    then, now = (slice(start, start + size) for start in (best, len(values) - size))
    before, after = _mean(scores[then]), _mean(scores[now])
    proxies = [_mean([value.divergence for value in values[window]]) for window in (then, now)]
    error = _noise(scores[best:]) * math.sqrt(2 / size)
    if proxies[1] >= proxies[0] or before - after <= _ERRORS * error:
        return None
    text = (
        f"`{name}` fell from {before:.3g} (steps {steps[then][0]} to {steps[then][-1]}) to {after:.3g} (steps "
        f"{steps[now][0]} to {steps[now][-1]}), {before - after:.3g} where chance explains about {error:.2g}, while "
        f"the divergence from the teacher fell from {proxies[0]:.3g} to {proxies[1]:.3g}: the student learns its "
        "teacher's faults (teacher hacking). Take a checkpoint of the earlier steps (`metric_for_best_model`), and "
        "check the context. New rollouts at each step, more prompts and fewer epochs kept it away (arXiv 2502.02671)."
    )
    residual = log_log_residual(series)
    if residual is None:
        return text
    return f"{text} On log-log axes the divergences lie {residual:.2g} nats (rms) off a straight line by step."


def log_log_residual(series: Series) -> float | None:
    """Root mean square residual of the straight line of log divergence by log step, which a run without hacking
    follows. `None` with fewer than three points."""
    points = [(math.log(step), math.log(one.divergence)) for step, one in series.items() if step and one.divergence > 0]
    if len(points) < 3:
        return None
    x_mean, y_mean = (_mean(list(side)) for side in zip(*points, strict=True))
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
    return math.sqrt(_mean([(y - y_mean - slope * (x - x_mean)) ** 2 for x, y in points]))


def _noise(scores: list[float]) -> float:
    """Standard deviation around a slow trend, from the squared differences of neighbours (von Neumann, 1941)."""
    return math.sqrt(_mean([(b - a) ** 2 for a, b in itertools.pairwise(scores)]) / 2)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
