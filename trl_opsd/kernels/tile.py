# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Elementwise pass of the fused linear divergence over a tile of tokens: loss, statistics and gradient from raw logits.

Pure functions of tensors and of a plan that is the same for all tiles, but for the gradient, which takes the place of
the student's logits. Hence a compiler can make one kernel of each (see `compiled.py`).

Legend: t tokens of a tile, V vocabulary, K views; p student, q teacher; y the label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_opsd.kernels.head import Head
from trl_opsd.kernels.known_tokens import KnownTokens
from trl_opsd.losses import DivergenceSpec, Pair, Target, one_target, token_loss
from trl_opsd.losses.divergences import LOG_ZERO, reported


Distribution = tuple[torch.Tensor, torch.Tensor]  # log-probabilities and probabilities, `(t, V)`
TileStats = dict[str, list[torch.Tensor]]  # `(t,)` each: of the student once, of teachers and losses once for each view
# From the log-probabilities and probabilities of the student and the log-probabilities of each view to a loss of each
# token, `(t,)`, and its gradient on the tempered logits, `(t, V)`
OfDistributions = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class TilePlan:
    """
    Options that are the same for every tile of a call.

    Args:
        student ([`Head`]): Student head, of which scale and soft-cap are read here.
        teachers (`list[Head]` of length K): Teacher head of each view.
        spec ([`DivergenceSpec`]): The loss.
        view_specs (`list[DivergenceSpec]` of length K): The same with the divergence of each view.
        policy_temperature (`float`): Temperature of the policy loss, where there is one.
        differentiate (`bool`): Whether a gradient is asked for.
    """

    student: Head
    teachers: list[Head]
    spec: DivergenceSpec
    view_specs: list[DivergenceSpec]
    policy_temperature: float
    differentiate: bool

    @property
    def teacher_temperature(self) -> float:
        """Temperature of the teachers' distributions."""
        return self.spec.teacher_temperature or self.spec.temperature


@dataclass(frozen=True)
class TileTokens:
    """
    Tensors of the tokens of a tile, the tokens last.

    Args:
        labels (`torch.Tensor` of shape `(t,)`): Sampled tokens.
        weights (`torch.Tensor` of shape `(K, t)`): Factor on the loss of each token under each view.
        old_logps (`torch.Tensor` of shape `(t,)`, *optional*): Log-probabilities of the labels when they were sampled.
        on_logps, on_entropy (`torch.Tensor` of shape `(t,)`, *optional*): Derivatives of a policy loss by the
            log-probability of the label and by the entropy.
        factors (`torch.Tensor` of shape `(t,)` or `(K, t)` or `Callable`, *optional*): A method's factor on each token,
            or the function that gives it from the statistics of the tile.
        auxiliary (`Callable`, *optional*): A method's auxiliary loss.
        known ([`~trl_opsd.kernels.KnownTokens`], *optional*): What is known of the teachers' distributions, in place of
            raw logits.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    old_logps: torch.Tensor | None = None
    on_logps: torch.Tensor | None = None
    on_entropy: torch.Tensor | None = None
    factors: torch.Tensor | Callable[[TileStats], torch.Tensor] | None = None
    auxiliary: OfDistributions | None = None
    known: KnownTokens | None = None


def distribution(raw: torch.Tensor, head: Head, temperature: float) -> Distribution:
    """Log-probabilities and probabilities at a temperature from raw logits, all of shape `(t, V)`."""
    logits = head.transform(raw)
    tempered = logits if temperature == 1.0 else logits / temperature
    log_probs = tempered.log_softmax(-1).clamp_(min=LOG_ZERO)
    return log_probs, log_probs.exp()


def entropy_of(one: Distribution) -> torch.Tensor:
    """Entropy of each token, `(t,)`, in nats."""
    log_probs, probs = one
    return -(probs * log_probs).sum(-1)


def on_label(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label, `(t,)`."""
    if torch.compiler.is_compiling():  # a sum goes into the loop over the row, and a gather into a kernel of its own
        return torch.where(_is_label(log_probs, labels), log_probs, 0.0).sum(-1)
    return log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def add_on_label(gradient: torch.Tensor, labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Add `values`, `(t, 1)`, to a gradient `(t, V)` at the labels, in place."""
    if torch.compiler.is_compiling():  # likewise
        return gradient + torch.where(_is_label(gradient, labels), values, 0.0)
    return gradient.scatter_add_(-1, labels.unsqueeze(-1), values)


def _is_label(like: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.arange(like.shape[-1], device=like.device) == labels.unsqueeze(-1)


def label_score(
    raw: torch.Tensor, labels: torch.Tensor, head: Head, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the labels and entropies, both of shape `(t,)`, from raw logits `(t, V)`."""
    one = distribution(raw, head, temperature)
    entropy = entropy_of(one)
    return reported(on_label(one[0], labels)), entropy


def policy_gradient(
    raw: torch.Tensor,
    labels: torch.Tensor,
    on_logps: torch.Tensor,
    on_entropy: torch.Tensor,
    head: Head,
    temperature: float,
) -> torch.Tensor:
    """
    Gradient of a policy loss on the logits, `(t, V)`: for the log-probability 1[v = y] - p_v, for the entropy H
    -p_v (log p_v + H), each by its factor.

    Args:
        raw (`torch.Tensor` of shape `(t, V)`): Raw logits.
        labels (`torch.Tensor` of shape `(t,)`): Sampled tokens.
        on_logps, on_entropy (`torch.Tensor` of shape `(t,)`): Derivatives of the loss by log-probability and entropy.
        head ([`Head`]): Student head.
        temperature (`float`): Temperature of the distribution.
    """
    log_p, p = student = distribution(raw, head, temperature)
    entropy = entropy_of(student).unsqueeze(-1)
    on_logps, on_entropy = (factor.unsqueeze(-1) / temperature for factor in (on_logps, on_entropy))
    gradient = p * (-on_logps - on_entropy * entropy - on_entropy * log_p)
    return add_on_label(gradient, labels, on_logps)


def policy_tile(
    raw: torch.Tensor,
    labels: torch.Tensor,
    on_logps: torch.Tensor,
    on_entropy: torch.Tensor,
    unit: torch.Tensor,
    head: Head,
    temperature: float,
) -> None:
    """Write the gradient of a policy loss, over `unit`, in place of raw logits `(t, V)`."""
    gradient = policy_gradient(raw, labels, on_logps, on_entropy, head, temperature).div_(unit)
    raw.copy_(head.back_through_transform(gradient, raw))


def distilled_tile(
    raw: torch.Tensor,
    teachers: list[torch.Tensor],
    tokens: TileTokens,
    total: torch.Tensor,
    unit: torch.Tensor,
    plan: TilePlan,
) -> tuple[torch.Tensor, TileStats]:
    """
    Weighted loss of the tokens of a tile; their gradient, over `unit`, takes the place of the student's logits.

    Args:
        raw (`torch.Tensor` of shape `(t, V)`): Raw logits of the student, written over if a gradient is asked for.
        teachers (`list[torch.Tensor]` of length K): Raw logits of the teacher under each view.
        tokens ([`TileTokens`]): What is known of the tokens.
        total (`torch.Tensor`, 0-d): Loss of the tiles before.
        unit (`torch.Tensor`, 0-d): Size at which the gradient is formed.
        plan ([`TilePlan`]): Options.

    Returns:
        `total` with the loss of this tile, and the statistics by name; where there is one target, those of the loss
        once.
    """
    spec = plan.spec
    log_p, p = student = distribution(raw, plan.student, spec.temperature)
    views = zip(teachers, plan.teachers, strict=True)
    targets = [distribution(teacher, head, plan.teacher_temperature) for teacher, head in views]
    known = tokens.known
    if known is not None:
        targets = known.distributions(tokens.labels, log_p)
    logps = [on_label(one, tokens.labels) for one, _ in (student, *targets)]
    stats = {
        "student_logps": [reported(logps[0])],
        "teacher_logps": [reported(one) for one in logps[1:]],
        "student_entropy": [entropy_of(student)],
        "teacher_entropy": [
            entropy_of(one) if known is None else torch.full_like(logps[0], torch.nan) for one in targets
        ],
    }
    plain = tokens.weights * importance(logps[0], tokens.old_logps, spec.is_clip)  # (K, t)
    weights = plain if tokens.factors is None else plain * _factors(tokens, stats)
    log_qs = [log_q for log_q, _ in targets]
    if spec.target is not None:
        targets, weights = _one_target(log_p, log_qs, weights, spec.target)

    gradient = None
    for view, (log_q, q) in enumerate(targets):
        result = token_loss(Pair(log_p, log_q, p, q), plan.view_specs[view])
        for name, value in result.stats.items():
            stats.setdefault(name, []).append(value)
        # Selected, not multiplied: a loss may be infinite where its weight is 0
        total = total + torch.where(weights[view] != 0, result.loss * weights[view], 0.0).sum()
        if plan.differentiate:
            part = result.gradient.mul_((weights[view] / (unit * spec.temperature)).unsqueeze(-1))
            gradient = part if gradient is None else gradient.add_(part)
    if tokens.auxiliary is not None:
        loss, part = tokens.auxiliary(log_p, p, log_qs)
        of_all = plain.sum(0)
        total = total + torch.where(of_all != 0, loss * of_all, 0.0).sum()
        if plan.differentiate:
            gradient.add_(part * (of_all / (unit * spec.temperature)).unsqueeze(-1))
    if gradient is not None:
        if tokens.on_logps is not None:
            on_policy = tokens.labels, tokens.on_logps, tokens.on_entropy, plan.student, plan.policy_temperature
            gradient.add_(policy_gradient(raw, *on_policy).div_(unit))
        raw.copy_(plan.student.back_through_transform(gradient, raw))  # the logits are not needed any more
    return total, stats


def importance(logps: torch.Tensor, old_logps: torch.Tensor | None, clip: float | None) -> torch.Tensor | float:
    """Clipped importance weight p/p_old of each token, 1 where the sampler could not give p_old (`nan`)."""
    if clip is None or old_logps is None:
        return 1.0
    return (logps - old_logps).nan_to_num(0.0).clamp(-20.0, 20.0).exp().clamp(max=clip)


def _factors(tokens: TileTokens, stats: TileStats) -> torch.Tensor:
    if isinstance(tokens.factors, torch.Tensor):
        return tokens.factors
    return tokens.factors(stats)


def _one_target(
    log_p: torch.Tensor, log_qs: list[torch.Tensor], weights: torch.Tensor, target: str | Target
) -> tuple[list[Distribution], torch.Tensor]:
    """One target in place of the K views, and its weight `(1, t)`, from the weights of the views `(K, t)`."""
    weight = weights.sum(0, keepdim=True)
    # A token without weight has statistics all the same: of the plain mean
    shares = torch.where(weight == 0, 1 / len(weights), weights / weight)
    return [one_target(log_p, log_qs, shares, target)], weight
