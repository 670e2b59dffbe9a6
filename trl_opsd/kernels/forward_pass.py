# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Forward pass of the fused linear divergence, which forms the gradient too: chunks of tokens go through the matrix
products, tiles of them through the elementwise work.

Legend: N tokens, the first M <= N of them distilled, V vocabulary, K views, c tokens of a chunk, t of a tile; p
student, q teacher.
"""

from collections.abc import Callable
from functools import partial

import torch

from trl_opsd.kernels.chunks import chunks
from trl_opsd.kernels.compiled import by_tile, compiled
from trl_opsd.kernels.grad_accumulator import GradAccumulator
from trl_opsd.kernels.inputs import LinearDivergenceInputs
from trl_opsd.kernels.policy import Scored, label_scores, score
from trl_opsd.kernels.tile import TilePlan, TileStats, TileTokens, distilled_tile, label_score, policy_tile
from trl_opsd.losses import DivergenceSpec, Tile, TokenStats
from trl_opsd.losses import stat_names as token_loss_stats


TEACHER_STATS = ("teacher_logps", "teacher_entropy")
STUDENT_STATS = ("student_logps", "student_entropy")
TOKEN_STATS = TEACHER_STATS + STUDENT_STATS


def stat_names(spec: DivergenceSpec) -> tuple[str, ...]:
    """Names of the statistics, in the order in which they are stored."""
    return (*token_loss_stats(spec), *TOKEN_STATS)


class LinearDivergenceForward:
    """
    Loss, statistics and gradients of one call.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states.
        task ([`~trl_opsd.kernels.inputs.LinearDivergenceInputs`]): What to compute.
        sums ([`GradAccumulator`]): Where the gradients grow. They are to be multiplied by `unit`: token weights are of
            the size of 1 / tokens, where float16 has few digits left, so its gradients are formed at the size of 1.
        names (`tuple[str]`): Names of the statistics, from [`stat_names`].
    """

    def __init__(
        self, hidden: torch.Tensor, task: LinearDivergenceInputs, sums: GradAccumulator, names: tuple[str, ...]
    ):
        self.hidden, self.task, self.sums = hidden, task, sums
        self.student = task.head.prepared(hidden)
        prepared = {id(task.head): self.student}  # each head is cast once
        for one in task.teacher_heads:
            if id(one) not in prepared:
                prepared[id(one)] = one.prepared(hidden)
        self.teachers = [prepared[id(one)] for one in task.teacher_heads]
        self.plan = TilePlan(
            student=self.student,
            teachers=self.teachers,
            spec=task.spec,
            view_specs=list(task.view_specs or [task.spec] * len(self.teachers)),
            policy_temperature=1.0 if task.policy is None else task.policy.temperature,
            differentiate=sums.wanted,
        )
        new, (k, m) = task.weights.new_zeros, task.weights.shape
        # Pre-allocated: small tensors allocated between large short-lived ones fragment the heap and fault in new pages
        # for every tile
        self.stats = {name: new(*(() if name in STUDENT_STATS else (k,)), m) for name in names}
        self.total = new(())
        self.scored: Scored | None = None
        if task.policy is not None:
            self.scored = score(task.policy, self.student, hidden, task.labels, task.chunk_size, sums.wanted)
            self.total += self.scored.loss
        # Raw logits of all tokens, `(N, V)`, where scoring the policy left them: memory that may be written to
        self._kept = None if self.scored is None else self.scored.raw
        self.unit = self._unit()
        # What a method reads of all tokens at once, before the first tile
        self.all_tokens = self._all_scores() if task.spec.needs_all_tokens else None
        weighs_all = task.spec.token_weight is not None and self.all_tokens is not None
        self.factors = task.spec.token_weight(self.all_tokens) if weighs_all else None

    def run(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Go through all chunks; returns the loss and the statistics."""
        (k, m), n = self.task.weights.shape, len(self.hidden)
        cut = self._chunks(m, k + 1)
        # Allocated once: on the CPU, new memory of this size costs a tenth of the products
        heads = [self.student if self._kept is None else None, *self.teachers]
        block, *blocks = [head and head.empty(cut[0].stop) for head in heads] if cut else [None]
        for rows in cut:
            self._distilled_chunk(rows, block, blocks)
        if self.scored is not None and self.sums.wanted:
            cut = self._chunks(n - m, 1)
            block = self.student.empty(cut[0].stop) if cut and self._kept is None else None
            for rows in cut:
                self._policy_chunk(slice(rows.start + m, rows.stop + m), block)
        return self.total, self.stats

    def _chunks(self, tokens: int, blocks: int) -> list[slice]:
        weight = self.student.weight
        return chunks(tokens, len(weight), blocks, weight.dtype, weight.device, self.task.chunk_size)

    def _unit(self) -> torch.Tensor:
        """Largest factor on any token under float16, which needs it; 1 under other types."""
        one = torch.ones_like(self.total)
        if self.student.weight.dtype != torch.float16:
            return one
        factors = [self.task.weights]
        if self.scored is not None:
            factors += [self.scored.on_logps, self.scored.on_entropy]
        sizes = [factor.abs().max() for factor in factors if factor.numel()]
        return torch.stack(sizes).max().clamp(min=torch.finfo(self.total.dtype).tiny) if sizes else one

    def _distilled_chunk(self, rows: slice, block: torch.Tensor | None, blocks: list[torch.Tensor]) -> None:
        views = zip(self.teachers, self.task.teacher_hidden, blocks, strict=True)
        teachers = [head.project(view[rows], block) for head, view, block in views]
        raw = self._kept[rows] if block is None else self.student.project(self.hidden[rows], block)

        def run(function: Callable, tile: slice) -> None:
            logits = raw[tile], [teacher[tile] for teacher in teachers]
            token_slice = slice(rows.start + tile.start, rows.start + tile.stop)
            tokens = self._tokens(token_slice, logits, compiled=function is not distilled_tile)
            self.total, stats = function(*logits, tokens, self.total, self.unit, self.plan)
            for name, values in stats.items():
                # One target has one loss, which the statistics of every view show
                self.stats[name][..., token_slice] = values[0] if len(values) == 1 else torch.stack(values)

        by_tile(distilled_tile, run, raw, compilable=not self._has_functions, whole=self.task.spec.topk is None)
        if self.sums.wanted:
            self.sums.add(raw, self.hidden, rows, self.student)

    def _policy_chunk(self, rows: slice, block: torch.Tensor | None) -> None:
        raw = self._kept[rows] if block is None else self.student.project(self.hidden[rows], block)

        def run(function: Callable, tile: slice) -> None:
            of = slice(rows.start + tile.start, rows.start + tile.stop)
            tokens = self.task.labels[of], self.scored.on_logps[of], self.scored.on_entropy[of]
            function(raw[tile], *tokens, self.unit, self.student, self.plan.policy_temperature)

        by_tile(policy_tile, run, raw)
        self.sums.add(raw, self.hidden, rows, self.student)

    @property
    def _has_functions(self) -> bool:
        """Whether functions of a method read whole distributions."""
        spec = self.task.spec
        return spec.auxiliary_loss is not None or callable(spec.target)

    def _tokens(self, rows: slice, logits: tuple[torch.Tensor, list[torch.Tensor]], compiled: bool) -> TileTokens:
        """Tensors of some tokens. A compiled function takes a method's factors, and others the function for them."""
        task, auxiliary, factors = self.task, None, None
        if task.spec.auxiliary_loss is not None:
            auxiliary = partial(self._auxiliary_loss, rows)
        if self.factors is not None:
            factors = self.factors[..., rows]
        elif task.spec.token_weight is not None:
            factors = partial(self._factors, rows)
            if compiled:
                factors = factors(self._scores(*logits, task.labels[rows]))
        return TileTokens(
            labels=task.labels[rows],
            # Contiguous: a compiler would make the distance between two views, N, part of the graph
            weights=task.weights[:, rows].contiguous(),
            old_logps=None if task.old_logps is None else task.old_logps[rows],
            on_logps=None if self.scored is None else self.scored.on_logps[rows],
            on_entropy=None if self.scored is None else self.scored.on_entropy[rows],
            factors=factors,
            auxiliary=auxiliary,
        )

    def _scores(self, raw: torch.Tensor, teachers: list[torch.Tensor], labels: torch.Tensor) -> TileStats:
        """Statistics of [`TOKEN_STATS`] of some tokens, ahead of their loss."""
        score, spec = compiled(label_score), self.task.spec
        student = score(raw, labels, self.student, spec.temperature)
        views = zip(teachers, self.teachers, strict=True)
        scores = [score(teacher, labels, head, self.plan.teacher_temperature) for teacher, head in views]
        values = *([score[i] for score in scores] for i in (0, 1)), *([one] for one in student)
        return dict(zip(TOKEN_STATS, values, strict=True))

    def _auxiliary_loss(
        self, rows: slice, log_p: torch.Tensor, p: torch.Tensor, log_qs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        task = self.task
        old = None if task.old_logps is None else task.old_logps[rows]
        known = task.labels[rows], old, task.weights[:, rows] != 0, rows, self.all_tokens
        return task.spec.auxiliary_loss(Tile(log_p, p, log_qs, *known))

    def _factors(self, rows: slice, stats: TileStats) -> torch.Tensor:
        """The method's factor on each token, `(t,)` or `(K, t)`, from the statistics of some tokens."""
        known = {name: stats[name][0] if name in STUDENT_STATS else torch.stack(stats[name]) for name in TOKEN_STATS}
        return self.task.spec.token_weight(self._token_stats(known, rows))

    def _token_stats(self, known: dict[str, torch.Tensor], rows: slice) -> TokenStats:
        task = self.task
        return TokenStats(
            **known,
            relative_positions=task.relative_positions[rows],
            turns=None if task.turns is None else task.turns[rows],
            rows=task.rows[rows],
            taught=task.weights[:, rows] != 0,
        )

    def _all_scores(self) -> TokenStats:
        """Statistics of all distilled tokens, from a pass over them that comes first."""
        task, m = self.task, self.task.weights.shape[1]
        labels, chunk_size = task.labels[:m], task.chunk_size
        student = label_scores(self.student, self.hidden[:m], labels, task.spec.temperature, chunk_size)
        views = zip(self.teachers, task.teacher_hidden, strict=True)
        teachers = [label_scores(head, view, labels, self.plan.teacher_temperature, chunk_size) for head, view in views]
        values = (*(torch.stack(both) for both in zip(*teachers, strict=True)), *student)
        return self._token_stats(dict(zip(TOKEN_STATS, values, strict=True)), slice(None))
