# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Forward pass of the fused linear divergence, which forms the gradient too: chunks of tokens go through the matrix
products, tiles of them through the elementwise work.

Legend: N tokens, the first M <= N of them distilled, V vocabulary, K views, c tokens of a chunk, t of a tile; p
student, q teacher.
"""

import torch

from trl_opsd.kernels.chunks import chunks, tiles
from trl_opsd.kernels.grad_accumulator import GradAccumulator
from trl_opsd.kernels.inputs import LinearDivergenceInputs
from trl_opsd.kernels.policy import Scored, label_scores, logit_gradient, score
from trl_opsd.losses import DivergenceSpec, Pair, Target, Tile, TokenStats, one_target, token_loss
from trl_opsd.losses import stat_names as token_loss_stats
from trl_opsd.losses.divergences import LOG_ZERO, reported


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
        self.specs = task.view_specs or [task.spec] * len(task.weights)
        self.teacher_temperature = task.spec.teacher_temperature or task.spec.temperature
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
        for tile in tiles(*raw.shape, raw.device):
            token_slice = slice(rows.start + tile.start, rows.start + tile.stop)
            gradient = self._tile(raw[tile], [teacher[tile] for teacher in teachers], token_slice)
            if gradient is not None:
                raw[tile] = gradient  # over the logits, which are not needed any more
        if self.sums.wanted:
            self.sums.add(raw, self.hidden, rows, self.student)

    def _policy_chunk(self, rows: slice, block: torch.Tensor | None) -> None:
        raw = self._kept[rows] if block is None else self.student.project(self.hidden[rows], block)
        for tile in tiles(*raw.shape, raw.device):
            token_slice = slice(rows.start + tile.start, rows.start + tile.stop)
            gradient = self._policy_gradient(raw[tile], token_slice)
            raw[tile] = self.student.back_through_transform(gradient, raw[tile])
        self.sums.add(raw, self.hidden, rows, self.student)

    def _tile(self, raw: torch.Tensor, teachers: list[torch.Tensor], rows: slice) -> torch.Tensor | None:
        """Add loss and statistics of a tile; returns its gradient on the raw logits, `(t, V)`, if one is asked for."""
        spec, labels = self.task.spec, self.task.labels[rows].unsqueeze(-1)
        log_p, p = _distribution(self.student.transform(raw), spec.temperature)
        views = zip(self.teachers, teachers, strict=True)
        targets = [_distribution(head.transform(teacher), self.teacher_temperature) for head, teacher in views]
        known = self.task.known
        if known is not None:
            targets = known.distributions(self.task.labels[rows], rows, log_p)
        logps = torch.stack([one.gather(-1, labels).squeeze(-1) for one in (log_p, *(log_q for log_q, _ in targets))])
        shown = reported(logps)  # (1 + K, t)
        self.stats["student_logps"][rows], self.stats["teacher_logps"][:, rows] = shown[0], shown[1:]
        self.stats["student_entropy"][rows] = -(p * log_p).sum(-1)
        for view, (log_q, q) in enumerate(targets):
            self.stats["teacher_entropy"][view, rows] = -(q * log_q).sum(-1) if known is None else torch.nan
        plain = weights = self.task.weights[:, rows] * self._importance(logps[0], rows)  # (K, t)
        if spec.token_weight is not None:
            weights = weights * self._factors(rows)
        log_qs = [log_q for log_q, _ in targets]
        if spec.target is not None:
            targets, weights = _one_target(log_p, targets, weights, spec.target)

        gradient = None
        for view, (log_q, q) in enumerate(targets):
            result = token_loss(Pair(log_p, log_q, p, q), self.specs[view])
            for name, value in result.stats.items():
                # One target has one loss, which the statistics of every view show
                self.stats[name][slice(None) if spec.target else view, rows] = value
            # Selected, not multiplied: a loss may be infinite where its weight is 0
            self.total += torch.where(weights[view] != 0, result.loss * weights[view], 0.0).sum()
            if self.sums.wanted:
                part = result.gradient.mul_((weights[view] / (self.unit * spec.temperature)).unsqueeze(-1))
                gradient = part if gradient is None else gradient.add_(part)
        if spec.auxiliary_loss is not None:
            known = *self._of(rows), rows, self.all_tokens
            gradient = self._add_auxiliary_loss(
                Tile(log_p, p, log_qs, labels.squeeze(-1), *known), plain.sum(0), gradient
            )
        if gradient is None:
            return None
        if self.scored is not None:
            gradient.add_(self._policy_gradient(raw, rows))
        return self.student.back_through_transform(gradient, raw)

    def _of(self, rows: slice) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Log-probabilities at sampling time, `(t,)`, and the mask of views that teach, `(K, t)`."""
        old = self.task.old_logps
        return None if old is None else old[rows], self.task.weights[:, rows] != 0

    def _add_auxiliary_loss(
        self, tile: Tile, weights: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Add the auxiliary loss; returns the gradient with its own."""
        loss, part = self.task.spec.auxiliary_loss(tile)
        self.total += torch.where(weights != 0, loss * weights, 0.0).sum()
        if not self.sums.wanted:
            return gradient
        return gradient.add_(part * (weights / (self.unit * self.task.spec.temperature)).unsqueeze(-1))

    def _factors(self, rows: slice) -> torch.Tensor:
        """The method's factor on each token, `(t,)` or `(K, t)`."""
        if self.factors is not None:
            return self.factors[..., rows]
        known = {name: self.stats[name][..., rows] for name in TOKEN_STATS}
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
        teachers = [label_scores(head, view, labels, self.teacher_temperature, chunk_size) for head, view in views]
        known = task.known and (task.known.label_logps, torch.full_like(task.known.label_logps, torch.nan))
        values = (*(known or (torch.stack(both) for both in zip(*teachers, strict=True))), *student)
        return self._token_stats(dict(zip(TOKEN_STATS, values, strict=True)), slice(None))

    def _policy_gradient(self, raw: torch.Tensor, rows: slice) -> torch.Tensor:
        task = self.task
        return logit_gradient(self.scored, task.policy, self.student, raw, task.labels, rows).div_(self.unit)

    def _importance(self, logps: torch.Tensor, rows: slice) -> torch.Tensor | float:
        """Clipped importance weight p/p_old of each token, 1 where the sampler could not give p_old (`nan`)."""
        clip, old = self.task.spec.is_clip, self.task.old_logps
        if clip is None or old is None:
            return 1.0
        return (logps - old[rows]).nan_to_num(0.0).clamp(-20.0, 20.0).exp().clamp(max=clip)


def _distribution(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and probabilities, `(t, V)`, at the temperature."""
    tempered = logits if temperature == 1.0 else logits / temperature
    log_probs = tempered.log_softmax(-1).clamp_(min=LOG_ZERO)
    return log_probs, log_probs.exp()


def _one_target(
    log_p: torch.Tensor, views: list[tuple[torch.Tensor, torch.Tensor]], weights: torch.Tensor, target: str | Target
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """One target in place of the K views, and its weight `(1, t)`, from the weights of the views `(K, t)`."""
    weight = weights.sum(0, keepdim=True)
    # A token without weight has statistics all the same: of the plain mean
    shares = torch.where(weight == 0, 1 / len(weights), weights / weight)
    return [one_target(log_p, [log_q for log_q, _ in views], shares, target)], weight
