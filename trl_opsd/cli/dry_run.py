# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Dry run of a recipe: data, columns, template, rewards and batch arithmetic are checked without loading a model."""

import math
from collections.abc import Sequence
from typing import Any

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_opsd.cli.arguments import Parsed, parse
from trl_opsd.cli.errors import UserError, told
from trl_opsd.cli.quiet import keep_quiet
from trl_opsd.cli.tables import print_table
from trl_opsd.cli.train import MISTAKES, load_data, load_rewards, load_tokenizer
from trl_opsd.config import OPSDConfig
from trl_opsd.privileged.asking import call
from trl_opsd.privileged.checks import source_name
from trl_opsd.privileged.sources.column import DatasetColumn
from trl_opsd.privileged.sources.fixed import Fixed
from trl_opsd.prompts.teacher_prompt import marked, whole_prompt
from trl_opsd.rollouts import Rollout, Turn
from trl_opsd.teacher.server import Server
from trl_opsd.teacher.server_check import check_servers
from trl_opsd.teacher.server_client import ServerClient, ServerOptions
from trl_opsd.trainer.setup_checks import check_datasets, check_steps, resolve_policy_weight
from trl_opsd.trainer.view_collector import source_of


# Sources whose contexts depend on the row alone
OF_ROWS = (DatasetColumn, Fixed)


def run(args: Sequence[str], launch: Sequence[str], processes: int) -> None:
    """
    Print what a training would be: its options, batches, launch line and a teacher's prompt.

    Args:
        args (`list[str]`): Command line, with the file of the recipe.
        launch (`list[str]`): Options of `accelerate launch`.
        processes (`int`): Processes that it would start.
    """
    keep_quiet()
    with told(expected=MISTAKES):
        parsed = parse(args)
        script_args, training_args, model_args, dataset_args = parsed
        dataset = load_data(script_args, dataset_args)
        split = script_args.dataset_train_split
        if split not in dataset:
            raise UserError(f"`dataset_train_split` is {split}, and the data has {', '.join(dataset)}.")
        rows = dataset[split]
        has_reward = bool(load_rewards(script_args))
        grouped = has_reward or script_args.environment_factory is not None
        if not grouped:
            resolve_policy_weight(training_args, has_reward)
        training_args.resolve_num_generations(grouped)
        source = source_of(training_args, None)
        check_datasets(source, rows, None)
        check_steps(training_args, rows)
        tokenizer = load_tokenizer(script_args, model_args) or AutoTokenizer.from_pretrained(
            model_args.model_name_or_path, revision=model_args.model_revision
        )
        print_options(parsed, args)
        print_batches(training_args, rows, processes)
        print_launch(launch, args)
        print_servers(training_args, tokenizer)
        print_prompts(source, training_args, rows[0] if hasattr(rows, "__getitem__") else next(iter(rows)), tokenizer)
    print("\nThe recipe is sound. Nothing was loaded or trained.")


def lines_of(path: str) -> dict[str, int]:
    """Line of each option in a recipe."""
    with open(path, encoding="utf-8") as file:
        node = yaml.compose(file)
    return {key.value: key.start_mark.line + 1 for key, _ in node.value}


def print_options(parsed: Parsed, args: Sequence[str]) -> None:
    """Print each option of the trainer that is no default, with its origin. Contexts are not shown."""
    training_args = parsed[1]
    recipe = args[args.index("--config") + 1] if "--config" in args else None
    lines = lines_of(recipe) if recipe else {}
    if recipe:
        print(f"Recipe: {recipe}\n")
    rows = []
    for name, value in training_args.to_dict().items():
        origin = training_args.origins.get(name)
        if origin is not None:
            of_recipe = origin == f"recipe {recipe}" and name in lines
            rows.append((name, short(value), f"recipe, line {lines[name]}" if of_recipe else origin))
    print_table(("option", "value", "from"), rows)


def short(value: Any) -> str:
    """A value on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def print_batches(args: OPSDConfig, rows: Any, processes: int) -> None:
    """Print how many completions a step trains on, and how many steps there are."""
    step = args.per_device_train_batch_size * processes * args.gradient_accumulation_steps
    generation = args.per_device_train_batch_size * processes * args.steps_per_generation
    prompts = generation // args.num_generations
    print(
        f"\nA step trains on {step} completions: {args.per_device_train_batch_size} in each of {processes} process(es)"
        f" x {args.gradient_accumulation_steps} accumulated.\nA generation batch has {generation}: {prompts} prompts x "
        f"{args.num_generations}, and lasts for {args.steps_per_generation * args.num_iterations} micro-batch(es)."
    )
    if not hasattr(rows, "__len__"):
        return
    batches = len(rows) // prompts
    an_epoch = batches * args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)
    print(f"{len(rows)} rows: {an_epoch} steps an epoch; {steps} steps in all, {steps / max(an_epoch, 1):.2f} epochs.")


def print_launch(launch: Sequence[str], args: Sequence[str]) -> None:
    """Print the command that starts the same training by hand."""
    start = ["accelerate launch", *launch, "-m"] if launch else ["python -m"]
    print(f"\nBy hand: {' '.join([*start, 'trl_opsd.cli.train', *args])}")


def print_servers(args: OPSDConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ask a teacher's servers what they serve, check them, and print what was found."""
    if args.teacher_model_kind != Server.name:
        return
    options = ServerOptions.of(args.teacher_server_options)
    client = ServerClient(args.teacher_model_server_url, options)
    topk = args.distillation_topk or 0
    facts = check_servers(client, tokenizer, topk, len(tokenizer), args.teacher_self_test)
    print(
        f"\nThe teacher is {facts.model} on {', '.join(client.urls)}, which reads {facts.max_length} tokens. Answers "
        f"to the same tokens differ by at most {facts.spread:.2g} nats (`tolerance`: {options.tolerance:g})."
    )


def print_prompts(source: Any, args: OPSDConfig, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Print both prompts of the first row, with the context between brackets."""
    prompt = row["prompt"]
    print(f"\nThe student reads:\n{rendered(prompt, args.student_chat_template_kwargs, args, tokenizer)}")
    if not isinstance(source, OF_ROWS):
        print(f"\nThe teacher reads what {source_name(source)} makes of rollouts: `trl-opsd preflight` shows it.")
        return
    completion = "" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}]
    unwritten = Rollout(
        row, prompt, completion, prompt_ids=[], completion_ids=[], turns=[Turn(0, 0, {"content": ""})], rewards={},
        total=math.nan, success=False, extra={}, group=0, index=0, step=0, truncated=False, training=True,
    )  # fmt: skip
    (views,) = call(source, [[unwritten]])
    if not views:
        print("\nThe first row has no context, so its rollouts have no teacher.")
    for view in views:
        read = whole_prompt(view, prompt)
        if read is None:
            print(f"\nThe view {view.name!r} stands between the student's tokens: `trl-opsd preflight` shows it.")
            continue
        text = rendered(read, args.teacher_chat_template_kwargs, args, tokenizer)
        print(f"\nThe teacher reads, by the view {view.name!r}:\n{marked(text, view)}")


def rendered(prompt: Any, kwargs: dict | None, args: OPSDConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Prompt as the chat template renders it."""
    if isinstance(prompt, str):
        return prompt
    kwargs = {**(args.chat_template_kwargs or {}), **(kwargs or {})}
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **kwargs)
