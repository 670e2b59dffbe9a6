# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""EDGE-OPD: the mask of evidence, and rollouts that are sampled with the context in view."""

import pytest
import torch
from datasets import Dataset

from batches import batch_of, teacher_reads
from method_cases import check_loss
from trl_opsd.privileged.guided import GuidedRollouts


def masked(evidence):
    def loss(log_p, log_qs, labels):
        at = labels.unsqueeze(-1)
        supported = (log_qs[0].gather(-1, at) - log_p.detach().gather(-1, at)).squeeze(-1) > evidence
        return supported * (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)

    return loss


@pytest.mark.parametrize("evidence", [0.0, 1.0])
def test_loss(evidence):
    value = check_loss("edge_opd", ["privileged"], masked(evidence), method_options={"evidence": evidence})
    assert value > 0


def test_without_evidence_nothing_is_taught():
    """Beyond any gap, as with identical contexts, whose gap is 0 everywhere."""
    assert check_loss("edge_opd", ["privileged"], masked(1e6), method_options={"evidence": 1e6}) == 0


def test_a_low_bound_teaches_every_token():
    value = check_loss("edge_opd", ["privileged"], masked(-1e6), method_options={"evidence": -1e6})
    assert value > check_loss("edge_opd", ["privileged"], masked(0.0))


def sampled_from(trainer):
    """The prompts that the sampler is given from now on."""
    seen, single_turn = [], trainer._generate_single_turn

    def record(ids, *args):
        seen.extend(trainer.processing_class.decode(one) for one in ids)
        return single_turn(ids, *args)

    trainer._generate_single_turn = record
    return seen


def test_guided_rollouts_are_trained_under_the_bare_prompt(make_trainer, tokenizer):
    trainer = make_trainer(method="edge_opd", rollout_func=GuidedRollouts(share=1.0))
    seen, batch = sampled_from(trainer), None
    batch = batch_of(trainer)
    contexts = [rollout.row["privileged_context"] for rollout in trainer.collected.rollouts]
    assert any(contexts) and not all(contexts)
    for prompt, context, rollout in zip(seen, contexts, trainer.collected.rollouts, strict=True):
        assert (context or "The answer is") in prompt if context else "The answer is" not in prompt
        assert "The answer is" not in tokenizer.decode(rollout.prompt_ids)
    assert not any("The answer is" in tokenizer.decode(ids) for ids in batch["prompt_ids"])
    taught = [seen[index] for index in batch["distillation"].index.tolist() if contexts[index]]
    reads = [tokenizer.decode(ids) for ids in teacher_reads(batch)]
    assert sorted(taught) == sorted(reads), "what the sampler saw is what the teacher reads"
    trainer.train()
    assert all(torch.isfinite(param).all() for param in trainer.model.parameters())


def test_a_share_is_guided_and_evaluations_are_not(make_trainer, rows):
    for row in rows:
        row["privileged_context"] = "The answer is 7."
    trainer = make_trainer(rollout_func=GuidedRollouts(share=0.5), per_device_train_batch_size=16)
    seen = sampled_from(trainer)
    batch_of(trainer)
    assert 0 < sum("The answer is" in prompt for prompt in seen) < 16
    trainer.model.eval()
    seen.clear()
    trainer.rollout_func([row["prompt"] for row in rows], trainer)
    assert len(seen) == 16 and not any("The answer is" in prompt for prompt in seen)


def test_each_generation_batch_of_a_step_is_drawn_anew(make_trainer, rows):
    """And the same again in another run."""
    for row in rows:
        row["privileged_context"] = "The answer is 7."

    def drawn(**options):
        trainer = make_trainer(
            rollout_func=GuidedRollouts(**options), per_device_train_batch_size=8, gradient_accumulation_steps=4,
            steps_per_generation=1, max_steps=2, dataset=Dataset.from_list(rows * 4),
        )  # fmt: skip
        seen = sampled_from(trainer)
        trainer.train()
        return [tuple("The answer is" in text for text in seen[i : i + 8]) for i in range(0, len(seen), 8)]

    patterns = drawn()
    assert len(patterns) == 8 and len(set(patterns)) > 5
    assert 16 < sum(map(sum, patterns)) < 48
    assert drawn() == patterns != drawn(seed=1)


def test_streams_have_no_rows_to_look_up(make_trainer, rows):
    trainer = make_trainer(rollout_func=GuidedRollouts())
    trainer.train_dataset = iter(rows)
    trainer.model.train()
    with pytest.raises(ValueError, match="must be a `Dataset` for that, got list_iterator"):
        trainer.rollout_func([rows[0]["prompt"]], trainer)
