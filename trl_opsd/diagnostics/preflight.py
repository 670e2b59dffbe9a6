# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whether a training is worth it, before it: the teacher's and the student's score, divergence, lengths and time."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from trl_opsd.diagnostics.drawn_batches import OWN, compared_collectors, drawn_batches
from trl_opsd.diagnostics.preflight_examples import Example, examples_of
from trl_opsd.diagnostics.preflight_report import PreflightReport, ViewReport, with_p_values
from trl_opsd.diagnostics.preserve_trainer_state import preserve_trainer_state
from trl_opsd.engines import Backend
from trl_opsd.monitoring.names import PREFIX
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.rollouts.view import PrivilegedSource
from trl_opsd.trainer.rehearsal import pop_metrics
from trl_opsd.trainer.scoring import Answers, ScoreFunc, Scorer
from trl_opsd.trainer.view_collector import CollectedViews, ViewCollector


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer


def preflight(
    trainer: "OPSDTrainer",
    rows: int = 32,
    *,
    sources: Mapping[str, PrivilegedSource] | None = None,
    score_func: ScoreFunc | None = None,
    temperature: float | None = None,
) -> PreflightReport:
    """
    Measure on a few rows what a training starts from, and say whether it is worth it.

    The student samples as in training, and the teacher scores these rollouts. Then both write an answer anew for each
    rollout with a view, the teacher with the context in view, with transformers also where the student samples with
    vLLM. These pairs are scored, not the rollouts: a source that looks at rewards has chosen them by their scores. The
    final gain was seen to be linear in the gap ([A Predictive Law for On-Policy Self-Distillation From World
    Feedback](https://huggingface.co/papers/2605.30070)). No weight changes, and a training after it is the one without.

    A collective: every process calls it.

    Args:
        trainer ([`OPSDTrainer`]): Before or after its training, in one process or several under DDP.
        rows (`int`, *optional*, defaults to `32`): Dataset rows to draw, rounded up to whole generation batches.
        sources (`Mapping[str, PrivilegedSource]`, *optional*): Further sources by name, to compare with the trainer's
            (`"own"`) on the same rollouts.
        score_func (`Callable`, *optional*): A function as TRL's reward functions are, the higher the better. `None`
            means the trainer's `score_func`, or its rewards by their weights; without these, nothing is predicted, and
            only the examples are answered.
        temperature (`float`, *optional*): Of the answers that are scored, on both sides: that of your evaluation, `0.0`
            for greedy answers. `None` means that of training. A small model can be good at the one and bad at the
            other.

    Returns:
        [`PreflightReport`]: The figures; printed, a table and a verdict.

    Raises:
        ValueError: If the trainer does not distil, shards its weights, or has too few rows.
    """
    _check(trainer, rows, temperature)
    with preserve_trainer_state(trainer):
        return _Measurement(trainer, sources or {}, score_func or trainer.score_func, temperature).report(rows)


def _check(trainer: "OPSDTrainer", rows: int, temperature: float | None) -> None:
    if trainer.is_plain_grpo:
        raise ValueError("`preflight` compares teacher and student; this trainer has no teacher (see its `args`).")
    if Backend(trainer.accelerator).prepares_model_in_train:
        raise ValueError(
            "`preflight` runs before DeepSpeed or FSDP take the model, which they do when training begins. Run it in "
            "one process or under DDP, with a smaller model of the family if this one does not fit."
        )
    if temperature is not None and temperature < 0:
        raise ValueError(f"`temperature` must not be negative, got {temperature}.")
    if rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}.")


@dataclass
class _Tally:
    """Measurements of one view: local rows as `(has it, tokens read, prompt, student's score, teacher's score)`."""

    rows: list[tuple[bool, int, int, float, float]] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    log_ratios: list[float] = field(default_factory=list)
    dropped: int = 0
    shortened: int = 0


class _Measurement:
    def __init__(
        self,
        trainer: "OPSDTrainer",
        sources: Mapping[str, PrivilegedSource],
        score_func: ScoreFunc | None,
        temperature: float | None,
    ):
        self.trainer, self.accelerator = trainer, trainer.accelerator
        self.notes: dict[str, None] = {}  # each once, in order
        self.scorer = Scorer(trainer, score_func, temperature, self._note)
        if self.scorer.scores and temperature is not None:
            self._note(f"scores are of answers at temperature {temperature:g}, all else of {trainer.temperature:g}.")
        self.collectors = compared_collectors(trainer, sources)
        trainer.collector = self.collectors[OWN]
        self.tallies: dict[tuple[str, str], _Tally] = {}
        self.rollouts: list[tuple[float, int, bool]] = []  # local: the student's score, tokens, truncated
        self.examples: list[Example] = []  # of the first batch, local
        self.seconds: list[float] = []

    def report(self, rows: int) -> PreflightReport:
        trainer, args = self.trainer, self.trainer.args
        for batch in drawn_batches(trainer, rows, self._note):
            output = self._batch(batch)
        steps = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        seconds = torch.tensor([statistics.mean(self.seconds), self._loss_seconds(output) * args.num_iterations])
        slowest = self.accelerator.gather(seconds.to(self.accelerator.device).unsqueeze(0)).amax(0) / steps
        scores, lengths, truncated = zip(*gather_object(self.rollouts), strict=True)
        views = [_view_report(*names, self.tallies[names], len(scores)) for names in sorted(self.tallies)]
        # A batch without any view has one of the default name in their place
        found = {view.source for view in views if view.share}
        views = with_p_values([view for view in views if view.share or view.dropped or view.source not in found])
        if args.teacher_overlong == "error" and any(view.dropped for view in views):
            self._note("training stops at a view that is too long: shorten the contexts or set `teacher_overlong`.")
        return PreflightReport(
            prompts=len(scores) // trainer.num_generations,
            rollouts=len(scores),
            student_score=_mean([score for score in scores if math.isfinite(score)]),
            completion_length=statistics.mean(lengths),
            truncated=sum(truncated) / len(truncated),
            length_limit=trainer.collector.encoder.max_length,
            sampling_seconds=slowest[0].item(),
            loss_seconds=slowest[1].item(),
            max_steps=max(args.max_steps, 0),
            views=views,
            examples=gather_object(self.examples),
            notes=list(self.notes),
        )

    # One generation batch

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Measure one generation batch, and return it as it would be trained on."""
        trainer = self.trainer
        start = _now()
        output = trainer.sample(rows)
        self.seconds.append(_now() - start)
        rollouts = trainer.collected.rollouts
        tools, encoded = trainer.tools_of_rows(), {}
        for name, collector in self.collectors.items():
            collected = trainer.collected if name == OWN else self._collected(collector, rollouts)
            skipped = sum(gather_object([collected.skipped]))
            if skipped:
                self._note(f"the source {name!r} failed on {skipped} rollouts of a batch, which have no views.")
            encoded |= {(name, view): one for view, one in collector.encode(collected, tools).items()}
        for names, one in encoded.items():
            self._compare(self.tallies.setdefault(names, _Tally()), trainer.with_views(output, {names[1]: one}))
        first, nothing = len(self.seconds) == 1, Answers.none(len(rollouts))
        writes = self.scorer.scores or first  # without a score, only the examples
        # From here on, environments are not in their final state any more
        bare = self.scorer.students(rollouts) if writes else nothing
        self.rollouts += [(s, len(r.completion_ids), r.truncated) for s, r in zip(bare.scores, rollouts, strict=True)]
        before = (len(self.seconds) - 1) * trainer.args.generation_batch_size // trainer.num_generations
        for names, one in encoded.items():
            student, teacher = self.scorer.pairs(rollouts, one, bare) if writes else (nothing, nothing)
            if first and names[0] == OWN:
                tokenizer, views = trainer._tokenizer, trainer.collected.views
                self.examples += examples_of(tokenizer, names, rollouts, views, one, student, teacher)
            tally = self.tallies[names]
            tally.dropped += one.dropped
            tally.shortened += one.shortened
            lengths = [len(ids) for ids in one.prompt_ids]
            prompts = [before + rollout.group for rollout in rollouts]
            has = [weight > 0 for weight in one.weights]
            tally.rows += zip(has, lengths, prompts, student.scores, teacher.scores, strict=True)
            if any(math.isinf(score) for score in (*student.scores, *teacher.scores)):
                self._note("scores that are not finite are left out.")
        return output

    def _collected(self, collector: ViewCollector, rollouts: list[Rollout]) -> CollectedViews:
        return collector.collect(lambda: rollouts, self.trainer.num_generations, self.trainer.state.global_step)

    def _compare(self, tally: _Tally, output: dict[str, Any]) -> None:
        """Teacher and student on the student's own tokens."""
        pop_metrics(self.trainer)
        with torch.no_grad():
            for batch in self.trainer.micro_batches(output):
                self.trainer.loss_of(batch)
        metrics = pop_metrics(self.trainer)
        tally.divergences += metrics.get(f"{PREFIX}divergence", [])
        tally.log_ratios += metrics.get(f"{PREFIX}gap/mean", [])

    def _loss_seconds(self, output: dict[str, Any]) -> float:
        """Time of the teacher's forwards and the student's forwards and backwards over a generation batch."""
        batches, start = self.trainer.micro_batches(output), _now()
        for batch in batches:
            self.trainer.loss_of(batch).backward()
        if self.trainer.args.gradient_checkpointing:
            self._note("the time is without gradient checkpointing, which begins with the training and costs more.")
        return _now() - start

    def _note(self, text: str) -> None:
        self.notes[text] = None


def _view_report(source: str, view: str, tally: _Tally, rollouts: int) -> ViewReport:
    """Report of one view over all processes. A collective."""
    rows = [row for row in gather_object(tally.rows) if row[0]]
    scored = [row[2:] for row in rows if math.isfinite(row[3]) and math.isfinite(row[4])]
    by_prompt: dict[int, list[tuple[float, float]]] = {}
    for prompt, student, teacher in scored:
        by_prompt.setdefault(prompt, []).append((student, teacher))
    # Rollouts of one prompt are no samples apart
    means = {
        prompt: [statistics.mean(side) for side in zip(*pairs, strict=True)] for prompt, pairs in by_prompt.items()
    }
    lengths = [length for _, length, *_ in rows]
    return ViewReport(
        source=source,
        view=view,
        share=len(rows) / rollouts,
        dropped=sum(gather_object([tally.dropped])),
        shortened=sum(gather_object([tally.shortened])),
        mean_length=_mean(lengths),
        max_length=max(lengths, default=0),
        divergence=_mean(tally.divergences),
        log_ratio=_mean(tally.log_ratios),
        scored=len(scored),
        student_score=_mean([student for student, _ in means.values()]),
        teacher_score=_mean([teacher for _, teacher in means.values()]),
        gaps={prompt: teacher - student for prompt, (student, teacher) in sorted(means.items())},
        bounded=all(0 <= value <= 1 for _, *pair in scored for value in pair),
    )


def _mean(values: list[float]) -> float:
    return statistics.mean(values) if values else math.nan


def _now() -> float:
    """Seconds, once the accelerator has done its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
