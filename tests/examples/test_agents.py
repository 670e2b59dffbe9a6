# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The agents' environments: strict arguments, state, rewards, and their recipes through the script."""

import json
from pathlib import Path

import pytest
import yaml
from trl import GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

import tiny
from benchmarks import agents
from trl_opsd.cli import train
from trl_opsd.cli.errors import UserError
from trl_opsd.examples.agents import calculator, shop


ROOT = Path(__file__).parents[2]


def call(name, /, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call><|im_end|>"


# The calculator


@pytest.mark.parametrize(
    ("operation", "a", "b", "result"),
    [("add", 2, 3, "5"), ("subtract", 2.5, 3, "-0.5"), ("multiply", 12, 12, "144"), ("divide", 1, 3, "0.3333333333")],
)
def test_the_calculator(operation, a, b, result):
    assert calculator.calculate(operation, a, b) == result


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("times", 2, 3), "Unknown operation 'times'"),
        ((["add"], 2, 3), r"Unknown operation \['add'\]"),
        (("add", "$2", 3), r"a is '\$2': it must be a JSON number"),
        (("add", 2, None), "b is None: it must be a JSON number"),
        (("add", True, 3), "a is True"),
        (("divide", 2, 0), "division by zero"),
    ],
)
def test_what_the_calculator_refuses(arguments, text):
    with pytest.raises((ValueError, TypeError, ZeroDivisionError), match=text):
        calculator.calculate(*arguments)


def test_the_right_result_counts_whatever_was_said():
    result = [{"role": "assistant", "content": ""}, {"role": "tool", "name": "calculate", "content": "5"}]
    said = [{"role": "assistant", "content": "It is 5."}]
    assert calculator.right_result([result, result, said], ["5", "6", "5"]) == [1.0, 0.0, 0.0]


# The shop


@pytest.fixture
def visit():
    """A shop with its items and orders, for an errand that buys two of its first item."""
    items, orders = shop.contents(7)
    one = shop.Shop()
    one.reset(shop=7, kind="buy", number=items[0][0], quantity=2, prompt=[])
    return one, items, orders


def test_an_order_is_placed_and_cancelled(visit):
    one, items, _ = visit
    number, name, price, stock = items[0]
    (found,) = json.loads(one.search_items(name[1:]))
    assert found == {"item_id": number, "name": name, "price": price, "stock": stock}
    assert one.get_reward() == 0.0
    placed = int(one.place_order(number, 2).split()[1])
    assert one.get_reward() == 1.0
    assert json.loads(one.get_order(placed)) == {"item_id": number, "quantity": 2, "status": "open"}
    assert json.loads(one.search_items(name))[0]["stock"] == stock - 2
    one.cancel_order(placed)
    assert one.get_reward() == 0.0, "the state counts, not what was done on the way"
    assert json.loads(one.search_items(name))[0]["stock"] == stock


@pytest.mark.parametrize(
    ("tool", "arguments", "text"),
    [
        ("search_items", (5,), "name is 5: it must be a JSON string"),
        ("get_order", ("60",), "order_id is '60': it must be a JSON integer"),
        ("get_order", (1,), "There is no order_id 1"),
        ("place_order", (1, 1), "There is no item_id 1"),
        ("place_order", (None, 1), "item_id is None: it must be a JSON integer"),
        ("place_order", ("item", 1.0), "quantity is 1.0: it must be a JSON integer"),
        ("place_order", ("item", True), "quantity is True: it must be"),
        ("place_order", ("item", 99), "quantity is 99: there are"),
        ("place_order", ("item", 0), "quantity is 0"),
        ("cancel_order", (99,), "There is no order_id 99"),
    ],
)
def test_what_the_shop_refuses_leaves_it_as_it_was(visit, tool, arguments, text):
    one, items, _ = visit
    arguments = [items[0][0] if value == "item" else value for value in arguments]
    before = list(one.database.iterdump())
    with pytest.raises((ValueError, TypeError), match=text):
        getattr(one, tool)(*arguments)
    assert list(one.database.iterdump()) == before


def test_a_cancelled_order_stays_cancelled(visit):
    one, _, orders = visit
    one.reset(shop=7, kind="cancel", number=orders[0][0], quantity=0)
    one.cancel_order(orders[0][0])
    assert one.get_reward() == 1.0
    with pytest.raises(ValueError, match="is cancelled"):
        one.cancel_order(orders[0][0])


def test_a_reset_begins_anew(visit):
    one, items, _ = visit
    one.place_order(items[0][0], 2)
    one.reset(shop=7, kind="buy", number=items[0][0], quantity=2)
    assert one.get_reward() == 0.0 and json.loads(one.search_items(items[0][1]))[0]["stock"] == items[0][3]


@pytest.mark.parametrize("module", [calculator, shop])
def test_tasks_are_seeded_disjoint_and_solvable(module):
    one = module.task(0)
    assert one == module.task(0) != module.task(1)
    rows = {split: {json.dumps(row, sort_keys=True) for row in one[split]} for split in one}
    assert not rows["train"] & rows["test"]
    assert (len(one["train"]), len(one["test"])) == (512, 64)
    for row in one["test"]:
        if module is shop:
            visit = shop.Shop()
            visit.reset(**row)
            assert visit.get_reward() == 0.0
            if row["kind"] == "buy":
                visit.place_order(row["number"], row["quantity"])
            else:
                visit.cancel_order(row["number"])
            assert visit.get_reward() == 1.0


# Through the script


def made(tmp_path, module, tokenizer):
    """The tiny model and a small data set on disk."""
    tiny.model(tokenizer, max_position_embeddings=8192).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split, rows in module.task(0).items():
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))


def options(tmp_path, recipe, **changes):
    settings = yaml.safe_load((ROOT / "recipes" / recipe).read_text())
    settings |= {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "max_steps": 1, "max_completion_length": 400,
        "per_device_eval_batch_size": 4, "num_generations_eval": 1, "learning_rate": 1e-2,
    } | changes  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(tmp_path / "recipe.yaml")]


CASES = {
    "smollm2_calculator_hint.yaml": (calculator, lambda i: call("calculate", operation="add", a=i, b="$2")),
    "smollm2_shop_kolibri.yaml": (shop, lambda i: call("place_order", item_id=f"no {i}", quantity=1)),
}


def agent(tmp_path, monkeypatch, recipe, say):
    """The trainer of a recipe whose student begins with `say(number of the rollout)` and ends after a tool's result."""

    def single_turn(self, prompt_ids, *_, **__):
        said = [self._tokenizer.decode(ids) for ids in prompt_ids]
        answered = ["<tool_response>" in text for text in said]
        texts = ["Sorry.<|im_end|>" if done else say(i) for i, done in enumerate(answered)]
        return self._tokenizer(texts)["input_ids"], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", single_turn)
    script_args, args, model_args, dataset_args = train.parse(options(tmp_path, recipe))
    dataset = train.load_data(script_args, dataset_args)
    return train.build_trainer(script_args, args, model_args, dataset), dataset


@pytest.mark.parametrize("recipe", CASES)
def test_recipes_hint_at_real_errors_and_measure_counts_them(tmp_path, tokenizer, recipe, monkeypatch):
    module, wrong = CASES[recipe]
    made(tmp_path, module, tokenizer)
    trainer, dataset = agent(tmp_path, monkeypatch, recipe, wrong)
    assert trainer._tokenizer.chat_template == qwen3_chat_template
    before = agents.evaluated(trainer, dataset["test"])
    assert before == {"rollouts": 8, "calls": 8, "errors": 8, "error_rate": 1.0, "no_call": 0.0, "success": 0.0}
    trainer.train()
    log = trainer.state.log_history[-2]
    share = 1.0 if module is calculator else 0.25  # one of each group of four
    assert log["self_distillation/view_share"] == share
    assert log["self_distillation/policy_off_share"] == (0.0 if module is calculator else 0.25)
    contexts = {view.context for views in trainer.collected.views for view in views}
    if module is shop:
        assert contexts == {"Arguments use the exact JSON types that the tool declares."}
        assert all(isinstance(one.environment, shop.Shop) for one in trainer.collected.rollouts)


def test_what_the_shop_says_is_the_context(tmp_path, tokenizer, monkeypatch):
    """The recipe of the environment's own words: errors, and the final state where no call failed."""
    made(tmp_path, shop, tokenizer)

    def say(i):
        return call("search_items", name="e") if i % 2 else call("get_order", order_id=str(i))

    trainer, _ = agent(tmp_path, monkeypatch, "smollm2_shop_state.yaml", say)
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/view_share"] == 1.0
    for rollout, (view,) in zip(trainer.collected.rollouts, trainer.collected.views, strict=True):
        if rollout.turns[0].errors:
            assert view.context == rollout.turns[0].results[0]["content"] and "order_id" in view.context
        else:
            assert view.context == str(rollout.environment)
            assert "in stock.\nOrder 60: " in view.context and view.context.endswith(", open.")
    assert [bool(one.turns[0].errors) for one in trainer.collected.rollouts] == [True, False] * 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"chat_template": "qwen33"}, "`chat_template` is qwen33: neither a file nor the name"),
        ({"tools": ["calculate"]}, "`tools` names calculate: it takes dotted paths"),
        (
            {"tools": ["trl_opsd.examples.agents.nothing.calculate"]},
            "`tools`: .* can't be imported: there is no module trl_opsd.examples.agents.nothing",
        ),
        (
            {"tools": ["trl_opsd.examples.agents.calculator.calc"]},
            "`tools`: .* can't be imported: .*no attribute 'calc'",
        ),
        (
            {"environment_factory": "trl_opsd.examples.agents.shop.Store"},
            "`environment_factory`: .* can't be imported: .*no attribute 'Store'",
        ),
    ],
)
def test_wrong_names_of_tools(tmp_path, tokenizer, change, text):
    made(tmp_path, calculator, tokenizer)
    with pytest.raises(UserError, match=text):
        parsed = train.parse(options(tmp_path, "smollm2_calculator_hint.yaml", **change))
        train.build_trainer(*parsed[:3], train.load_data(parsed[0], parsed[3]))


def test_a_chat_template_from_a_file(tmp_path, tokenizer):
    made(tmp_path, calculator, tokenizer)
    (tmp_path / "template.jinja").write_text(qwen3_chat_template)
    changes = {"chat_template": str(tmp_path / "template.jinja")}
    script_args, _, model_args, _ = train.parse(options(tmp_path, "smollm2_calculator_hint.yaml", **changes))
    assert train.load_tokenizer(script_args, model_args).chat_template == qwen3_chat_template
