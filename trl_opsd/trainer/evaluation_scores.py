# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Avg@k and pass@k of an evaluation: of the student's rollouts, and of what the teacher writes to the same prompts."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.engines.random_state import keep_random_state
from trl_opsd.rollouts.rollout import Rollout, reaches
from trl_opsd.trainer.scoring import Scorer


if TYPE_CHECKING:
    from trl_opsd.config.opsd_config import OPSDConfig
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer


def evaluation_seed(args: "OPSDConfig", process_index: int) -> int:
    """Seed of each evaluation on a process: another one on each, but for those that share an engine of vLLM."""
    shared = args.vllm_tensor_parallel_size if args.use_vllm and args.vllm_mode == "colocate" else 1
    return args.seed + process_index // shared


@contextmanager
def seeded_evaluation(trainer: "OPSDTrainer", seed: int) -> Iterator[None]:
    """
    Evaluate with the same random numbers each time, and leave those of the training as they are. An engine of vLLM in
    the training's process draws from that process's; a server is given the seed with each request.

    Args:
        trainer ([`OPSDTrainer`]): Evaluates within the block.
        seed (`int`): From [`evaluation_seed`].
    """
    served = trainer.vllm_generation if trainer.use_vllm and trainer.vllm_mode == "server" else None
    given = served and served.generation_kwargs
    if served is not None:
        served.generation_kwargs = {"seed": seed, **given}
    try:
        with keep_random_state(trainer.accelerator.device, seed):
            yield
    finally:
        if served is not None:
            served.generation_kwargs = given


class EvaluationScores:
    """
    Scores of the prompts of an evaluation set, each of which is answered k times.

    Args:
        scorer ([`Scorer`]): Scores, and lets the teacher write.
        k (`int`): Rollouts of a prompt.
        threshold (`float`): Score from which an answer is right.
        teacher_prompts (`int`): Prompts that the teacher answers too, rounded up to whole batches.
        seed (`int`): Seed of the teacher's answers on this process.
    """

    def __init__(self, scorer: Scorer, k: int, threshold: float, teacher_prompts: int, seed: int):
        self.scorer, self.k, self.threshold, self.seed = scorer, k, threshold, seed
        self.teacher_prompts = teacher_prompts if scorer.scores else 0
        # Local (prompt, score) pairs: under "" those of the student, else of the teacher, by the name of its view
        self.pairs: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def add(self, rollouts: list[Rollout], views: Mapping[str, EncodedView], rows: int, seen: int) -> None:
        """
        Score a batch. A collective.

        Args:
            rollouts (`list[Rollout]`): The local rollouts.
            views (`Mapping[str, EncodedView]`): What the teacher reads of each, by name.
            rows (`int`): How many of them count: the first ones.
            seen (`int`): Rollouts, of all processes, of the batches before.
        """
        if not self.scorer.scores:
            return
        prompts = [seen // self.k + rollout.group for rollout in rollouts][:rows]
        self.pairs[""] += zip(prompts, self.scorer.of_rollouts(rollouts)[:rows], strict=True)
        if seen // self.k >= self.teacher_prompts:
            return
        with keep_random_state(self.scorer.accelerator.device, self.seed + seen):
            for name, view in views.items():
                scores = self.scorer.teachers(rollouts, view).scores[:rows]
                answered = zip(prompts, scores, view.weights[:rows], strict=True)
                self.pairs[name] += [(prompt, score) for prompt, score, weight in answered if weight > 0]

    def metrics(self, prefix: str) -> dict[str, float]:
        """
        Means over the prompts of what has a finite score: `avg@k`, the mean score, and `pass@k`, the share with an
        answer that is right. A collective.

        Args:
            prefix (`str`): Of the names, such as `eval`.
        """
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for pairs in gather_object([dict(self.pairs)]):
            for name, own in pairs.items():
                for prompt, score in own:
                    if math.isfinite(score):
                        found[name][prompt].append(score)
        metrics = {}
        for name, prompts in sorted(found.items()):
            side = f"{prefix}_teacher/{name}/" if name else f"{prefix}_"
            metrics[f"{side}avg@{self.k}"] = statistics.mean(map(statistics.mean, prompts.values()))
            right = [any(reaches(score, self.threshold) for score in scores) for scores in prompts.values()]
            metrics[f"{side}pass@{self.k}"] = statistics.mean(right)
        return metrics
