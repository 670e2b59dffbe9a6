# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RLCSD: right hint against wrong ones, the verifier's sign, two sets of tokens."""

import math

import pytest
import torch

from method_batches import MIXED, RIGHT, WRONG, gradients, norm, scripted_trainer, views_of
from method_cases import CLOSE, B, C, advantages, signals
from trl_opsd.methods.papers.rlcsd import keep_sign


VIEWS = ["right", "wrong-1", "wrong-2"]


def reference(batch, size=0.5, tau=0.02, delta=0.02):
    """The paper's two means as one sum over tokens: PPO at ratio 1 is the advantage."""
    sets = {False: [], True: []}
    rows, length = batch.loss_mask.shape
    for b in range(rows):
        for c in range(length):
            if not batch.loss_mask[b, c]:
                continue
            verifier, logps = batch.advantages[b, 0].item(), batch.teacher_logps[:, b, c].tolist()
            taught = batch.taught[:, b, c].tolist()
            wrong = [math.exp(one) for one, there in zip(logps[1:], taught[1:], strict=True) if there]
            residual = 0.0
            if taught[0] and wrong:
                residual = size * math.tanh((logps[0] - math.log(sum(wrong) / len(wrong))) / tau)
            moved = abs(residual) > delta
            total = verifier + residual if moved else verifier
            total = max(total, 0.0) if verifier > 0 else min(total, 0.0) if verifier < 0 else 0.0
            sets[moved].append(((b, c), total if moved else verifier))
    tokens = sum(map(len, sets.values()))
    wanted = torch.zeros(rows, length, dtype=torch.float64)
    for one in sets.values():
        for place, value in one:
            wanted[place] = value * tokens / len(one)  # TRL divides the sum by tokens
    return wanted


@pytest.mark.parametrize("views", [VIEWS, ["right", "wrong"]], ids=["two wrong", "one wrong"])
def test_advantages(views):
    batch = signals("rlcsd", views)
    torch.testing.assert_close(advantages("rlcsd", batch) * batch.loss_mask, reference(batch), **CLOSE)


def test_the_weight_of_the_tokens_that_move():
    batch = signals("rlcsd", VIEWS, options={"eta": 0.3})
    moved = reference(batch) - advantages("rlcsd", signals("rlcsd", VIEWS, options={"eta": 0.0})) * batch.loss_mask
    rest = reference(batch) - moved
    torch.testing.assert_close(advantages("rlcsd", batch) * batch.loss_mask, rest + 0.3 * moved, **CLOSE)
    assert moved.any() and rest.any()


def test_a_row_with_fewer_wrong_hints_and_one_without():
    batch = signals("rlcsd", VIEWS)
    batch.shares[2, 0], batch.shares[1:, 1], batch.shares[0, 2] = 0.0, 0.0, 0.0
    torch.testing.assert_close(advantages("rlcsd", batch) * batch.loss_mask, reference(batch), **CLOSE)


def test_the_sign_stays():
    got = advantages("rlcsd", signals("rlcsd", VIEWS, seed=2))
    batch = signals("rlcsd", VIEWS, seed=2)
    assert (got * batch.advantages >= 0).all() and (got[3] == 0).all()


@pytest.mark.parametrize("views", [["right"], ["wrong-1", "wrong-2"], ["privileged"]])
def test_one_side_alone_leaves_grpo(views):
    batch = signals("rlcsd", views)
    torch.testing.assert_close(advantages("rlcsd", batch), batch.advantages * batch.loss_mask, **CLOSE)


def test_identical_contexts_leave_grpo():
    batch = signals("rlcsd", VIEWS)
    alike = signals("rlcsd", VIEWS, teacher_logps=batch.teacher_logps[:1].expand(3, B, C))
    torch.testing.assert_close(advantages("rlcsd", alike), batch.advantages * batch.loss_mask, **CLOSE)


def test_hints_are_other_rollouts(make_trainer):
    first, second, _, fourth, *rest = views_of(scripted_trainer(make_trainer, "rlcsd", MIXED, WRONG))
    assert first["right"] in ("it is 2", "2") and {*first.values()} & {"no", "7"} == {"7"}
    assert second == {"right": "2", "wrong-1": second["wrong-1"], "wrong-2": second["wrong-2"]}
    assert {second["wrong-1"], second["wrong-2"]} == {"no", "7"} and fourth["right"] == "it is 2"
    assert rest == [{}] * 4, "three wrong siblings, and no right one"


def test_all_right_and_all_wrong(make_trainer):
    """No contrast, and no advantage: nothing is left."""
    _, gradient = gradients(scripted_trainer(make_trainer, "rlcsd", WRONG, RIGHT))
    assert norm(gradient) == 0


def test_the_loss_of_a_run_is_the_two_means(make_trainer):
    trainer = scripted_trainer(make_trainer, "rlcsd", MIXED, WRONG)
    seen, plain = [], trainer.objective.signals
    trainer.objective.signals = lambda *given: seen.append(plain(*given)) or seen[-1]
    loss, _ = gradients(trainer)
    wanted = -reference(seen[0]).sum() / seen[0].loss_mask.sum()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3) and abs(loss.item()) > 1e-3


def test_keep_sign():
    values, verifier = torch.tensor([[2.0, -2.0, 1.0]] * 3), torch.tensor([[0.5], [-0.5], [0.0]])
    assert keep_sign(values, verifier).tolist() == [[2.0, 0.0, 1.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
