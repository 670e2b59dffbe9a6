# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Self-written contexts: what is written with the privileged information in view is what the teacher reads."""

from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from batches import batch_of, teacher_reads
from scripted import right, sums, writing
from trl_opsd.privileged import Written, build_source
from trl_opsd.privileged.sources.written import INSTRUCTION


OPTIONS = {
    "reward_funcs": right, "num_generations": 2, "policy_weight": 0.0, "shuffle_dataset": False,
    "max_completion_length": 200,
}  # fmt: skip
TEXTS = ["It is 3", "It is 2"], ["It is 5", "It is 6"]
SOLUTIONS = {"solution": ["One and one make {task}.", "Two and three make five."]}


class Hints:
    """Numbers what it writes, and keeps what it reads."""

    def __init__(self, say="Hint {}."):
        self.prompts, self.rollouts, self.say = [], [], say

    def __call__(self, prompts, rollouts):
        first = len(self.prompts)
        self.prompts += prompts
        self.rollouts += rollouts
        return [self.say.format(first + i) for i in range(len(prompts))]


def hinted(make_trainer, author=None, dataset=None, **options):
    own = {name: options.pop(name) for name in list(options) if name in Written.__dataclass_fields__}
    source = Written(author=author or Hints(), **{"column": "solution", **own})
    given = {**OPTIONS, "rollout_func": writing(*TEXTS), **options}
    trainer = make_trainer(dataset=dataset or sums(**SOLUTIONS), privileged=source, **given)
    return trainer, batch_of(trainer), source


def contexts(trainer):
    return [[view.context for view in views] for views in trainer.collected.views]


def counts(source):
    return [source.counts[f"written_{name}"] for name in ("asked", "empty")]


def test_one_text_for_a_prompt(make_trainer, tokenizer):
    author = Hints()
    trainer, batch, source = hinted(make_trainer, author)
    assert contexts(trainer) == [["Hint 0."], ["Hint 0."], ["Hint 1."], ["Hint 1."]] and counts(source) == [2, 0]
    prompts = dict(zip(batch["distillation"].index.tolist(), teacher_reads(batch), strict=True))
    read = tokenizer.decode(prompts[0])
    assert read == "<|im_start|>user\n1 + 1?\n\nA hint:\n\nHint 0.<|im_end|>\n<|im_start|>assistant\n"
    ((first,), (second,)) = author.prompts
    # The solution speaks of a placeholder: it is not replaced in it
    assert first["content"] == f"{INSTRUCTION}\n\nProblem:\n1 + 1?\n\nSolution:\nOne and one make {{task}}."
    assert second["content"].endswith("Problem:\n2 + 3?\n\nSolution:\nTwo and three make five.")


def test_one_text_for_a_rollout(make_trainer):
    trainer, _, source = hinted(make_trainer, per_rollout=True)
    assert contexts(trainer) == [[f"Hint {i}."] for i in range(4)] and counts(source) == [4, 0]


def test_the_request_and_the_examples(make_trainer):
    author = Hints()
    examples = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    options = {"instruction": "Hint!", "request": "<{privileged_context}|{privileged_context}>", "examples": examples}
    dataset = sums(**SOLUTIONS).map(lambda row: {"prompt": row["prompt"][0]["content"]})
    hinted(make_trainer, author, dataset, **options)
    solution = SOLUTIONS["solution"][1]
    assert author.prompts[1] == f"Hint!\n\na\n\nb\n\n<{solution}|{solution}>\n\n"


def test_a_row_without_information(make_trainer):
    author = Hints()
    trainer, _, source = hinted(make_trainer, author, sums(solution=[None, "Five."]))
    assert contexts(trainer) == [[], [], ["Hint 0."], ["Hint 0."]] and counts(source) == [1, 0]
    assert [rollout.group for rollout in author.rollouts] == [1]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_control_tokens_in_what_the_model_reads_are_text(make_trainer, tokenizer, kind):
    """Of chat messages the template's own are all that there are, of texts there are none."""
    prompt = "1 + 1?" if kind == "text" else [{"role": "user", "content": "1 + 1?"}]
    dataset = Dataset.from_list([{"prompt": prompt, "solution": "a<|im_end|>b"}] * 8)
    source = build_source({"written": {"column": "solution", "max_new_tokens": 1, "instruction": ""}})
    trainer = make_trainer(dataset=dataset, privileged=source)
    read, continuations = [], trainer.text_generator._continuations

    def recorded(ids, *given):
        read.extend(ids)
        return continuations(ids, *given)

    trainer.text_generator._continuations = recorded
    batch_of(trainer)
    (ids,) = read
    assert "a<|im_end|>b" in tokenizer.decode(ids)
    assert ids.count(tokenizer.eos_token_id) == (0 if kind == "text" else 1)


@pytest.mark.parametrize("text", ["", " \n", "<think>What hint?"])
def test_nothing_written(make_trainer, text):
    trainer, _, source = hinted(make_trainer, Hints(text))
    assert contexts(trainer) == [[]] * 4 and counts(source) == [2, 2]


def test_only_wanted_rollouts_are_written_about(make_trainer):
    spec = {"when": {"condition": "failed", "source": {"written": {"column": "solution"}}}}
    source = build_source(spec)
    author = source.parts[0].author = Hints()
    given = {**OPTIONS, "rollout_func": writing(*TEXTS)}
    trainer = make_trainer(dataset=sums(**SOLUTIONS), privileged=source, **given)
    batch_of(trainer)
    assert contexts(trainer) == [["Hint 0."], [], [], ["Hint 1."]]
    assert [rollout.index for rollout in author.rollouts] == [0, 3]


def test_the_teacher_writes_by_default(make_trainer, tokenizer, monkeypatch):
    """In a training: the text is the teacher's, and it is logged how many were written."""
    source = build_source({"written": {"column": "solution", "max_new_tokens": 6}})
    options = {**OPTIONS, "rollout_func": writing(*TEXTS), "max_steps": 1}
    trainer = make_trainer(dataset=sums(**SOLUTIONS), privileged=source, **options)
    weights, wrote, write = [], [], trainer.collector.run.write

    def recorded(prompts, **how):
        weights.append(how)
        wrote.extend(write(prompts, **how))
        return wrote

    object.__setattr__(trainer.collector.run, "write", recorded)
    trainer.train()
    assert weights == [{"weights": "teacher", "literal": True, "max_new_tokens": 6, "temperature": 0.0}]
    told = [[text.strip()] if text.strip() else [] for text in wrote]
    assert len(wrote) == 2 and any(told)
    assert contexts(trainer) == [told[0], told[0], told[1], told[1]]
    assert trainer.state.log_history[0]["self_distillation/written_asked"] == 2


def test_rollouts_of_a_prompt_are_given_different_texts_by_chance(make_trainer):
    options = {"per_rollout": True, "temperature": 3.0, "max_new_tokens": 20}
    trainer, _, source = hinted(make_trainer, "live", **options)
    texts = [context for (context,) in contexts(trainer)]
    assert len(set(texts)) == 4 and counts(source) == [4, 0]


BAD = [
    ({"request": "no placeholder"}, r"`request` must contain the placeholder \{privileged_context\}"),
    ({"per_rollout": True}, "`per_rollout` needs a `temperature` above 0"),
    ({"author": "base"}, "`author` must be 'live', 'teacher'"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        build_source({"written": options})


COLUMNS = [
    ({}, "no column `solution`, which the option `column`"),
    ({"solution": [1, 2]}, "Row 0 of `train_dataset`: column `solution` must be text"),
    ({"solution": [None, " "]}, "Row 1 of `train_dataset`: column `solution` is an empty string"),
    ({"solution": [[{"role": "user", "content": "a"}]] * 2}, "Row 0 .* must be text"),
]


@pytest.mark.parametrize(("columns", "text"), COLUMNS, ids=[text for _, text in COLUMNS])
def test_bad_columns_are_named_before_training(make_trainer, columns, text):
    with pytest.raises(ValueError, match=text):
        hinted(make_trainer, dataset=sums(**columns))


def test_a_stream_is_checked_as_it_comes(make_trainer):
    dataset = sums(solution=["One.", "Two."]).to_iterable_dataset().map(lambda row: {**row, "solution": 3})
    with pytest.raises(ValueError, match=r"The column `solution` of the row with prompt .* must be text .*got 3"):
        hinted(make_trainer, dataset=dataset)


def test_a_text_for_each_rollout_and_a_cache_do_not_go_together(tmp_path):
    author = {"endpoint": {"url": "http://localhost:1/v1", "model": "m", "cache_dir": str(tmp_path)}}
    with pytest.raises(ValueError, match="`per_rollout` asks for several texts of a prompt, and `cache_dir` keeps one"):
        build_source({"written": {"author": author, "per_rollout": True, "temperature": 1.0}})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": "many"}, "`max_new_tokens` must be a whole number of at least 1, got 'many'"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number"),
        ({"temperature": "1e-1"}, "`temperature` must be a finite number of at least 0, got '1e-1'"),
        ({"temperature": -1.0}, "`temperature` must be a finite number"),
        ({"instruction": None}, "`instruction` must be text, got None"),
        ({"examples": [{"role": "user", "content": None}]}, "`examples` must be chat messages .* as number 0"),
        ({"examples": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "content are texts, got"),
        ({"examples": ["a"]}, r"`examples` must be a list of mappings, got \['a'\]"),
    ],
)
def test_options_of_an_author(options, text):
    with pytest.raises(ValueError, match=text):
        build_source({"written": options})


def test_the_recipes_source_is_built():
    recipe = Path(__file__).parents[2] / "recipes" / "smollm2_written.yaml"
    source = build_source(yaml.safe_load(recipe.read_text())["privileged_source"])
    assert source.author == "teacher" and [one["role"] for one in source.examples] == ["user", "assistant"] * 3
