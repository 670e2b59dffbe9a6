# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Report of [`preflight`] in plain words.

The final gain of on-policy self-distillation was seen to grow linearly with the gap between the teacher's and the
student's score before training ([A Predictive Law for On-Policy Self-Distillation From World
Feedback](https://huggingface.co/papers/2605.30070), intercept about -0.003 for Qwen3-8B). The line's slope belongs to
that model and those tasks, so a verdict here is in words and not a number. Its thresholds are this package's own.

A gap counts where the sign-flip test over prompts tells it from chance. Of all views of a report together, the
probability that any is called better without a gap is at most [`ALPHA`], and so is that any is called worse.
"""

import math
import statistics
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from trl_opsd.diagnostics.preflight_examples import SHOWN, Example
from trl_opsd.diagnostics.significance import ALPHA, holm, pairs_needed, sign_flip_p


SAME = 1e-3  # nats a token: below it the teacher tells the student next to nothing
LOW = 0.2  # score of a teacher that mostly fails, where scores lie between 0 and 1


@dataclass(frozen=True)
class ViewReport:
    """
    One view of one source.

    Args:
        source, view (`str`): Its names.
        share (`float`): Share of the rollouts that have it.
        dropped, shortened (`int`): Views that did not fit into what the teacher can read.
        mean_length, max_length (`float`, `int`): Tokens that the teacher reads before it scores the rollout.
        divergence (`float`): Mean of the loss's divergence, in nats a token, `nan` without views.
        log_ratio (`float`): Mean of log q(y_t) - log p(y_t) over the student's own tokens, teacher against student.
        scored (`int`): Rollouts with the view for which both sides have a score.
        student_score, teacher_score (`float`): Mean score over their prompts of what the student and the teacher write
            anew, each prompt once; `nan` without.
        gaps (`dict[int, float]`): Score of the teacher minus that of the student by the number of the prompt, means
            over its rollouts.
        bounded (`bool`): Whether all scores lie between 0 and 1.
        p_better, p_worse (`float`): Probability of a gap as large, above and below zero, where there is none, adjusted
            for the views that are tested together: from [`with_p_values`].
        tests (`int`): Number of these views.
    """

    source: str
    view: str
    share: float
    dropped: int
    shortened: int
    mean_length: float
    max_length: int
    divergence: float
    log_ratio: float
    scored: int
    student_score: float
    teacher_score: float
    gaps: dict[int, float]
    bounded: bool
    p_better: float = 1.0
    p_worse: float = 1.0
    tests: int = 1

    @property
    def gap(self) -> float:
        """Score of the teacher minus that of the student, `nan` without scores."""
        return self.teacher_score - self.student_score

    @property
    def prompts(self) -> int:
        """Prompts with scores: the samples of the test, as the rollouts of one prompt are not independent."""
        return len(self.gaps)

    @property
    def error(self) -> float:
        """Standard error of the gap, `inf` from fewer than two prompts."""
        return statistics.stdev(self.gaps.values()) / math.sqrt(self.prompts) if self.prompts > 1 else math.inf

    @property
    def verdict(self) -> str:
        """`"no views"`, `"no divergence"`, `"same"`, `"no score"`, `"unsure"`, `"no gap"`, `"worse"`, `"weak"` or
        `"worth it"`."""
        if self.share == 0:
            return "no views"
        if not math.isfinite(self.divergence):
            return "no divergence"
        if abs(self.divergence) < SAME:
            return "same"
        if not self.scored:
            return "no score"
        if self.p_worse <= ALPHA:
            return "worse"
        if self.p_better <= ALPHA:
            return "weak" if self.bounded and self.teacher_score < LOW else "worth it"
        return "unsure" if self.prompts < pairs_needed(self.tests) else "no gap"

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        gap = f"{self.gap:+.3f} over {self.prompts} prompts, p = {min(self.p_better, self.p_worse):.2g}"
        return {
            "no views": "No rollout has this view, so nothing would be distilled. Check the source and its columns"
            + (", and the lengths: views were too long." if self.dropped else "."),
            "no divergence": f"The divergence is {self.divergence:g}, so no prediction is possible: either no token of "
            "these rollouts is distilled (`num_loss_tokens_to_skip`, spans), or one side rules out what the other may "
            "say.",
            "same": f"With the context the model says nearly what it says without ({self.divergence:.2g} nats a token, "
            f"less than {SAME:g}): there is nothing to learn. Check what the teacher reads.",
            "no score": "Without a score no prediction is possible: the divergence says that there is something to "
            "learn, not that it is any good. Give a reward or a `score_func`; where there is one, a note says why the "
            "teacher has none.",
            "unsure": f"{self.prompts} scored prompts are too few for a prediction, which takes "
            f"{pairs_needed(self.tests)}: raise the number of rows.",
            "no gap": f"No gap can be told from chance ({gap}), so no gain is to be expected: not worth training as it "
            "is. Better contexts come first, or more rows if the gap may be small.",
            "worse": f"The teacher is worse than the student ({gap}): training would pull the student down. Not worth "
            "it.",
            "weak": f"The teacher is better than the student ({gap}) but its own score is low "
            f"({self.teacher_score:.3f}, less than {LOW:g}): expect little.",
            "worth it": f"The teacher is better than the student ({gap}): worth training. The student is pulled "
            f"towards a score of {self.teacher_score:.3f}; how much of the gap it gains differs from task to task.",
        }[self.verdict]


def with_p_values(views: list[ViewReport]) -> list[ViewReport]:
    """Views with the p-values of their gaps: Holm's correction over all that have scores, for each side apart."""
    scored = [view for view in views if view.scored]
    p_values = [sign_flip_p(list(view.gaps.values())) for view in scored]
    better, worse = (holm([pair[side] for pair in p_values]) for side in (0, 1))
    pairs = iter(zip(better, worse, strict=True))
    return [
        replace(view, p_better=p[0], p_worse=p[1], tests=len(scored)) if view.scored and (p := next(pairs)) else view
        for view in views
    ]


@dataclass(frozen=True)
class PreflightReport:
    """
    Measurements of [`preflight`].

    Args:
        prompts, rollouts (`int`): Dataset rows, and completions that the student sampled of them.
        student_score (`float`): Mean score of what it writes anew for each of them, `nan` without.
        completion_length (`float`): Mean tokens of its completions.
        truncated (`float`): Share of them that ended for want of length.
        length_limit (`int`, *optional*): Most tokens that the teacher can read, context and completion.
        sampling_seconds (`float`): Time of an optimizer step for sampling, rewards and views, as measured.
        loss_seconds (`float`): Its time for the teacher's forward and the student's forward and backward, as measured.
        max_steps (`int`): Optimizer steps that are planned, 0 where the config counts epochs.
        views (`list[ViewReport]`): By source and view.
        examples (`list[Example]`): Rows of the first generation batch, with what the teacher reads of them and what
            both sides write: by the views of the trainer's source, a row of each prompt.
        notes (`list[str]`): What was measured otherwise than in training.
    """

    prompts: int
    rollouts: int
    student_score: float
    completion_length: float
    truncated: float
    length_limit: int | None
    sampling_seconds: float
    loss_seconds: float
    max_steps: int
    views: list[ViewReport]
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Estimated time of an optimizer step."""
        return self.sampling_seconds + self.loss_seconds

    @property
    def worthy(self) -> list[ViewReport]:
        """The views that are worth training, the one with the largest gap first."""
        return sorted((view for view in self.views if view.verdict == "worth it"), key=lambda view: -view.gap)

    def __str__(self) -> str:
        score = "" if math.isnan(self.student_score) else f"score {self.student_score:.3f}, "
        lines = [
            f"Pre-flight: {self.rollouts} rollouts of {self.prompts} rows, no weight has changed.",
            f"Student: {score}{self.completion_length:.1f} tokens a completion, {self.truncated:.0%} of them cut off.",
            *self._examples(),
            "",
            *self._table(),
            "",
            *(f"{view.source}/{view.view}: {view.sentence}" for view in self.views),
            *self._comparison(),
            "",
            *self._time(),
            *(f"Note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The figures, verdicts and examples as values of JSON; what is not finite is `None`."""
        figures = {one.name: getattr(self, one.name) for one in fields(self)}
        derived = ("gap", "prompts", "error", "verdict", "sentence")
        views = [asdict(view) | {name: getattr(view, name) for name in derived} for view in self.views]
        examples = [asdict(one) for one in self.examples]
        return _finite(figures | {"step_seconds": self.step_seconds, "views": views, "examples": examples})

    def _examples(self) -> list[str]:
        """Three rows of the first view that has any, and what to look at in them."""
        lines = []
        shown = [one for one in self.examples if one.view == self.examples[0].view][:SHOWN]
        for number, one in enumerate(shown, 1):
            lines += ["", *one.lines(number)]
        if shown and not any(view.scored for view in self.views):
            lines += [
                "",
                "There is no score, so look yourself: does the teacher read the context, in the right place and whole? "
                "Are its answers what you want, and better than the student's?",
            ]
        return lines

    def _table(self) -> list[str]:
        limit = "too long" if self.length_limit is None else f"over {self.length_limit}"
        head = ["source/view", "rows", "teacher reads", limit, "divergence", "log q/p", "student", "teacher", "gap"]
        table = [head]
        for view in self.views:
            over = f"{view.dropped}" + (f" (+{view.shortened} cut)" if view.shortened else "")
            values = view.divergence, view.log_ratio, view.student_score, view.teacher_score
            numbers = [_number(value) for value in values]
            reads = f"{view.mean_length:.0f}, max {view.max_length}" if view.share else "-"
            gap = "-" if math.isnan(view.gap) else f"{view.gap:+.3f}"
            table.append([f"{view.source}/{view.view}", f"{view.share:.0%}", reads, over, *numbers, gap])
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]

    def _comparison(self) -> list[str]:
        if all(math.isnan(view.gap) for view in self.views):
            return []
        law = "The gain was seen to grow about linearly with the gap (arXiv 2605.30070), with no gain at no gap."
        if len(self.worthy) > 1:
            best, *others = self.worthy
            if max(_p_above(best, view) for view in others) <= ALPHA / len(self.worthy):  # any of them may come first
                law += f" The largest gap here is that of {best.source}/{best.view}."
            else:
                law += " Which of the largest gaps here is the larger can't be told from chance."
        return [law]

    def _time(self) -> list[str]:
        lines = [
            f"Time: about {self.step_seconds:.3g} s an optimizer step, of which {self.sampling_seconds:.3g} s for "
            f"sampling, rewards and views and {self.loss_seconds:.3g} s for teacher and student (both measured). The "
            "optimizer, logging and the synchronisation of processes are not in it."
        ]
        if self.max_steps:
            minutes = self.max_steps * self.step_seconds / 60
            lines.append(f"Extrapolated to {self.max_steps} steps of this length: {minutes:.3g} minutes.")
        return lines


def _p_above(view: ViewReport, other: ViewReport) -> float:
    """P-value of one view's gap above another's, on the prompts of both."""
    return sign_flip_p([gap - other.gaps[prompt] for prompt, gap in view.gaps.items() if prompt in other.gaps])[0]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """A value for JSON, which knows no infinities."""
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
