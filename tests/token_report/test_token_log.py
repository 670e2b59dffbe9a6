# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The record of single tokens against float64 by hand; training with it is training without it."""

import gzip
import json

import pytest
import torch
from datasets import Dataset

from conftest import length_reward
from runs import SAMPLED, interrupted
from trl_opsd import View, preflight
from trl_opsd.privileged import rollouts_of
from trl_opsd.token_report.record import PROBE, STEP, path_of, pieces, read, rounded, steps_of, write


CASES = {
    "forward KL": {},
    "clipped": {"distillation_token_clip": 0.2, "distillation_temperature": 2.0},
    "teacher temperature": {"distillation_teacher_temperature": 0.4},
    "sampled token, teacher temperature": {"distillation_teacher_temperature": 0.4, **SAMPLED},
    "top-k": {"distillation_mode": "topk_logits", "distillation_topk": 4, "distillation_alpha": 0.5},
    "mixed": {"reward_funcs": length_reward},
    "sampled token": SAMPLED,
    "sampled token, mixed": {"reward_funcs": length_reward, **SAMPLED},
    "two passes": {"num_iterations": 2, "max_steps": 4, "reward_funcs": length_reward, **SAMPLED},
    "LoRA": {"peft_config": "lora"},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}


def trained(make_trainer, **options):
    if options.get("peft_config") == "lora":
        from peft import LoraConfig

        options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    trainer = make_trainer(**options)
    trainer.train()
    return trainer


def assert_same(one, other):
    """Equal weights and logs, to the last bit."""
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    timed = ("time", "per_second", "runtime")
    for mine, others in zip(one.state.log_history, other.state.log_history, strict=True):
        assert mine.keys() == others.keys() and len(mine) > 3
        assert all(mine[k] == others[k] for k in mine if not any(word in k for word in timed))


def recorded(trainer, step):
    return read(path_of(trainer.args.output_dir, step))


def near(value, expected):
    """Equal to three digits."""
    return value == pytest.approx(expected, rel=6e-3, abs=2e-3)


def by_hand(model, prompt, completion, temperature):
    """Log-probabilities of all tokens in float64, `(C, V)`."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"mixed", "two passes", "sampled token, mixed"}))
def test_values_are_those_of_a_plain_forward(make_trainer, rows, case):
    """The model stands still at learning rate 0, so that it can be asked afterwards; its teacher is itself."""
    options = {"learning_rate": 0.0, "log_tokens": 3, "max_steps": 1, "teacher_model_kind": "live", **CASES[case]}
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    trainer = trained(make_trainer, dataset=with_context, **options)
    head, lines = recorded(trainer, 1)
    assert len(lines) == 3 and head["step"] == 1
    temperature = options.get("distillation_temperature") or trainer.args.temperature
    model = trainer.model.eval()
    for line in lines:
        (view,) = line["views"].values()
        ids, read_by_teacher = line["ids"], view["prompt"]["ids"]
        p = by_hand(model, line["student_prompt"]["ids"], ids, temperature)
        q = by_hand(model, read_by_teacher, ids, options.get("distillation_teacher_temperature") or temperature)
        for i, token in enumerate(ids):
            assert near(line["p"][i], p[i, token].item()) and near(view["q"][i], q[i, token].item())
            assert near(line["entropy"][i], -(p[i].exp() * p[i]).sum().item())
            assert near(view["entropy"][i], -(q[i].exp() * q[i]).sum().item())
            if case in ("forward KL", "clipped", "teacher temperature"):
                assert near(view["divergence"][i], (q[i].exp() * (q[i] - p[i])).sum().item())
            for top, own, other in ((line["top"], p, None), (view["top"], q, p)):
                wanted = own[i].topk(5)
                assert sorted(top["ids"][i]) == sorted(wanted.indices.tolist())
                found = top["ids"][i]
                of_teacher = top["q"]["privileged"][i] if other is None else top["q"][i]
                assert all(near(a, p[i, t].item()) for a, t in zip(top["p"][i], found, strict=True))
                assert all(near(a, q[i, t].item()) for a, t in zip(of_teacher, found, strict=True))
                assert all(str(token) in head["strings"] for token in found)
        if case == "clipped":
            assert max(view["loss"]) <= 0.2 < max(view["divergence"])
        if "sampled" in case:
            gaps = [q - p for p, q in zip(line["p"], view["q"], strict=True)]
            for advantage, gap in zip(line["advantage"], gaps, strict=True):
                # All tokens of all rows are distilled, so that the factor is 1; small gaps have lost their digits
                assert abs(gap) < 0.5 or advantage == pytest.approx(gap, rel=0.05)
            assert max(map(abs, gaps)) > 1
        else:
            assert "advantage" not in line


@pytest.mark.parametrize("case", CASES)
def test_training_with_it_is_training_without_it(make_trainer, case):
    runs = [trained(make_trainer, log_tokens=count, **CASES[case]) for count in (2, 0)]
    assert_same(*runs)


def test_what_is_read_and_written(make_trainer, tokenizer, rows):
    """Rows with a view come first; the context is found where it stands, and is nowhere but in the teacher's prompt."""
    trainer = trained(make_trainer, log_tokens=2, dataset=Dataset.from_list(rows[1:3] * 4), reward_funcs=length_reward)
    for step in (1, 2):
        _, lines = recorded(trainer, step)
        for line in lines:
            (view,) = line["views"].values()
            prompt = view["prompt"]
            ((begin, end),) = prompt["context"]
            number = line["student_prompt"]["text"].split("?")[0].split()[-1]
            assert prompt["text"][begin:end] == f"The answer is {number}."
            assert tokenizer(prompt["text"])["input_ids"] == prompt["ids"]
            assert "".join(line["texts"]) == tokenizer.decode(line["ids"]) and len(line["texts"]) == len(line["ids"])
            assert line["written"] == [1] * len(line["ids"]) and view["share"] == line["written"]
            assert line["rewards"].keys() == {"length_reward"} and isinstance(line["success"], bool)


def test_only_logged_steps_and_as_many_rows_as_asked_for(make_trainer, rows):
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    trainer = trained(make_trainer, dataset=with_context, log_tokens=3, logging_steps=2, max_steps=4)
    folder = path_of(trainer.args.output_dir, 1).parent
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002.jsonl.gz", "step-000004.jsonl.gz"]
    assert [len(recorded(trainer, step)[1]) for step in (2, 4)] == [3, 3]
    trainer = trained(make_trainer, dataset=with_context, log_tokens=30, max_steps=1)
    assert len(recorded(trainer, 1)[1]) == 4, "no more than there are"


def test_a_preflight_records_nothing(make_trainer, rows):
    """Its losses are taken in training mode, and would take the place of the first step's rollouts."""
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    records = []
    for looks in (True, False):
        options = {"dataset": with_context, "log_tokens": 2, "logging_first_step": True, "max_steps": 1}
        trainer = make_trainer(**options)
        if looks:
            preflight(trainer, rows=4)
            assert trainer.token_log.lines == [] and trainer.token_log.active
        trainer.train()
        records.append(recorded(trainer, 1))
    assert records[0] == records[1]


PROBED = {
    "forward KL": {},
    "sampled token, mixed": CASES["sampled token, mixed"],
    "two passes": CASES["two passes"],
    "LoRA": CASES["LoRA"],
    "ema": {"teacher_model_kind": "ema", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("case", PROBED)
def test_the_probe_is_the_same_rollouts_under_other_weights(make_trainer, rows, case):
    """Before training, after step 2, and after the last one, where a plain forward tells the same."""
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    options = {"dataset": with_context, "log_tokens": 3, "max_steps": 3, "learning_rate": 0.05, **PROBED[case]}
    options["max_steps"] = 3
    trainer = trained(make_trainer, log_tokens_probe=2, **options)
    assert list(steps_of(trainer.args.output_dir, PROBE)) == [0, 2, 3]
    records = [read(path)[1] for path in steps_of(trainer.args.output_dir, PROBE).values()]
    first = recorded(trainer, 1)[1]
    assert [line["index"] for line in records[0]] == [line["index"] for line in first] and len(first) == 3
    fixed = ("index", "group", "rewards", "success", "leak", "student_prompt", "ids", "texts", "written")
    for of_step, *later in zip(first, *records, strict=True):
        assert near(later[0]["p"], of_step["p"]), "the weights of the first step are those before it"
        for line in later:
            assert all(line[name] == of_step[name] for name in fixed)
            assert {k: v["prompt"] for k, v in line["views"].items()} == {
                k: v["prompt"] for k, v in of_step["views"].items()
            }
        assert later[0]["p"] != later[1]["p"] != later[2]["p"]
    model = trainer.model.eval()
    for line in records[-1]:
        p = by_hand(model, line["student_prompt"]["ids"], line["ids"], trainer.args.temperature)
        assert near(line["p"], [p[i, token].item() for i, token in enumerate(line["ids"])])


@pytest.mark.parametrize("case", PROBED)
def test_training_with_a_probe_is_training_without_it(make_trainer, case):
    runs = [trained(make_trainer, **some, **PROBED[case]) for some in ({"log_tokens": 2, "log_tokens_probe": 1}, {})]
    assert_same(*runs)


def test_records_of_a_resumed_run(make_trainer, rows, tmp_path):
    """The probe goes through the checkpoint, which stands between two steps of a generation batch."""
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    options = {
        "dataset": with_context, "log_tokens": 2, "log_tokens_probe": 1, "max_steps": 4, "steps_per_generation": 2,
        "save_strategy": "steps", "save_steps": 1, "reward_funcs": length_reward,
    }  # fmt: skip
    whole = trained(make_trainer, output_dir=str(tmp_path / "whole"), **options)
    interrupted(make_trainer, 1, **options)
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    for kind in (STEP, PROBE):
        files = [steps_of(trainer.args.output_dir, kind) for trainer in (whole, resumed)]
        assert files[0].keys() == files[1].keys() and len(files[0]) == 4 + (kind == PROBE)
        for step in (3, 4):
            assert read(files[0][step]) == read(files[1][step])
    assert [line["rewards"] for line in read(files[1][2])[1]] == [line["rewards"] for line in read(files[0][0])[1]]
    (line, *_) = recorded(resumed, 2)[1]
    assert line["rewards"] == {} and line["success"] is None, "the checkpoint has the rollouts, not their rewards"


def test_a_new_run_begins_without_the_records_of_an_earlier_one(make_trainer, rows):
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    probed = {"log_tokens": 2, "log_tokens_probe": 1, "max_steps": 3}
    folder = trained(make_trainer, dataset=with_context, **probed).args.output_dir
    trained(make_trainer, dataset=with_context, log_tokens=2, max_steps=1)
    assert [list(steps_of(folder, kind)) for kind in (STEP, PROBE)] == [[1], []]
    trained(make_trainer, dataset=with_context, max_steps=1)
    assert not steps_of(folder)


def test_an_evaluation_between_leaves_rewards_and_context(make_trainer, rows):
    """A generation batch lasts for two steps, between which another set is sampled."""
    with_context = Dataset.from_list([row for row in rows if row["privileged_context"]])
    trainer = trained(
        make_trainer, dataset=with_context, log_tokens=2, steps_per_generation=2, max_steps=2, eval_steps=1,
        eval_strategy="steps", eval_dataset=with_context.select([0]), reward_funcs=length_reward,
    )  # fmt: skip
    for step in (1, 2):
        for line in recorded(trainer, step)[1]:
            assert line["rewards"].keys() == {"length_reward"}
            assert line["views"]["privileged"]["prompt"]["context"]


def test_several_views_and_hints_within_the_completion(make_trainer):
    def source(groups):
        hint = View("Mind the sign.", name="hint", place="before_token", position=2)
        return [[View("The sum.", name="a"), hint] for _ in rollouts_of(groups)]

    trainer = trained(make_trainer, log_tokens=1, privileged=source, max_steps=1)
    _, (line,) = recorded(trainer, 1)
    a, hint = line["views"]["a"], line["views"]["hint"]
    assert a["start"] == 0 and hint["start"] == 2
    assert hint["share"][:2] == [0, 0] and a["share"][:3] == [1, 1, 0.5]
    assert hint["prompt"]["ids"][-2:] != line["ids"][:2] or "Mind the sign." in hint["prompt"]["text"]
    assert line["top"]["q"].keys() == {"a", "hint"}


def test_size(make_trainer, rows):
    """Bytes a token of a rollout, all in all."""
    trainer = trained(
        make_trainer, dataset=Dataset.from_list(rows[1:3] * 4), log_tokens=4, max_completion_length=64, max_steps=1
    )
    path = path_of(trainer.args.output_dir, 1)
    tokens = sum(len(line["ids"]) for line in recorded(trainer, 1)[1])
    assert tokens > 100 and path.stat().st_size / tokens < 150
    head, *_ = (json.loads(text) for text in gzip.open(path, "rt"))
    assert set(head) == {"step", "temperature", "stops", "strings"}
    assert head["stops"] == trainer.eos_token_ids and all(str(token) in head["strings"] for token in head["stops"])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([1, 2, 3], ["a", "b", "c"]), ([4, 5, 1], ["", "é", "a"]), ([1, 4], ["a", "\ufffd"]), ([], [])],
)
def test_a_character_of_several_tokens_stands_at_its_last(ids, expected):
    table = {1: b"a", 2: b"b", 3: b"c", 4: b"\xc3", 5: b"\xa9"}
    decode = lambda own: b"".join(table[i] for i in own).decode("utf-8", errors="replace")  # noqa: E731
    assert pieces(ids, decode) == expected


def test_numbers_have_three_digits():
    assert [rounded(x) for x in (-20.1234, 0.000123456, 2.0, 1234.5)] == [-20.1, 0.000123, 2, 1230]
    assert rounded(float("inf")) is None and rounded(float("nan")) is None


def test_what_is_no_record(tmp_path):
    path = path_of(tmp_path, 3)
    path.parent.mkdir()
    path.write_text("no gzip")
    with pytest.raises(ValueError, match=r"step-000003.jsonl.gz is no record of tokens"):
        read(path)
    write(path, {"temperature": 1.0, "strings": {}}, [])
    with pytest.raises(ValueError, match=r"of this version: its first line lacks stops"):
        read(path)
