# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Toy batches for the tests of methods, and comparisons with references that are written from the papers' formulas.

Legend: B rows, C completion tokens, K views, N tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch

from trl_opsd import OPSDConfig
from trl_opsd.kernels import Head, LinearDivergenceInputs, linear_divergence
from trl_opsd.methods import StepContext, TokenSignals, method_names, method_of
from trl_opsd.methods.runtime import MethodRun


# Methods that sample the rollouts themselves: tests with rollouts of their own have nothing for them
WITH_TURNS = [name for name in method_names() if "turns" in method_of(name).defaults]
WITHOUT_TURNS = [name for name in method_names() if name not in WITH_TURNS]
B, C, N, H, V = 4, 6, 9, 6, 11
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signals(name: str, views: list[str], seed: int = 0, step: int = 0, **changes: Any) -> TokenSignals:
    """
    A toy batch of four rows: the first right, the others wrong, the last in a group without success. Every view teaches
    every token but the first row's last two, which are tool results, and the second row's first. The rows have two,
    three, one and three turns.

    Args:
        name (`str`): Method, for its options.
        views (`list[str]`): Names of the views.
        seed (`int`): Of the log-probabilities.
        step (`int`): Optimizer steps that are done, of 100.
        changes: Fields of [`TokenSignals`], or `options`, to set.
    """
    draw, k = random(seed), len(views)
    run = MethodRun(name, changes.pop("options", None))
    loss_mask = torch.ones(B, C, dtype=torch.float64)
    loss_mask[0, -2:] = 0
    mask = loss_mask.clone()
    mask[1, 0] = 0

    def logps(*shape: int) -> torch.Tensor:
        return -3 * torch.rand(*shape, generator=draw, dtype=torch.float64) * mask

    values = {
        "step_context": StepContext(views, run.options, step, step / 100, run.schedule_state),
        "teacher_logps": logps(k, B, C),
        "teacher_entropy": -logps(k, B, C),
        "student_logps": logps(B, C),
        "student_entropy": -logps(B, C),
        "old_logps": None,
        "shares": mask.expand(k, B, C) / k,
        "mask": mask,
        "loss_mask": loss_mask,
        "advantages": torch.tensor([[1.5], [-0.5], [-0.5], [0.0]], dtype=torch.float64),
        "success": torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64),
        "group_success_rate": torch.tensor([[0.5], [0.5], [0.25], [0.0]], dtype=torch.float64),
        "turns": torch.tensor([[0, 0, 1, 1, -1, -1], [0, 0, 0, 1, 1, 2], [0] * 6, [0, 1, 1, 2, 2, 2]]),
        "scale": torch.tensor(1.0, dtype=torch.float64),
    }
    return TokenSignals(**{**values, **changes})


def advantages(name: str, batch: TokenSignals) -> torch.Tensor:
    """What a method makes of a batch, `(B, C)`."""
    return MethodRun(name, None).advantages(batch)


def check_loss(
    name: str,
    views: list[str],
    reference: Callable[..., torch.Tensor],
    seed: int = 0,
    step: int = 0,
    live_state: dict[str, float] | None = None,
    **options: Any,
) -> torch.Tensor:
    """
    A method's loss on a toy batch, and its gradient on hidden states and head, are those of a reference in float64.

    Args:
        name (`str`): The method; its defaults are those of the config.
        views (`list[str]`): Names of the views.
        reference (`Callable`): From log p `(N, V)`, with gradient, log q of each view, a list of `(N, V)`, and the
            sampled tokens `(N,)` to the loss of each token, `(N,)`, or a 0-d sum of all.
        seed, step (`int`): Of the batch, and optimizer steps that are done, of 100.
        live_state (`dict[str, float]`, *optional*): The method's state.
        options: Of [`OPSDConfig`], over the method's defaults.

    Returns:
        The loss of the reference.
    """
    draw = random(seed)

    def new(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, weight = new(N, H).requires_grad_(), new(V, H).requires_grad_()
    teachers, teacher_weight = new(len(views), N, H), new(V, H)
    labels = torch.randint(V, (N,), generator=draw)
    weights = torch.full((len(views), N), 1 / N / len(views), dtype=torch.float64)
    relative_positions = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    config = OPSDConfig("unused", method=name, bf16=False, **{"num_generations": 2, **options})
    run = MethodRun(name, config.method_options)
    run.step, run.progress, run.schedule_state = step, step / 100, live_state or run.schedule_state
    spec = run.spec(config.divergence_spec, views)
    view_specs = [spec.of_view(view) for view in views] if spec.view_divergences else None
    task = LinearDivergenceInputs(
        head=Head(weight), teacher_hidden=teachers, teacher_heads=[Head(teacher_weight)] * len(views), labels=labels,
        weights=weights, spec=spec, view_specs=view_specs, relative_positions=relative_positions,
        rows=torch.arange(N) // 3, chunk_size=4,
    )  # fmt: skip
    loss, _ = linear_divergence(hidden, task)
    term = run.hidden_state_loss(views)
    if term is not None:
        loss = loss + term(hidden, teachers, weights)
    got = torch.autograd.grad(loss, (hidden, weight))

    temperature = spec.temperature
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    of_teacher = spec.teacher_temperature or temperature
    log_qs = [(view @ teacher_weight.T / of_teacher).log_softmax(-1) for view in teachers]
    value = reference(log_p, log_qs, labels)
    value = value.mean() if value.ndim else value
    if term is not None:
        value = value + term(hidden, teachers, weights)
    expected = torch.autograd.grad(value, (hidden, weight))
    torch.testing.assert_close(loss, value, **CLOSE)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    return value.detach()
