# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`alignment` of a run whose scores can be enumerated, what it leaves out, and that it leaves no trace."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

import tiny
from agents import multiply
from conftest import length_reward
from trl_opsd import View, alignment
from trl_opsd.cli import main as cli
from trl_opsd.diagnostics import Alignment, AlignmentReport
from trl_opsd.diagnostics.alignment_report import NodeCosine, with_p_values
from trl_opsd.examples import data
from trl_opsd.privileged import rollouts_of
from trl_opsd.trainer.scoring import Scorer


HINT = "The answer is yes."
OTHER = {"hint": lambda groups: [[View(HINT)] for _ in rollouts_of(groups)]}


def even(completion_ids, **_):
    """1 for each even token, so that every token's share in the score is its own."""
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def same(groups):
    return [[View()] for _ in rollouts_of(groups)]


# Against enumeration


def enumerated(trainer, row, candidates=4):
    """Cosines at the first of two tokens, by loss, in float64 and by enumeration of the second token."""
    tokenizer, model = trainer.processing_class, trainer.model.double()
    question = row["prompt"][0]["content"]
    asked = [question, f"{question}\n\n{row['privileged_context']}"]
    texts = [f"<|im_start|>user\n{one}<|im_end|>\n<|im_start|>assistant\n" for one in asked]
    bare, read = (tokenizer(text)["input_ids"] for text in texts)

    @torch.no_grad()
    def next_token(ids):
        return model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).numpy()

    p, q = next_token(bare), next_token(read)
    chosen = np.argsort(-p)[:candidates]
    odds = np.arange(len(p)) % 2 == 0
    scores = []
    for token in chosen:
        goes_on = 0.0 if token == tokenizer.eos_token_id else next_token([*bare, int(token)])[odds].sum()
        scores.append(float(token % 2 == 0) + goes_on)
    own = p[chosen] / p[chosen].sum()
    directions = [own * (f - own @ f) for f in (np.array(scores), (q / p)[chosen], np.log(q / p)[chosen])]
    trainer.model.float()

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    return dict(zip(("forward_kl", "reverse_kl"), (cosine(directions[0], d) for d in directions[1:]), strict=True))


def test_sampled_cosines_become_the_enumerated_ones(make_trainer, rows):
    """Of one row after the other, by more and more continuations of each candidate."""
    given = [row for row in rows if row["privileged_context"]][:4]
    errors = {4: [], 256: []}
    for row in given:
        trainer = make_trainer(
            dataset=Dataset.from_list([row]), per_device_train_batch_size=1, max_completion_length=2, score_func=even,
        )  # fmt: skip
        exact = enumerated(trainer, row)
        trainer.args.per_device_train_batch_size = 64  # of the writer
        trainer.args.generation_batch_size = 1
        for samples in errors:
            report = alignment(trainer, rows=1, nodes=2, samples=samples)
            for one in report.alignments:
                (first,) = [node for node in one.nodes if node.place == 0.25]
                errors[samples].append(abs(first.cosine - exact[one.loss]))
        assert {one.loss for one in report.alignments} == set(exact)
    assert len(errors[256]) == 8
    assert max(errors[256]) < 0.08 and np.mean(errors[256]) < 0.4 * np.mean(errors[4])


def test_at_the_last_token_the_candidates_score_by_themselves(make_trainer):
    """Nothing is written after it, so the ideal has no noise: both halves agree, and scores are those of the token."""
    report = alignment(make_trainer(max_completion_length=1, score_func=even), rows=8, nodes=1, samples=2)
    assert report.reliabilities and min(report.reliabilities) == pytest.approx(1.0)
    assert report.nodes == 8 and report.nodes - report.equal == len(report.reliabilities)


# What has no direction, and what is left out


def test_a_teacher_that_reads_the_same_has_no_direction(make_trainer):
    trainer = make_trainer(teacher_model_kind="live", privileged=same, score_func=even)
    report = alignment(trainer, rows=4, nodes=2, samples=2)
    assert {(one.loss, one.verdict) for one in report.alignments} == {
        ("forward_kl", "no direction"), ("reverse_kl", "no direction"),
    }  # fmt: skip
    assert all(one.undirected == len(one.nodes) > 0 for one in report.alignments)
    assert "teacher and student say the same" in str(report)


def test_equal_scores_are_left_out_and_counted(make_trainer):
    report = alignment(make_trainer(score_func=lambda prompts, **_: [0.5] * len(prompts)), rows=4, nodes=2)
    assert (report.rollouts, report.nodes, report.equal, report.alignments) == (4, 8, 8, [])
    assert "At 8 nodes all candidates had the same score" in str(report) and "No view teaches a token" in str(report)


def test_a_sure_student_has_no_nodes(make_trainer, tokenizer):
    """At a hundredth of the temperature one token has nearly all of the mass."""
    report = alignment(make_trainer(score_func=even, temperature=0.01), rows=4)
    assert report.sure >= report.tokens - 2 and report.nodes <= 2
    assert alignment(make_trainer(score_func=even), rows=4).sure == 0


def test_counts_sources_and_losses(make_trainer):
    options = {"method": "taid", "reward_funcs": length_reward, "num_generations": 2}
    report = alignment(make_trainer(**options), rows=4, nodes=3, candidates=2, samples=2, sources=OTHER)
    assert (report.prompts, report.rollouts, report.samples) == (4, 8, 2)
    assert report.nodes == 24 and report.texts == 24 * 2 * 2
    names = {(one.source, one.view, one.loss) for one in report.alignments}
    assert {("hint", "privileged", loss) for loss in ("forward_kl", "reverse_kl", "own loss")} <= names
    own, hint = (next(one for one in report.alignments if one.source == source) for source in ("own", "hint"))
    assert len(own.nodes) < len(hint.nodes) == report.nodes - report.equal, "every third row has no context"
    assert len(report.reliabilities) == len(hint.nodes)
    places = [node.place for node in hint.nodes]
    assert all(0 < place < 1 for place in places) and len(set(places)) > 3
    figures = json.loads(json.dumps(report.as_dict()))
    assert len(figures["alignments"]) == len(names) and figures["alignments"][0]["parts"].keys() >= {"right", "wrong"}


def test_advantages_of_sampled_tokens_are_noted(make_trainer):
    trainer = make_trainer(distillation_mode="sampled_token", distillation_alpha=1.0, score_func=even)
    report = alignment(trainer, rows=4, nodes=1, samples=2)
    assert {one.loss for one in report.alignments} == {"forward_kl", "reverse_kl"}
    (note,) = report.notes
    assert "reverse_kl is the expectation" in note


def test_an_answer_that_has_ended_stays_as_it_is(make_trainer):
    trainer = make_trainer(score_func=even)
    trainer.sample(list(trainer.train_dataset)[:4])
    seen, end = [], trainer.eos_token_ids[0]

    def score(completion_ids, **_):
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    begun = [[7, 8, end], [7, 8], [end], [9] * 8]
    Scorer(trainer, score).continuations(trainer.collected.rollouts, begun)
    assert seen[0] == begun[0] and seen[2] == begun[2] and seen[3] == begun[3], "the last one has no room for more"
    assert seen[1][:2] == [7, 8] and len(seen[1]) > 2


# No trace


@pytest.mark.parametrize(
    "options",
    [{"score_func": even}, {"reward_funcs": length_reward, "log_completions": True, "num_completions_to_print": 0}],
    ids=["pure", "mixed, with tables"],
)
def test_training_after_it_is_training_without(make_trainer, tmp_path, options):
    def run(name, looks):
        trainer = make_trainer(output_dir=str(tmp_path / name), **options)
        before = dict(vars(trainer)), random.getstate(), torch.get_rng_state()
        weights = [weight.detach().clone() for weight in trainer.model.parameters()]
        if looks:
            alignment(trainer, rows=4, nodes=2, samples=2, sources=OTHER)
        assert {n: id(v) for n, v in vars(trainer).items()} == {n: id(v) for n, v in before[0].items()}
        assert random.getstate() == before[1] and torch.equal(torch.get_rng_state(), before[2])
        assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))
        trainer.train()
        logs = [{n: v for n, v in log.items() if "time" not in n and "per_second" not in n and "runtime" not in n}
                for log in trainer.state.log_history]  # fmt: skip
        return logs, [weight.detach().clone() for weight in trainer.model.parameters()]

    one, two = run("without", False), run("after", True)
    assert one[0] == two[0] and all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


# Report


def measured(cosines, **changes):
    nodes = [NodeCosine(prompt, prompt % 2 == 0, 0.1, value) for prompt, value in enumerate(cosines)]
    return Alignment("own", "privileged", "forward_kl", nodes, **changes)


@pytest.mark.parametrize(
    ("cosines", "verdict"),
    [
        ([0.5] * 8, "up"),
        ([-0.5] * 8, "down"),
        ([0.5, -0.5] * 4, "unclear"),
        ([0.5] * 3, "unsure"),
        ([None] * 8, "no direction"),
        ([0.5] * 8 + [None] * 8, "up"),
    ],
)
def test_verdicts(cosines, verdict):
    (one,) = with_p_values([measured(cosines)])
    assert one.verdict == verdict and one.sentence


def test_nodes_of_a_prompt_are_one_sample():
    nodes = [NodeCosine(0, True, 0.1, value) for value in (1.0, 1.0, 0.4)] + [NodeCosine(1, False, 0.9, 0.0)]
    one = Alignment("own", "privileged", "forward_kl", nodes)
    assert one.of_prompts() == [pytest.approx(0.8), 0.0] and one.mean == pytest.approx(0.4)
    assert one.error == pytest.approx(0.4)
    assert one.parts == pytest.approx(
        {"right": 0.8, "wrong": 0.0, "first third": 0.8, "middle": float("nan"), "last third": 0.0}, nan_ok=True
    )


def test_the_printed_report():
    report = AlignmentReport(1, 8, 64, 4, 32, 6, 8, 900, [0.5, 0.7], with_p_values([measured([0.5] * 8)]), ["so."])
    text = str(report)
    assert "900 texts were written, 8 from each candidate of 32 nodes" in text and "choice at 60 of 64 tokens" in text
    assert "+0.600, the cosine of two halves" in text and "towards better scores (p = 0.0039)" in text
    assert text.endswith("Note: so.")


# Bad input


@pytest.mark.parametrize(
    ("options", "call", "told"),
    [
        ({}, {}, "needs a score"),
        ({"distillation_weight": 0.0, "reward_funcs": length_reward}, {}, "this trainer has none"),
        ({"score_func": even}, {"rows": 0}, "`rows` must be at least 1"),
        ({"score_func": even}, {"nodes": 0}, "`nodes` must be at least 1"),
        ({"score_func": even}, {"candidates": 1}, "`candidates` must be at least 2"),
        ({"score_func": even}, {"samples": 3}, "`samples` must be an even number"),
        ({"score_func": even}, {"sources": {"own": same}}, "must not be named 'own'"),
        ({"score_func": lambda prompts, **_: [None] * len(prompts)}, {}, "a finite score of every answer"),
    ],
)
def test_bad_input(make_trainer, options, call, told):
    trainer = make_trainer(**options)
    with pytest.raises(ValueError, match=told):
        alignment(trainer, **{"rows": 4, **call})


def test_what_it_can_not_continue(make_trainer, monkeypatch):
    trainer = make_trainer(score_func=even)
    trainer.tools = [multiply]
    with pytest.raises(ValueError, match="trajectory with tools"):
        alignment(trainer)
    trainer = make_trainer(score_func=even)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="`--num_processes 1`"):
        alignment(trainer)


# Command


def test_the_command(tmp_path, tokenizer, capsys):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    options = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_completion_length": 4,
        "bf16": False, "report_to": "none", "gradient_checkpointing": False,
        "preflight_sources": {"steps": {"column": "solution"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    sizes = ["--rows", "4", "--nodes", "1", "--candidates=2", "--samples", "2"]
    call = ["align", "--config", str(tmp_path / "recipe.yaml"), *sizes, "--score", f"{__name__}.even"]
    cli.main(call)
    told = capsys.readouterr().out
    assert "own/privileged" in told and "steps/privileged" in told and "of 4 nodes" in told
    cli.main([*call, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["rollouts"], report["nodes"], report["samples"]) == (4, 4, 2)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    with pytest.raises(SystemExit):
        cli.main([*call, "--preflight"])
    assert "`preflight` and `align` are both set" in capsys.readouterr().err
    cli.main(["align", "--help"])
    assert "usage: trl-opsd align" in capsys.readouterr().out
