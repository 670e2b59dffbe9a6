# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""AgentOPSD: the verifier's advantage by turn, from revisions of a belief in success."""

import math

import pytest
import torch

from agents import AGENT, DONE, agent_model, agent_tokenizer, call, follow_scripts, multiply
from batches import batch_of
from method_cases import CLOSE, B, C, advantages, signals
from trl_opsd.methods.papers.agent_opsd import revisions


def by_hand(batch, share=0.5, bound=0.2, decay=0.95):
    """The formulas, row by row and turn by turn."""
    found = batch.advantages.expand(B, C).clone()
    for b in range(B):
        turns, verifier = batch.turns[b].tolist(), batch.advantages[b, 0].item()
        prior = min(max(batch.group_success_rate[b, 0].item(), 1e-3), 1 - 1e-3)
        known, before, credit = 0.0, prior, []
        for k in range(max(turns) + 1):
            gap = sum(
                (batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item()
                for c in range(C)
                if turns[c] == k and batch.mask[b, c]
            )
            known = decay * known + gap
            now = 1 / (1 + math.exp(-(math.log(prior / (1 - prior)) + known)))
            credit.append(((verifier > 0) - (verifier < 0)) * (now - before))
            before = now
        mean = sum(credit) / len(credit)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in credit) / len(credit))
        for c, k in enumerate(turns):
            if k >= 0:
                weight = min(max(1 + bound * (credit[k] - mean) / (deviation + 1e-6), 1 - bound), 1 + bound)
                found[b, c] = verifier * ((1 - share) + share * weight)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"share": 1.0, "bound": 0.7, "decay": 0.5}, {"decay": 0.0}])
def test_advantages(seed, options):
    batch = signals("agent_opsd", ["privileged"], seed=seed, options=options)
    got = advantages("agent_opsd", batch)
    torch.testing.assert_close(got, by_hand(batch, **options), **CLOSE)
    assert (got - batch.advantages).abs().max() > 0.01
    assert (got.sign() == batch.advantages.sign()).all(), "a turn never changes the verifier's mind"


def test_a_single_turn_and_no_teacher_keep_the_verifiers_advantage_to_the_last_bit():
    batch = signals("agent_opsd", ["privileged"])
    assert torch.equal(advantages("agent_opsd", batch)[2], batch.advantages[2].expand(C))
    none = signals("agent_opsd", ["privileged"], shares=torch.zeros(1, B, C, dtype=torch.float64))
    assert torch.equal(advantages("agent_opsd", none), none.advantages.expand(B, C))
    alike = signals("agent_opsd", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0))
    assert torch.equal(advantages("agent_opsd", alike), alike.advantages.expand(B, C))
    plain = signals("agent_opsd", ["privileged"], options={"share": 0.0})
    assert torch.equal(advantages("agent_opsd", plain), plain.advantages.expand(B, C))


def test_a_tool_result_has_the_verifiers_advantage():
    batch = signals("agent_opsd", ["privileged"])
    assert torch.equal(advantages("agent_opsd", batch)[0, -2:], batch.advantages[0].expand(2))


def test_revisions():
    """Evidence of the same size counts most where success is open; all of it together leads to the last belief."""
    evidence = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    prior = torch.tensor([[0.5]], dtype=torch.float64)
    found = revisions(evidence, prior, 1.0)
    assert (found.diff() < 0).all() and found.sum().item() == pytest.approx(1 / (1 + math.exp(-4)) - 0.5)
    forgetful = revisions(evidence, prior, 0.0)[0].tolist()
    assert forgetful == pytest.approx([1 / (1 + math.exp(-1)) - 0.5, 0, 0, 0]), "only the last turn is evidence"


SCRIPTS = [
    [call(a=1, b=2), call(a=5, b=5), DONE],
    [call(a=3, b=4), DONE],
    ["Twelve.<|im_end|>"],
    [call(a=1, b="x"), call(a=2, b=2), DONE],
]


def test_in_the_trainer(make_trainer):
    """Turns of one rollout have different advantages, the tokens of a turn the same."""

    def reward(completions, **_):
        return [[1.0, 0.0, 1.0, 0.0][i % 4] for i in range(len(completions))]

    trainer = make_trainer(
        agent_model(), method="agent_opsd", tools=[multiply], processing_class=agent_tokenizer(), reward_funcs=reward,
        num_generations=4, privileged_source={"fixed": {"context": "Multiply with the tool."}}, **AGENT,
    )  # fmt: skip
    follow_scripts(trainer, SCRIPTS)
    inputs, kept = batch_of(trainer), []
    make = trainer.objective.sampled_advantages
    trainer.objective.sampled_advantages = lambda *given: kept.append(make(*given)) or kept[-1]
    trainer.compute_loss(trainer.model, inputs).backward()
    batch = inputs["distillation"]
    assert batch.group_success_rate.tolist() == [0.5] * 4
    for row, index in enumerate(batch.index.tolist()):
        count = len(SCRIPTS[index])
        of_turns = [set(kept[0][row][batch.turns[row] == k].tolist()) for k in range(count)]
        assert batch.turns[row].max() == count - 1 and all(len(one) == 1 for one in of_turns)
        assert len(set.union(*of_turns)) == count, "each turn has its own"
