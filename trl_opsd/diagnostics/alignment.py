# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Gradient alignment: whether a distillation loss pushes the student's next token to where the score is better
(Unmasking On-Policy Distillation, 2605.10889).

Legend: J candidates of a node, V vocabulary; p student, q teacher.
"""

import math
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.diagnostics.alignment_report import Alignment, AlignmentReport, NodeCosine, with_p_values
from trl_opsd.diagnostics.drawn_batches import OWN, compared_collectors, drawn_batches
from trl_opsd.diagnostics.logit_directions import TokenPlace, among, cosine, ideal_direction, loss_gradient
from trl_opsd.diagnostics.preserve_trainer_state import preserve_trainer_state
from trl_opsd.engines import Backend
from trl_opsd.losses import DivergenceSpec
from trl_opsd.rollouts.rollout import Rollout, reaches
from trl_opsd.rollouts.view import PrivilegedSource
from trl_opsd.teacher.teacher import live_forward
from trl_opsd.trainer.scoring import ScoreFunc, Scorer


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

MASS = 0.95  # probability of the student that the candidates of a node cover, if so few do
KLS = ("forward_kl", "reverse_kl")


def alignment(
    trainer: "OPSDTrainer",
    rows: int = 8,
    *,
    nodes: int = 4,
    candidates: int = 4,
    samples: int = 8,
    sources: Mapping[str, PrivilegedSource] | None = None,
    score_func: ScoreFunc | None = None,
) -> AlignmentReport:
    """
    Measure at single tokens whether the loss moves the student as a better score would.

    The student samples as in training. At some tokens of a rollout, the nodes, it is made to take each of its likeliest
    tokens in turn and goes on to the end several times: the mean scores say how its logits should move. The report has
    the cosine of this ideal direction and those of the forward KL, the reverse KL and the run's own loss. No weight
    changes, and a training after it is the one without.

    Args:
        trainer ([`OPSDTrainer`]): Before or after its training, in one process.
        rows (`int`, *optional*, defaults to `8`): Dataset rows to draw, rounded up to whole generation batches.
        nodes (`int`, *optional*, defaults to `4`): Tokens of each rollout, drawn by the student's entropy.
        candidates (`int`, *optional*, defaults to `4`): Most tokens to try at a node.
        samples (`int`, *optional*, defaults to `8`): Continuations of each: an even number, for the reliability.
        sources (`Mapping[str, PrivilegedSource]`, *optional*): Further sources by name, to compare with the trainer's
            (`"own"`) at the same nodes.
        score_func (`Callable`, *optional*): A function as TRL's reward functions are, the higher the better. `None`
            means the trainer's `score_func`, or its rewards by their weights.

    Returns:
        [`AlignmentReport`]: The figures; printed, a table and a verdict.

    Raises:
        ValueError: If the trainer does not distil, has no score, runs in several processes, or calls tools.
    """
    _check(trainer, {"rows": rows, "nodes": nodes}, candidates, samples)
    with preserve_trainer_state(trainer):
        measurement = _Measurement(trainer, sources or {}, score_func or trainer.score_func)
        measurement.size = nodes, candidates, samples
        return measurement.report(rows)


def _check(trainer: "OPSDTrainer", counts: dict[str, int], candidates: int, samples: int) -> None:
    if trainer.is_plain_grpo:
        raise ValueError("`alignment` looks at a distillation loss; this trainer has none (see its `args`).")
    if trainer.accelerator.num_processes > 1 or Backend(trainer.accelerator).prepares_model_in_train:
        raise ValueError("`alignment` runs in one process that holds the whole model: set `--num_processes 1`.")
    if trainer.tools or trainer.environment_factories:
        raise ValueError("`alignment` can't go on from the middle of a trajectory with tools or environments.")
    if trainer.images is not None:
        raise ValueError("`alignment` reads texts alone, and this model has a processor for images.")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}.")
    if candidates < 2:
        raise ValueError(f"`candidates` must be at least 2, got {candidates}: a direction needs a choice.")
    if samples < 2 or samples % 2:
        raise ValueError(f"`samples` must be an even number from 2 on, got {samples}: two halves are compared.")


@dataclass
class _Node:
    """
    A token of a rollout of the batch.

    Args:
        row (`int`): The rollout.
        position (`int`): Number of the token in the completion.
        logits (`torch.Tensor` of shape `(V,)`): The student's, at temperature 1.
        candidates, probabilities (`torch.Tensor` of shape `(J,)`): Token ids, and probabilities that sum to 1.
        scores (`torch.Tensor` of shape `(J, samples)`): Of the continuations.
    """

    row: int
    position: int
    logits: torch.Tensor
    candidates: torch.Tensor
    probabilities: torch.Tensor
    scores: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def ideal(self, part: slice = slice(None)) -> torch.Tensor | None:
        """Ideal direction from some of the continuations, in units of the range of the mean scores; `None` where these
        are equal."""
        means = self.scores[:, part].mean(1)
        span = means.max() - means.min()
        return ideal_direction(self.probabilities, means / span) if span > 0 else None


class _Measurement:
    size: tuple[int, int, int]  # nodes of a rollout, candidates, samples

    def __init__(self, trainer: "OPSDTrainer", sources: Mapping[str, PrivilegedSource], score_func: ScoreFunc | None):
        self.trainer = trainer
        self.notes: dict[str, None] = {}
        self.scorer = Scorer(trainer, score_func, None, self._note)
        if not self.scorer.scores:
            raise ValueError("`alignment` needs a score to say what is better: give a reward or a `score_func`.")
        self.collectors = compared_collectors(trainer, sources)
        trainer.collector = self.collectors[OWN]
        self.cosines: dict[tuple[str, str, str], list[NodeCosine]] = {}
        self.reliabilities: list[float] = []
        self.counts = dict.fromkeys(("rollouts", "nodes", "equal", "sure", "tokens", "texts"), 0)
        spec = trainer.objective.spec
        self.specs = {name: DivergenceSpec(name, temperature=spec.temperature) for name in KLS}
        method = trainer.method.method
        self.has_own_loss = not (trainer.objective.sampled_token or method.needs_all_tokens)
        if not self.has_own_loss:
            self._note(
                "the run's own loss is not among them, as it looks at more than one token, or makes advantages of "
                "sampled ones. Of the plain gap as an advantage, reverse_kl is the expectation."
            )
        elif method.hidden_state_loss is not None:
            self._note("the run's loss is without its part on hidden states.")

    def report(self, rows: int) -> AlignmentReport:
        batches = drawn_batches(self.trainer, rows, self._note)
        for batch in batches:
            self._batch(batch)
        views = [Alignment(*names, nodes) for names, nodes in self.cosines.items()]
        return AlignmentReport(
            prompts=self.counts["rollouts"] // self.trainer.num_generations,
            samples=self.size[2],
            reliabilities=self.reliabilities,
            alignments=with_p_values(views),
            notes=list(self.notes),
            **self.counts,
        )

    def _batch(self, rows: list[dict[str, Any]]) -> None:
        trainer = self.trainer
        trainer.sample(rows)
        rollouts, tools = trainer.collected.rollouts, trainer.tools_of_rows()
        step, group = trainer.state.global_step, trainer.num_generations
        found = {
            name: collector.encode(collector.collect(lambda: rollouts, group, step), tools)
            for name, collector in self.collectors.items()
        }
        right = [reaches(s, trainer.args.success_reward_threshold) for s in self.scorer.of_rollouts(rollouts)]
        nodes = [node for row, rollout in enumerate(rollouts) for node in self._nodes(row, rollout)]
        self._score(rollouts, nodes)
        before = self.counts["rollouts"] // group
        self.counts["rollouts"] += len(rollouts)
        self.counts["nodes"] += len(nodes)
        for node in nodes:
            ideal = node.ideal()
            if ideal is None:
                self.counts["equal"] += 1
                continue
            halves = [node.ideal(slice(start, None, 2)) for start in (0, 1)]
            # A half in which all are equal knows no direction
            known = all(half is not None for half in halves)
            self.reliabilities.append(cosine(*halves) or 0.0 if known else 0.0)
            rollout = rollouts[node.row]
            place = (node.position + 0.5) / len(rollout.completion_ids)
            for source, views in found.items():
                for (view, loss), direction in self._directions(node, rollout, views).items():
                    value = cosine(ideal, direction)
                    one = NodeCosine(before + rollout.group, right[node.row], place, value)
                    self.cosines.setdefault((source, view, loss), []).append(one)

    # Nodes

    def _nodes(self, row: int, rollout: Rollout) -> list[_Node]:
        """Tokens at which the student has a choice, drawn by its entropy without replacement."""
        ids, most = rollout.completion_ids, self.size[1]
        logits = self._logits(live_forward(self.trainer.model), rollout.prompt_ids, ids)
        p = (logits / self.trainer.temperature).softmax(-1)
        values, tokens = p.topk(min(most, p.shape[1]))
        counts = 1 + (values.cumsum(-1) < MASS).sum(-1).clamp(max=values.shape[1] - 1)
        entropy = -torch.xlogy(p, p).sum(-1)
        self.counts["tokens"] += len(ids)
        self.counts["sure"] += int((counts < 2).sum())
        open_ = [position for position in range(len(ids)) if counts[position] > 1]
        draw = random.Random(f"alignment {self.trainer.args.seed} {self.counts['rollouts'] + row}")
        # Efraimidis and Spirakis (2006): the largest keys u^(1/weight) are a draw without replacement
        keys = {position: math.log(draw.random()) / float(entropy[position]) for position in open_}
        chosen = sorted(sorted(open_, key=lambda position: -keys[position])[: self.size[0]])
        return [
            _Node(
                row, position, logits[position], tokens[position, :count],
                values[position, :count].double() / values[position, :count].double().sum(),
            )
            for position in chosen for count in (int(counts[position]),)
        ]  # fmt: skip

    def _score(self, rollouts: list[Rollout], nodes: list[_Node]) -> None:
        """Continue from each candidate of each node, and score the answers."""
        samples = self.size[2]
        begun, of_rows = [], []
        for node in nodes:
            before = rollouts[node.row].completion_ids[: node.position]
            begun += [[*before, token] for token in node.candidates.tolist() for _ in range(samples)]
            of_rows += [rollouts[node.row]] * (len(node.candidates) * samples)
        if not nodes:
            return
        scores = iter(self.scorer.continuations(of_rows, begun).scores)
        self.counts["texts"] += len(begun)
        for node in nodes:
            values = [[next(scores) for _ in range(samples)] for _ in node.candidates]
            node.scores = torch.tensor(values, dtype=torch.float64, device=node.probabilities.device)
            if not node.scores.isfinite().all():
                raise ValueError("`alignment` needs a finite score of every answer, and the score gave none for one.")

    # Directions of the losses

    def _directions(
        self, node: _Node, rollout: Rollout, views: dict[str, EncodedView]
    ) -> dict[tuple[str, str], torch.Tensor]:
        """Descents on the node's logits by view and loss, of the views that teach the token."""
        spec, names = self.trainer.objective.spec, list(views)
        log_p = (node.logits / spec.temperature).log_softmax(-1)
        weights = [self._weight(view, node) for view in views.values()]
        # A view that does not teach the token has no weight, so that its distribution is of no account
        pairs = zip(views.values(), weights, strict=True)
        logits = [self._read(view, node, rollout) if weight else node.logits for view, weight in pairs]
        log_qs = [(one / spec.temperature).log_softmax(-1) for one in logits]
        label = rollout.completion_ids[node.position]
        relative = (node.position + 0.5) / len(rollout.completion_ids)
        taught = [i for i, weight in enumerate(weights) if weight]
        found = {}
        for i in taught:
            place = TokenPlace(label, relative, [1.0])
            for name, plain in self.specs.items():
                found[names[i], name] = loss_gradient(log_p, [log_qs[i]], plain, place)
        own = self.trainer.method.spec(spec, names)
        if taught and self.has_own_loss and (len(taught) > 1 or own not in self.specs.values()):
            place = TokenPlace(label, relative, weights)
            found["+".join(names[i] for i in taught), "own loss"] = loss_gradient(log_p, log_qs, own, place)
        return {key: among(gradient, log_p.exp(), node.candidates) for key, gradient in found.items()}

    @staticmethod
    def _weight(view: EncodedView, node: _Node) -> float:
        start, end = view.spans[node.row]
        return view.weights[node.row] if start <= node.position < end else 0.0

    def _read(self, view: EncodedView, node: _Node, rollout: Rollout) -> torch.Tensor:
        """Logits of the teacher at the node, `(V,)`."""
        model, row = self.trainer.model, node.row
        reader = live_forward(model) if view.live else self.trainer.teacher.teacher_forward(model)
        ids = rollout.completion_ids[view.starts[row] : node.position + 1]
        return self._logits(reader, view.prompt_ids[row], ids)[-1]

    def _logits(
        self, reader: AbstractContextManager[Any], prompt_ids: list[int], completion_ids: list[int]
    ) -> torch.Tensor:
        """Logits of each token of a completion from those before it, `(C, V)`, in float32 at least."""
        ids = torch.tensor([prompt_ids + completion_ids], device=self.trainer.accelerator.device)
        with reader as model, torch.no_grad(), self.trainer.accelerator.autocast():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits[0, len(prompt_ids) - 1 : -1].to(torch.promote_types(logits.dtype, torch.float32))

    def _note(self, text: str) -> None:
        self.notes[text] = None
