# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every method says whether other rows of the micro-batch change what it makes of a token: rows are dealt by that."""

from dataclasses import fields, replace

import pytest
import torch
from test_degenerate import PLAIN, VIEWS

from method_cases import CLOSE, B, H, V, random, signals
from trl_opsd import OPSDConfig
from trl_opsd.kernels import Head, LinearDivergenceInputs, linear_divergence
from trl_opsd.methods import method_names, method_of
from trl_opsd.methods.runtime import MethodRun


ROWS, LENGTH = 4, 5
STATES = {"antisd": {"gate": 1.0}}


def run_of(name: str, step: int) -> MethodRun:
    run = MethodRun(name, None)
    run.step, run.progress = step, step / 100
    run.schedule_state |= STATES.get(name, {})
    return run


def advantages_of_halves(name: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of a batch, and of its two halves one after the other."""
    run, whole = run_of(name, step), signals(name, VIEWS, step=step)
    # Three times as far apart: some gaps are beyond every bound
    whole = replace(whole, step_context=run.step_context(VIEWS), teacher_logps=3 * whole.teacher_logps)

    def half(rows: slice):
        def part(value):
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                return value
            return value[:, rows] if value.ndim == 3 else value[rows]

        return replace(whole, **{one.name: part(getattr(whole, one.name)) for one in fields(whole)})

    return run.advantages(whole), torch.cat([run.advantages(half(slice(0, 2))), run.advantages(half(slice(2, B)))])


def gradients_of_halves(name: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient on the hidden states of the divergence of a batch, and of its two halves one after the other."""
    draw, views = random(3), ["privileged"] if name in PLAIN else VIEWS
    few = {"distillation_topk": 4} if "distillation_topk" in method_of(name).defaults else {}
    config, run = OPSDConfig("unused", method=name, bf16=False, num_generations=2, **few), run_of(name, step)
    count, k = ROWS * LENGTH, len(views)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, teachers, weight, other = new(count, H), new(k, count, H), new(V, H), new(V, H)
    labels = torch.randint(V, (count,), generator=draw)
    weights, place = torch.full((k, count), 1 / count / k, dtype=torch.float64), torch.rand(count, generator=draw)

    def gradient(tokens: slice) -> torch.Tensor:
        mine = hidden[tokens].clone().requires_grad_()
        task = LinearDivergenceInputs(
            head=Head(weight), teacher_hidden=teachers[:, tokens], teacher_heads=[Head(other)] * k,
            labels=labels[tokens], weights=weights[:, tokens], spec=run.spec(config.divergence_spec, views),
            relative_positions=place[tokens], rows=torch.arange(count)[tokens] // LENGTH,
        )  # fmt: skip
        loss, _ = linear_divergence(mine, task)
        extra = run.hidden_state_loss(views)
        if extra is not None:
            loss = loss + extra(mine, teachers[:, tokens], weights[:, tokens])
        return torch.autograd.grad(loss, mine)[0]

    half = count // 2
    return gradient(slice(0, count)), torch.cat([gradient(slice(0, half)), gradient(slice(half, count))])


# Advantages of these are by roles, which a toy batch has not; their own tests have whole batches
ROWS_ALONE = ("pi_distill", "vpd")


@pytest.mark.parametrize("step", [0, 60])
@pytest.mark.parametrize("name", [name for name in method_names() if name not in ROWS_ALONE])
def test_other_rows_count_where_the_method_says_so(name, step):
    sampled = method_of(name).defaults.get("distillation_mode") == "sampled_token"
    whole, halves = (advantages_of_halves if sampled else gradients_of_halves)(name, step)
    assert whole.abs().max() > 0
    if method_of(name).micro_batch_statistics:
        assert not torch.allclose(whole, halves, rtol=1e-3, atol=1e-9)
    else:
        torch.testing.assert_close(whole, halves, **CLOSE)
