# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A planted string shows where privileged information goes: to the teacher, and elsewhere only if it was asked for."""

import io
import json
from concurrent.futures import Future
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
import transformers.trainer
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects

from batches import contains, teacher_reads
from messages import text_block, user
from scripted import long_answers
from trl_opsd import OPSDConfig, View
from trl_opsd.privileged import rollouts_of
from trl_opsd.trainer.model_card import settings_section


PLANTED = "XYZZY-4711"
PUSHED = {  # what a pushed run must hold, or the search says nothing of it
    "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_args.bin",
    "completions/completions_00001.parquet",
}  # fmt: skip


def holds(name, content, ids):
    if name.endswith(".parquet"):
        content = pandas.read_parquet(io.BytesIO(content)).to_json().encode()
    tokens = (np.array(ids, dtype=kind).tobytes() for kind in ("<i8", "<i4"))
    return any(needle in content for needle in (PLANTED.encode(), *tokens))


class Hub:
    """Takes in what transformers would send, by the rule of the Hub's own client."""

    def __init__(self):
        self.files: dict[str, list[bytes]] = {}  # every version that was sent

    def create_repo(self, name, **kwargs):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, folder_path, path_in_repo="", ignore_patterns=None, run_as_future, **kwargs):
        folder = Path(folder_path)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            self.files.setdefault(f"{path_in_repo}/{name}".strip("/"), []).append((folder / name).read_bytes())
        done = Future()
        done.set_result(None)
        return done

    def holding(self, ids):
        """Names of the files of which a version holds the planted text or its tokens."""
        return {name for name, versions in self.files.items() if any(holds(name, one, ids) for one in versions)}


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    return hub


def plain(index, hint):
    return {"prompt": [user(f"Q{index}")], "hint": hint, "privileged_context": "see above"}


def python_source(groups):
    return [[View(PLANTED, place="prepend")] for _ in rollouts_of(groups)]


WHERE = {
    "column": ({"privileged_column": "hint"}, PLANTED),
    "messages in a column": ({"privileged_column": "hint"}, [user("A"), {"role": "assistant", "content": PLANTED}]),
    "blocks in a column": ({"privileged_column": "hint"}, [user([text_block("A " + PLANTED)])]),
    "fixed": ({"privileged_source": {"fixed": {"context": PLANTED}}}, None),
    "within others": (
        {"privileged_source": {"first_of": [
            {"when": {"condition": {"probability": 1.0}, "source": {"fixed": PLANTED}}},
            {"all_of": [{"column": {"column": "hint", "template": PLANTED + "{privileged_context}"}}]},
        ]}},
        None,
    ),
    "rules": (
        {"privileged_source": {"turn_hint": {"rules": [{"on": "text", "match": ".", "hint": PLANTED}]}}}, None
    ),
    "template": ({"privileged_template": PLANTED + " {privileged_context}"}, None),
    "python": ({"privileged": python_source}, None),
}  # fmt: skip


@pytest.fixture
def run(make_trainer, hub, capsys, tmp_path):
    """Two steps of one generation batch, each with a checkpoint that is pushed, then the final push."""

    def train(where, **more):
        options, hint = WHERE[where]
        trainer = make_trainer(
            dataset=Dataset.from_list([plain(i, hint) for i in range(8)]),
            steps_per_generation=2, max_steps=2, save_strategy="steps", save_steps=1, max_completion_length=8,
            log_completions=True, num_completions_to_print=4, push_to_hub=True, hub_model_id="someone/model",
            hub_always_push=True, **options, **more,
        )  # fmt: skip
        requests, batches, single_turn = [], [], trainer._generate_single_turn
        prepare = trainer._prepare_inputs

        def requested(prompt_ids, *args, **kwargs):
            assert PLANTED not in repr((args, kwargs))
            requests.extend(prompt_ids)
            return single_turn(prompt_ids, *args, **kwargs)

        def prepared(rows):
            batches.append(prepare(rows))
            return batches[-1]

        trainer._generate_single_turn, trainer._prepare_inputs = requested, prepared
        trainer.train()
        trainer.push_to_hub()
        return SimpleNamespace(
            trainer=trainer, requests=requests, batches=batches, out=tmp_path / "out", printed=capsys.readouterr()
        )

    return train


@pytest.mark.parametrize("where", WHERE)
def test_only_the_teacher_reads_it(run, hub, tokenizer, where):
    told = run(where)
    needle = tokenizer(PLANTED)["input_ids"]
    # The teacher, or everything below means nothing
    name = "hint" if where == "rules" else "privileged"
    assert all(contains(ids, needle) for batch in told.batches for ids in teacher_reads(batch, name))
    # The student: what any engine is asked for, and what the loss reads
    assert len(told.requests) == 8 and tokenizer.decode(told.requests[0]).startswith("<|im_start|>user\nQ")
    read = [ids for batch in told.batches for side in ("prompt", "completion") for ids in batch[f"{side}_ids"].tolist()]
    assert len(read) == 16 and not any(contains(ids, needle) for ids in told.requests + read)
    # What is shown
    assert "prompt" in told.printed.out.lower() and PLANTED not in told.printed.out + told.printed.err
    history = json.dumps(told.trainer.state.log_history)
    assert PLANTED not in history and "leak/quotes" in history
    # What is pushed, while training and at its end
    assert hub.files.keys() >= PUSHED
    assert not hub.holding(needle)
    # Where it is on the disk, a name that begins with an underscore keeps it from being pushed
    held = [p for p in told.out.rglob("*") if p.is_file() and holds(p.name, p.read_bytes(), needle)]
    assert {path.relative_to(told.out).as_posix() for path in held} == {"checkpoint-1/_run_state_0.pt"}


def test_what_the_card_says(run, hub):
    run("within others")
    card = hub.files["README.md"][-1].decode()
    assert "`'first_of(when(probability, fixed), all_of(column))'`" in card
    saved = torch.load(io.BytesIO(hub.files["training_args.bin"][-1]), weights_only=False)
    assert saved.privileged_source == "first_of(when(probability, fixed), all_of(column))"
    assert saved.learning_rate == 1e-2


def test_what_the_teacher_alone_is_given_has_no_texts_in_files(tmp_path):
    """Documents for its chat template, a token to load it with; of the student's own arguments nothing is hidden."""
    documents = {"documents": [{"title": PLANTED, "pages": 3}], "enable_thinking": True}
    args = OPSDConfig(
        str(tmp_path), bf16=False, num_generations=1, teacher_chat_template_kwargs=documents,
        teacher_model_kind="checkpoint", teacher_model_name_or_path="someone/model",
        teacher_model_init_kwargs={"token": PLANTED}, chat_template_kwargs={"style": "brief"},
    )  # fmt: skip
    for shown in (str(args.public()), str(args.to_dict()), settings_section(args, 0.0)):
        assert PLANTED not in shown
    shown = args.to_dict()
    assert shown["teacher_chat_template_kwargs"] == {
        "documents": [{"title": "[...]", "pages": 3}],
        "enable_thinking": True,
    }
    assert shown["chat_template_kwargs"] == {"style": "brief"} and args.teacher_chat_template_kwargs == documents


def test_the_arguments_of_the_run_stay(run):
    """Only files are without the texts, not the trainer's own options."""
    trainer = run("within others").trainer
    assert trainer.args.privileged_source == WHERE["within others"][0]["privileged_source"]


def test_a_resumed_run_reads_it_again(run, make_trainer):
    """Nothing of a source comes from the checkpoint's arguments, which lack its texts."""
    told = run("fixed")
    options, hint = WHERE["fixed"]
    trainer = make_trainer(
        dataset=Dataset.from_list([plain(i, hint) for i in range(8)]),
        steps_per_generation=2, max_steps=4, max_completion_length=8, **options,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(told.out / "checkpoint-1"))
    assert trainer.state.global_step == 4
    assert [[view.context for view in row] for row in trainer.collected.views] == [[PLANTED]] * 8


@pytest.mark.parametrize("where", ["column", "python"])
def test_it_is_shown_where_that_is_asked_for(run, hub, tokenizer, where):
    """In the table, which is pushed to a private repository, and in files, which are not."""
    told = run(where, log_privileged_context=True, hub_private_repo=True)
    assert PLANTED in told.printed.out
    pushed = {"completions/completions_00001.parquet", "completions/completions_00002.parquet"}
    assert hub.holding(tokenizer(PLANTED)["input_ids"]) == pushed
    (written,) = (told.out / "_privileged").iterdir()
    views = [json.loads(line)["views"] for line in written.read_text().splitlines()]
    assert [[view["context"] for view in row] for row in views] == [[PLANTED]] * 8


def test_whole_checkpoints_are_pushed_to_private_repositories_alone(run, hub, tokenizer):
    """Their run state holds what the teacher read, and transformers leaves out none of their files."""
    with pytest.raises(ValueError, match="`hub_private_repo=True`"):
        run("fixed", hub_strategy="all_checkpoints")
    run("fixed", hub_strategy="all_checkpoints", hub_private_repo=True)
    assert hub.holding(tokenizer(PLANTED)["input_ids"]) == {"checkpoint-1/_run_state_0.pt"}


PUBLIC = {
    "the model": {"push_to_hub": True},
    "the table": {"push_to_hub": False, "log_completions_hub_repo": "someone/table"},
    "a tracker": {"push_to_hub": False, "report_to": "trackio", "trackio_space_id": "someone/space"},
}


@pytest.mark.parametrize("case", PUBLIC)
def test_a_table_with_contexts_goes_to_private_repositories_alone(tmp_path, case):
    told = {"log_completions": True, "log_privileged_context": True, **PUBLIC[case]}
    own = {"output_dir": str(tmp_path), "bf16": False, "num_generations": 1}
    with pytest.raises(ValueError, match=r"pushes the table of completions.*`hub_private_repo=True`"):
        OPSDConfig(**own, **told)
    for way_out in ({"hub_private_repo": True}, {"log_privileged_context": False}):
        assert OPSDConfig(**own, **(told | way_out))


def test_a_push_by_hand_is_checked_too(make_trainer, hub, tokenizer):
    """After a run that was not to be pushed."""
    shown = {"log_completions": True, "log_privileged_context": True, "hub_model_id": "someone/model"}
    trainer = make_trainer(privileged=python_source, max_steps=1, **shown)
    trainer.train()
    with pytest.raises(ValueError, match=r"^`push_to_hub\(\)` pushes the table of completions"):
        trainer.push_to_hub()
    assert not hub.files
    if "private" not in signature(transformers.trainer.Trainer.push_to_hub).parameters:  # then it is an option alone
        trainer.args.hub_private_repo = True
        trainer.push_to_hub()
    else:
        trainer.push_to_hub(private=True)
    assert hub.holding(tokenizer(PLANTED)["input_ids"]) == {"completions/completions_00001.parquet"}


def test_a_rollout_function_is_given_the_prompts_alone(make_trainer):
    seen = []

    def rollout(prompts, trainer):
        seen.append(repr(prompts))
        return long_answers(prompts, trainer)

    dataset = Dataset.from_list([plain(i, PLANTED) for i in range(8)])
    trainer = make_trainer(dataset=dataset, privileged_column="hint", rollout_func=rollout, max_completion_length=8)
    trainer.train()
    assert [[view.context for view in row] for row in trainer.collected.views] == [[PLANTED]] * 4
    assert len(seen) == 2 and not any(PLANTED in text for text in seen)


class Keeps:
    """A source with a state that holds texts."""

    def __call__(self, groups):
        return python_source(groups)

    def state_dict(self):
        return {"texts": [PLANTED + "\ud800"]}  # of a row that streams, say

    def load_state_dict(self, state):
        self.loaded = state


def test_the_state_of_a_source(make_trainer, hub, tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_model_id": "someone/model"}
    dataset = Dataset.from_list([plain(i, None) for i in range(8)])
    make_trainer(dataset=dataset, privileged=Keeps(), max_steps=1, **options).train()
    held = [path.name for path in tmp_path.rglob("*") if path.is_file() and PLANTED.encode() in path.read_bytes()]
    assert held == ["_parts_0.json"]
    assert "model.safetensors" in hub.files and not any(
        PLANTED.encode() in file for files in hub.files.values() for file in files
    )
    source = Keeps()
    make_trainer(dataset=dataset, privileged=source, max_steps=2).train(resume_from_checkpoint=True)
    assert source.loaded == {"texts": [PLANTED + "\ud800"]}


def test_a_run_that_does_not_distil_writes_its_arguments_as_they_are(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "learning_rate": 3e-3}
    trainer = make_trainer(
        dataset=Dataset.from_list([plain(i, None) for i in range(8)]),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        distillation_weight=0.0,
        **options,
    )
    trainer.train()
    saved = torch.load(tmp_path / "out" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert saved == trainer.args
