# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Warnings for a dead signal and for the failures that self-distillation is known for, from the logged metrics."""

from dataclasses import dataclass, field

from accelerate.logging import get_logger

from trl_opsd.monitoring.names import PREFIX


logger = get_logger(__name__)

# A sign must hold for this many logs: single batches are noisy
_PATIENCE = 3
# Logs at each end of the run so far that trends compare
_WINDOW = 4
# Least Q_A, the teacher's mass that the signed entry clip leaves alone, without a warning. On the two tasks where the
# clip was seen to invert the objective it was 0.63 to 0.83 at the start; no run that learned was seen below
_LEAST_MASS = 0.9


@dataclass
class MetricWindow:
    """
    First and last values of a metric: all that a sign looks at, so that a log costs the same however long the run is.

    Args:
        first, last (`list[float]`): At most `_WINDOW` values at the beginning and at the end.
        count (`int`): Values so far.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, value: float) -> None:
        """Add the value of a further log."""
        if self.count < _WINDOW:
            self.first.append(value)
        self.last = [*self.last, value][-_WINDOW:]
        self.count += 1


Windows = dict[str, MetricWindow]  # by the name of the metric


class SignalMonitor:
    """
    Watches the training logs and says once for each kind of trouble what it means and what to check.

    A falling divergence alone proves nothing: a live or averaged teacher follows the student into a loop and the
    divergence falls all the same.

    Args:
        clip_reverses_signs (`bool`): As in [`~trl_opsd.losses.DivergenceSpec`]: whether the signed entry clip of the
            forward KL is the one clip, so that `self_distillation/clipped_share` is the teacher's mass on its entries.
        expects_views (`bool`): Whether a run without any view is a mistake.
    """

    def __init__(self, clip_reverses_signs: bool = False, expects_views: bool = True) -> None:
        self.signs = {**_SIGNS, "reversed_entries": _reversed_entries} if clip_reverses_signs else dict(_SIGNS)
        if not expects_views:
            del self.signs["no_views"]
        self.windows: Windows = {}
        self.said: set[str] = set()

    def observe(self, logs: dict[str, float], step: int) -> dict[str, str]:
        """
        Observe one training log.

        Args:
            logs (`dict[str, float]`): What the trainer logs.
            step (`int`): Optimizer step.

        Returns:
            `dict[str, str]`: The warnings given now, by kind.
        """
        found = {kind: f"Step {step}: {text}" for kind, text in self._new_signs(logs).items()}
        for text in found.values():
            logger.warning(text)
        return found

    def recall(self, log_history: list[dict[str, float]]) -> None:
        """Recall the logs of a resumed run up to its checkpoint. Its warnings are not given again."""
        self.windows, self.said = {}, set()
        for logs in log_history:
            self._new_signs({name: value for name, value in logs.items() if name != "step"})  # which `observe` lacks

    def _new_signs(self, logs: dict[str, float]) -> dict[str, str]:
        if f"{PREFIX}view_share" not in logs:  # a final summary, or a log between two generations
            return {}
        for name, value in logs.items():
            if isinstance(value, (int, float)):
                self.windows.setdefault(name, MetricWindow()).add(value)
        new = {kind: sign for kind, sign in self.signs.items() if kind not in self.said}
        found = {kind: text for kind, sign in new.items() if (text := sign(self.windows))}
        self.said |= found.keys()
        return found


def _last(windows: Windows, name: str) -> list[float]:
    """The last values of a metric, empty before there are enough."""
    window = windows.get(PREFIX + name, MetricWindow())
    return window.last[-_PATIENCE:] if window.count >= _PATIENCE else []


def _trend(windows: Windows, name: str) -> tuple[float, float] | None:
    """Mean of a metric over the first and the last logs, `None` before the two windows are apart."""
    window = windows.get(name, MetricWindow())
    if window.count < 2 * _WINDOW:
        return None
    return sum(window.first) / _WINDOW, sum(window.last) / _WINDOW


def _no_views(windows: Windows) -> str | None:
    shares = _last(windows, "view_share")
    if shares and max(shares) == 0:
        return (
            "no rollout had a privileged context, so nothing is distilled. Check the dataset column "
            "(`privileged_column`) or the privileged source, with `teacher_overlong` the metric "
            "`self_distillation/dropped_views`, and with a method of several contexts the names of the views and the "
            "metric `self_distillation/incomplete_rollouts`."
        )
    return None


def _zero_divergence(windows: Windows) -> str | None:
    values = _last(windows, "divergence")
    if values and max(abs(value) for value in values) < 1e-6:
        return (
            "the teacher's and the student's distributions are the same, so there is nothing to learn. Check that the "
            "teacher's prompt differs (print the completions with `log_completions=True`), or that a moving teacher "
            "has not simply become the student."
        )
    return None


def _all_clipped(windows: Windows) -> str | None:
    values = _last(windows, "clipped_share")
    if values and min(values) > 0.95:
        return (
            "a clip takes away nearly the whole signal (`self_distillation/clipped_share` above 0.95). Raise or remove "
            "`distillation_entry_clip` or `distillation_token_clip`."
        )
    return None


def _reversed_entries(windows: Windows) -> str | None:
    masses = [1 - value for value in _last(windows, "clipped_share")]
    if masses and max(masses) < _LEAST_MASS:
        return (
            f"Q_A, the teacher's mass on the entries that `distillation_entry_clip` leaves alone, is {masses[-1]:.2f} "
            "(1 - `self_distillation/clipped_share`). The gradient on logit i is Q_A p_i - q_i there, and Q_A p_i on a "
            "clipped entry: its sign is reversed, and the student is pushed away from what the teacher wants most. "
            "Leave the clip out (`distillation_entry_clip: null`), or set "
            "`distillation_entry_clip_mode='non_negative'`."
        )
    return None


def _inverted_clip(windows: Windows) -> str | None:
    loss, divergence = _trend(windows, f"{PREFIX}loss"), _trend(windows, f"{PREFIX}divergence")
    if loss is None or divergence is None or divergence[1] <= divergence[0]:
        return None
    negative = max(_last(windows, "loss")) < 0
    apart = loss[1] < loss[0] and divergence[1] > 1.1 * divergence[0]
    if not (negative or apart):
        return None
    return (
        f"the clipped loss went from {loss[0]:.3g} to {loss[1]:.3g} while the true divergence rose from "
        f"{divergence[0]:.3g} to {divergence[1]:.3g}: the clip has inverted the objective. Remove "
        "`distillation_entry_clip`, or set `distillation_entry_clip_mode='non_negative'`."
    )


def _collapse(windows: Windows) -> str | None:
    divergence = _trend(windows, f"{PREFIX}divergence")
    if divergence is None or divergence[1] > 0.7 * divergence[0]:
        return None
    signs = []
    # Truncation counts once it is nearly complete: students of a frozen teacher were seen to go from 0.5 to 0.8 and
    # stay sound, those that collapsed with a live one to 0.95
    for name, text, rise, level in (
        (f"{PREFIX}repetition", "repetition", 0.1, 0.0),
        ("completions/clipped_ratio", "the share of truncated completions", 0.2, 0.9),
    ):
        trend = _trend(windows, name)
        if trend and trend[1] - trend[0] > rise and trend[1] > level:
            signs.append(f"{text} rose from {trend[0]:.2f} to {trend[1]:.2f}")
    if not signs:
        return None
    return (
        f"the divergence fell from {divergence[0]:.3g} to {divergence[1]:.3g}, but {' and '.join(signs)}: student and "
        "teacher may be collapsing together. Read completions (`log_completions=True`) before you trust the "
        "divergence; `teacher_model_kind='base'` can't follow the student down."
    )


_SIGNS = {
    "no_views": _no_views,
    "zero_divergence": _zero_divergence,
    "all_clipped": _all_clipped,
    "inverted_clip": _inverted_clip,
    "collapse": _collapse,
}
