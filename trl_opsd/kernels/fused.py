# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Public entry point of the fused linear divergence.

Legend: N tokens, H hidden size, V vocabulary, K views.
"""

import warnings
from types import SimpleNamespace
from typing import Any

import torch

from trl_opsd.kernels.head import Head
from trl_opsd.kernels.inputs import LinearDivergenceInputs
from trl_opsd.kernels.linear_divergence import linear_divergence
from trl_opsd.losses import DIVERGENCES, DivergenceSpec


class DivergenceStats(SimpleNamespace):
    """
    Statistics of each token from [`fused_linear_divergence`], without gradient, in nats at the temperature. Those that
    depend on the teacher have the shape `(N,)`, or `(K, N)` where the teacher's hidden states have three dimensions.

    Those of the loss (`loss`, `divergence`, `clipped`, and `mass_p` and `mass_q` with a top-k set) are described in
    [`~trl_opsd.losses.TokenLoss`].

    Args:
        student_logps, teacher_logps (`torch.Tensor`): Log-probability of the label; the student's is `(N,)`. `None`
            without labels.
        student_entropy, teacher_entropy (`torch.Tensor`): Entropies; the student's is `(N,)`.
    """


def fused_linear_divergence(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor | None = None,
    *,
    spec: DivergenceSpec | None = None,
    labels: torch.Tensor | None = None,
    token_weight: torch.Tensor | None = None,
    view_weight: torch.Tensor | None = None,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, DivergenceStats]:
    """
    Weighted sum over tokens of a divergence between teacher and student, from hidden states, without an (N, V) tensor.

    The gradient for the student's hidden states, weight and bias is formed in this call; backward only scales it. The
    teacher is constant. Statistics are float32 at least, whatever the type of the inputs.

    Args:
        student_hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states.
        student_weight (`torch.Tensor` of shape `(V, H)`): Student head.
        teacher_hidden (`torch.Tensor` of shape `(N, H')` or `(K, N, H')`): Teacher hidden states, of one or K views.
        teacher_weight (`torch.Tensor` of shape `(V, H')`, *optional*): Teacher head, by default the student's with
            its bias.
        spec ([`~trl_opsd.losses.DivergenceSpec`], *optional*): Divergence, support, clips and target; by default the
            forward KL on the whole vocabulary.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): Tokens whose log-probabilities are to be in the
            statistics.
        token_weight (`torch.Tensor` of shape `(N,)`, *optional*): Mask, weight and normaliser in one; by default 1 / N.
        view_weight (`torch.Tensor` of shape `(K,)` or `(K, N)`, *optional*): Share of each view; by default 1 / K.
        student_bias, teacher_bias (`torch.Tensor` of shape `(V,)`, *optional*): Biases of the heads; -inf rules a token
            out.
        logit_scale (`float`, *optional*, defaults to `1.0`): Factor on both logits.
        logit_softcap (`float`, *optional*): Both logits become softcap * tanh(logits / softcap).
        chunk_size (`int`, *optional*): Tokens whose logits are in memory at once; by default from a memory budget.
        **options: Deprecated: the fields of `spec` one by one, with `kind`, `beta` and `mixture` for `divergence`,
            `alpha` and `target`.

    Returns:
        The loss, a 0-d tensor, and [`DivergenceStats`].

    Raises:
        ValueError: If a shape or an option is impossible.

    Example:

    ```python
    spec = DivergenceSpec("reverse_kl", token_clip=5.0)
    loss, stats = fused_linear_divergence(student_hidden, model.lm_head.weight, teacher_hidden, spec=spec)
    loss.backward()
    ```
    """
    if options:
        spec = _spec_of_options(spec, options)
    spec = DivergenceSpec() if spec is None else spec
    one_view = teacher_hidden.ndim == 2
    views = teacher_hidden.unsqueeze(0) if one_view else teacher_hidden
    head = Head(student_weight, student_bias, logit_scale, logit_softcap)
    teacher = head if teacher_weight is None else Head(teacher_weight, teacher_bias, logit_scale, logit_softcap)
    if teacher_weight is None and teacher_bias is not None:
        raise ValueError("`teacher_bias` needs `teacher_weight`: without one, the teacher has the student's head.")
    _check_shapes(student_hidden, views, head, teacher, labels)
    _check_call(spec, len(student_weight), chunk_size)
    loss, stats = linear_divergence(
        student_hidden,
        LinearDivergenceInputs(
            head=head,
            teacher_hidden=views.detach(),
            teacher_heads=[teacher] * len(views),
            labels=student_hidden.new_zeros(len(student_hidden), dtype=torch.long) if labels is None else labels,
            weights=_weights(student_hidden, views, token_weight, view_weight),
            spec=spec,
            chunk_size=chunk_size,
        ),
    )
    stats = {name: value[0] if one_view and value.ndim == 2 else value for name, value in stats.items()}
    if labels is None:
        stats |= {"student_logps": None, "teacher_logps": None}
    return loss, DivergenceStats(**stats)


def _spec_of_options(spec: DivergenceSpec | None, options: dict[str, Any]) -> DivergenceSpec:
    """The spec that deprecated keyword arguments describe."""
    if spec is not None:
        raise TypeError(f"Put {list(options)} into `spec`: options beside it are not read.")
    warnings.warn(
        f"The options {list(options)} of `fused_linear_divergence` are deprecated: pass `spec=DivergenceSpec(...)`.",
        FutureWarning,
        stacklevel=3,
    )
    renamed = {"kind": "divergence", "beta": "alpha", "mixture": "target"}
    given = {"divergence": "forward_kl", "alpha": 0.5} | {renamed.get(name, name): options[name] for name in options}
    if given["divergence"] in DIVERGENCES and DIVERGENCES[given["divergence"]].alpha_range is None:
        del given["alpha"]  # `beta` beside a KL was ignored
    return DivergenceSpec(**given)


def _weights(
    hidden: torch.Tensor, views: torch.Tensor, token_weight: torch.Tensor | None, view_weight: torch.Tensor | None
) -> torch.Tensor:
    """Factor on each token under each view, `(K, N)`."""
    (k, n), dtype = views.shape[:2], torch.promote_types(hidden.dtype, torch.float32)
    if token_weight is None:
        token_weight = hidden.new_full((n,), 1 / max(n, 1), dtype=dtype)
    if view_weight is None:
        view_weight = hidden.new_full((k,), 1 / max(k, 1), dtype=dtype)
    if token_weight.shape != (n,) or view_weight.shape not in ((k,), (k, n)):
        raise ValueError(
            f"`token_weight` must have the shape ({n},) and `view_weight` ({k},) or ({k}, {n}), got "
            f"{tuple(token_weight.shape)} and {tuple(view_weight.shape)}."
        )
    shares = view_weight.unsqueeze(1) if view_weight.ndim == 1 else view_weight
    return (token_weight.detach() * shares.detach()).to(dtype)


def _check_shapes(
    hidden: torch.Tensor, views: torch.Tensor, head: Head, teacher: Head, labels: torch.Tensor | None
) -> None:
    if hidden.ndim != 2 or views.ndim != 3 or views.shape[1] != hidden.shape[0] or not len(views):
        raise ValueError(
            "`student_hidden` must have the shape (N, H) and `teacher_hidden` (N, H') or (K, N, H') with the same N "
            f"and K > 0, got {tuple(hidden.shape)} and {tuple(views.shape)}."
        )
    vocabulary, sizes = len(head.weight), (hidden.shape[1], views.shape[2])
    if (head.weight.shape, teacher.weight.shape) != ((vocabulary, sizes[0]), (vocabulary, sizes[1])):
        raise ValueError(
            f"`student_weight` and `teacher_weight` must have the shapes (V, {sizes[0]}) and (V, {sizes[1]}) with the "
            f"same V, got {tuple(head.weight.shape)} and {tuple(teacher.weight.shape)}."
        )
    if labels is not None and labels.shape != hidden.shape[:1]:
        raise ValueError(f"`labels` must have the shape ({len(hidden)},), got {tuple(labels.shape)}.")


def _check_call(spec: DivergenceSpec, vocabulary: int, chunk_size: int | None) -> None:
    if chunk_size is not None and not chunk_size > 0:
        raise ValueError(f"`chunk_size` must be above 0, got {chunk_size}.")
    if spec.topk is not None and spec.topk > vocabulary:
        raise ValueError(f"`topk` must lie between 1 and the vocabulary, {vocabulary}, got {spec.topk}.")
    for name in ("is_clip", "token_weight", "auxiliary_loss"):
        if getattr(spec, name) is not None:
            raise ValueError(f"`{name}` of `spec` needs what only `OPSDTrainer` knows of a token: leave it out.")
