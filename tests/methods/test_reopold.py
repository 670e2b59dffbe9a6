# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""REOPOLD: bounded rewards, two phases of masks."""

import math

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, signals
from trl_opsd.methods.papers.reopold import top_share


FLOOR = math.log(0.1) / 0.9


def reference(batch, late, share=0.2):
    """(sum R^ M) / (sum M) as advantages under a mean over the distilled tokens."""
    places = [(b, c) for b in range(B) for c in range(C) if batch.mask[b, c]]
    gaps = {place: (batch.teacher_logps[0][place] - batch.student_logps[place]).item() for place in places}
    if late:
        chosen = sorted(places, key=lambda place: -batch.student_entropy[place].item())
        chosen = chosen[: math.ceil(share * len(places))]
    else:
        chosen = [place for place in places if gaps[place] >= FLOOR]
    wanted = batch.advantages.expand(B, C).clone()
    for place in chosen:
        wanted[place] += max(gaps[place], FLOOR) * len(places) / len(chosen)
    return wanted, len(chosen)


@pytest.mark.parametrize("step", [0, 49, 50, 90])
def test_advantages(step):
    assert FLOOR == pytest.approx(-2.558, abs=1e-3)
    draw = torch.Generator().manual_seed(4)
    wide = -8 * torch.rand(1, B, C, generator=draw, dtype=torch.float64)
    batch = signals("reopold", ["privileged"], step=step, teacher_logps=wide)
    wanted, chosen = reference(batch, late=step >= 50)
    torch.testing.assert_close(advantages("reopold", batch), wanted, **CLOSE)
    assert 0 < chosen < int(batch.mask.sum())


def test_a_teacher_that_rules_out_everything():
    far = torch.full((1, B, C), -40.0, dtype=torch.float64)
    early = signals("reopold", ["privileged"], teacher_logps=far)
    torch.testing.assert_close(advantages("reopold", early), early.advantages.expand(B, C), **CLOSE)
    late = signals("reopold", ["privileged"], teacher_logps=far, step=60)
    wanted, chosen = reference(late, late=True)
    torch.testing.assert_close(advantages("reopold", late), wanted, **CLOSE)
    assert chosen == 5 and advantages("reopold", late).min() == pytest.approx(-0.5 + FLOOR * 21 / 5)


@pytest.mark.parametrize("step", [0, 60])
def test_identical_contexts_and_no_view_leave_the_verifier(step):
    batch = signals("reopold", ["privileged"], step=step)
    nothing = torch.zeros(1, B, C, dtype=torch.float64)
    alike = signals("reopold", ["privileged"], step=step, teacher_logps=batch.student_logps.unsqueeze(0))
    bare = signals("reopold", ["privileged"], step=step, shares=nothing, mask=nothing[0])
    for one in (alike, bare):
        torch.testing.assert_close(advantages("reopold", one), one.advantages.expand(B, C), **CLOSE)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.1, 3), (0.11, 4), (1.0, 30)])
def test_top_share(share, wanted):
    values, mask = torch.arange(40.0).view(2, 20), torch.ones(2, 20)
    mask[1, 10:] = 0
    chosen = top_share(values, mask, share)
    assert int(chosen.sum()) == wanted and (wanted == 0 or values[chosen > 0].min() == 30 - wanted)
    assert (top_share(values, torch.zeros(2, 20), share) == 0).all()


def test_a_share_that_rounding_lifts_above_a_whole_number():
    assert 0.28 * 25 > 7 and int(top_share(torch.arange(25.0), torch.ones(25), 0.28).sum()) == 7
