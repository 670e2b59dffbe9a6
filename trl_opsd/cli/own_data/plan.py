# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Recipe for a user's data and model: columns, words around the context, batch, lengths, steps and engine."""

import importlib.util
import json
import math
from collections.abc import Callable
from typing import NamedTuple

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.own_data.columns import Column
from trl_opsd.cli.own_data.reading import OwnData
from trl_opsd.cli.own_data.recipe_text import Recipe
from trl_opsd.cli.planned_run.model_files import config_of, local_file, shape_of
from trl_opsd.cli.planned_run.remedy_lines import of_change, reason
from trl_opsd.cli.planned_run.settings import Options, run_of
from trl_opsd.memory import YES, Run, Verdict, judge, remedies


# Of the wordings that were tried on sums with SmolLM2-135M, those after which the teacher showed the way most often
SHOWN = """Keep this in mind:

{privileged_context}

Answer in the way that it shows."""
BARE = "The correct answer is {privileged_context}. Show how to get it, then state it."
GROUP = 8  # completions of a prompt, with a reward
STEP, STEP_OF_GROUPS, STEP_ON_CPU = 32, 64, 16  # completions
MOST_ROWS = 8  # completions of a micro-batch
STEPS, EPOCHS = 100, 10
LONGEST, SHORTEST, SHORTEST_ON_CPU = 2048, 256, 64  # tokens of a completion
SMALL = 1e9  # parameters


class Planned(NamedTuple):
    """
    Recipe with what is known of its memory.

    Args:
        recipe ([`Recipe`]): The recipe.
        run ([`Run`], *optional*): The run on GPUs, where the formulas cover the model.
        verdict ([`Verdict`], *optional*): The verdict on it.
        note (`str`): Why there is none.
    """

    recipe: Recipe
    run: Run | None = None
    verdict: Verdict | None = None
    note: str = ""


def token_counter(model: str) -> tuple[Callable[[str], int], str]:
    """Function that counts the tokens of a text, and how: by the model's tokenizer, or four bytes to a token."""
    file = local_file(model, "tokenizer.json")
    if file is None:
        return lambda text: len(text.encode()) // 4 + 1, "guessed, at four bytes a token"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), "counted by the model's tokenizer"


def chat_template(model: str) -> str | None:
    """Text of a model's chat template, empty where it has none, `None` where that is not known here."""
    if file := local_file(model, "chat_template.jinja"):
        return file.read_text(encoding="utf-8")
    file = local_file(model, "tokenizer_config.json")
    if file is None:
        return None
    return str(json.loads(file.read_text(encoding="utf-8")).get("chat_template") or "")


def long_one(lengths: list[int]) -> int:
    """Length that one of twenty exceeds."""
    return sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1]


def batch(gpus: int, rows: int, group: int) -> tuple[int, int]:
    """
    Micro-batch and accumulation: whole groups on each GPU, whatever their number, and no more prompts than rows.

    Args:
        gpus (`int`): Processes.
        rows (`int`): Rows of the data.
        group (`int`): Completions of a prompt.

    Raises:
        UserError: If the rows do not fill the smallest step.
    """
    wanted = STEP_ON_CPU if gpus == 0 else STEP if group == 1 else STEP_OF_GROUPS
    processes = max(gpus, 1)
    of_process = max(group, wanted // processes // group * group)
    while of_process * processes // group > rows:
        of_process -= group
    if of_process == 0:
        raise UserError(f"`--data` has {rows} rows, and a step on {processes} GPUs takes one for each: lower `--gpus`.")
    most = STEP_ON_CPU if gpus == 0 else MOST_ROWS
    micro = max(size for size in range(1, most + 1) if of_process % size == 0)
    return micro, of_process // micro


def template_of(context: Column) -> tuple[str, str] | None:
    """Template for a column, with the reason for it; `None` where messages stand for themselves."""
    if context.messages:
        return None
    if context.is_bare:
        return (
            BARE,
            "The column holds bare answers, which teach little by themselves: the teacher is asked for a way.",
        )
    return SHOWN, "A teacher that shows how teaches more than one that knows the answer alone (docs/defaults.md)."


def plan(
    data: OwnData,
    prompt: Column,
    context: Column,
    model: str,
    reward: str | None,
    gpus: int,
    gpu_gb: float,
    name: str,
) -> Planned:
    """
    Recipe for data and a model.

    Args:
        data ([`OwnData`]): The data.
        prompt, context ([`Column`]): Columns of the student and of the teacher.
        model (`str`): Folder or Hub id.
        reward (`str`, *optional*): Dotted path of a reward function.
        gpus (`int`): GPUs, 0 for the CPU.
        gpu_gb (`float`): Memory of a GPU, GB.
        name (`str`): Name of the run, for its folder.
    """
    made = Recipe()
    add_model_and_data(made, data, prompt, model, name)
    add_context(made, context)
    if reward:
        scored = {"reward_funcs": [reward], "policy_weight": 1.0, "distillation_weight": 1.0}
        made.add("Answers are scored too: the GRPO loss of the scores is added to the distillation. Lower the latter's "
                 "weight if the scores stay behind.", **scored)  # fmt: skip
    group = GROUP if reward else 1
    micro, accumulation = batch(gpus, len(data.rows), group)
    completions = micro * accumulation * max(gpus, 1)
    of_groups = f", {GROUP} to each prompt, as the reward compares them" if reward else ""
    where = f"{micro} at once" + (f" on each of {gpus} GPUs" if gpus > 1 else "")
    where += f", {accumulation} times over" if accumulation > 1 else ""
    made.add(f"A step trains on {completions} completions{of_groups}: {where}.", per_device_train_batch_size=micro,
             gradient_accumulation_steps=accumulation, num_generations=group)  # fmt: skip
    tokens = add_lengths(made, prompt, context, model, gpus)
    add_steps(made, len(data.rows), completions // group)
    shape, note = None, ""
    try:
        shape = shape_of(model, config_of(model))
    except UserError as error:
        note = f"Memory was not estimated: {error}" if gpus else ""
    add_learning_rate(made, shape.parameters if shape else 0)
    add_engine(made, gpus)
    return fit(made, gpus, gpu_gb, *tokens) if gpus and shape else Planned(made, note=note)


def add_model_and_data(made: Recipe, data: OwnData, prompt: Column, model: str, name: str) -> None:
    """Add the model, the data and the prompts."""
    made.add("The model that learns, and where it goes.", model_name_or_path=model, output_dir=f"output/{name}")
    made.add(f"The data: {len(data.rows)} rows.", **data.options)
    template = chat_template(model)
    if prompt.messages:
        if template == "":
            raise UserError(
                f"`--model` is {model}, which has no chat template, and `{prompt.name}` holds chat messages: take an "
                "instruct model."
            )
        if prompt.name != "prompt":
            raise UserError(
                f"`--prompt` is {prompt.name}, which holds chat messages: the trainer reads them in a column `prompt`; "
                f"{data.converted('{' + repr('prompt') + ': row[' + repr(prompt.name) + ']}')}"
            )
    elif template == "":
        if prompt.name != "prompt":
            raise UserError(
                f"`--model` is {model}, which has no chat template: take an instruct model, or plain text in a column "
                f"`prompt`; {data.converted('{' + repr('prompt') + ': row[' + repr(prompt.name) + ']}')}"
            )
    else:
        made.add(f"The text of `{prompt.name}` becomes the user's message.", prompt_column=prompt.name)
    if "enable_thinking" in template if template is not None else "qwen3" in model.lower():
        made.add("No thinking before the answer, on either side: thoughts are long. Set it to true to train them too.",
                 chat_template_kwargs={"enable_thinking": False})  # fmt: skip


def add_context(made: Recipe, context: Column) -> None:
    """Add the column that the teacher reads, and the words around it."""
    column = {} if context.name == "privileged_context" else {"privileged_column": context.name}
    what = "messages, before the prompt's own" if context.messages else "text"
    made.add(
        f"What only the teacher reads is `{context.name}`: {what}. A row with null there has no teacher.", **column
    )
    found = template_of(context)
    if found:
        text, why = found
        made.add(f"{why} Write it for your task; `trl-opsd chat` with `--context` shows what the teacher says.",
                 privileged_template=text, privileged_place="after_user")  # fmt: skip


def add_lengths(made: Recipe, prompt: Column, context: Column, model: str, gpus: int) -> tuple[int, int]:
    """Add the length of completions; tokens of long prompts and contexts."""
    count, how = token_counter(model)
    prompts = long_one([count(text) for text in prompt.texts])
    contexts = long_one([count(text) for text in context.texts])
    least = SHORTEST if gpus else SHORTEST_ON_CPU
    length = min(LONGEST, max(least, math.ceil(1.5 * contexts / 64) * 64))
    made.add(f"One context of twenty is longer than {contexts} tokens ({how}); an answer has room for half as much "
             f"again, and for {least} at least.", max_completion_length=length)  # fmt: skip
    return prompts + 32, contexts + 64  # with the chat template, and the words around a context


def add_steps(made: Recipe, rows: int, prompts: int) -> None:
    """Add the number of steps."""
    steps = max(1, min(STEPS, EPOCHS * rows // prompts))
    passes = f"{steps * prompts / rows:.2g}"
    made.add(f"{steps} steps are {passes} passes over the rows. Look at the first ten before you wait for all.",
             max_steps=steps, logging_steps=1)  # fmt: skip


def add_learning_rate(made: Recipe, parameters: int) -> None:
    """Add the learning rate, by the size of the model, 0 where it is not known."""
    rate, why = 2.0e-5, "2e-5 was tried with a model of 135M parameters; TRL's 1e-6 is for reinforcement learning."
    if parameters >= SMALL:
        rate, why = 5.0e-6, "5e-6 is that of the OPSD paper; small models take 2e-5."
    made.add(why, learning_rate=rate, lr_scheduler_type="constant")


def add_engine(made: Recipe, gpus: int) -> None:
    """Add what belongs to GPUs or to the CPU."""
    if gpus == 0:
        made.add("For a CPU; leave these out on a GPU.", bf16=False, gradient_checkpointing=False,
                 dataloader_pin_memory=False)  # fmt: skip
        made.add("The model is saved at the end.", save_strategy="no")
        return
    made.add("bfloat16 products, and activations computed again instead of kept.", bf16=True,
             gradient_checkpointing=True)  # fmt: skip
    if importlib.util.find_spec("vllm"):
        made.add("vLLM writes the completions, many times faster, and leaves the GPU while the model trains.",
                 use_vllm=True, vllm_mode="colocate", vllm_enable_sleep_mode=True,
                 vllm_gpu_memory_utilization=0.3)  # fmt: skip
    else:
        made.add("vLLM writes in a fraction of the time: pip install 'trl-opsd[vllm]', then switch these on.",
                 "use_vllm: true", "vllm_enable_sleep_mode: true", "vllm_gpu_memory_utilization: 0.3")  # fmt: skip
    made.add("A checkpoint every 50 steps, to go on from after a crash.", save_strategy="steps", save_steps=50,
             save_total_limit=2)  # fmt: skip


def fit(made: Recipe, gpus: int, gpu_gb: float, prompt_tokens: int, context_tokens: int) -> Planned:
    """Estimate the memory on GPUs, and take the cheapest remedy if it does not fit."""
    options = Options({}, made.options)
    run, _ = run_of(options, "ddp" if gpus > 1 else "none", gpus, gpu_gb, prompt_tokens, context_tokens)
    verdict = judge(run)
    for remedy in [] if verdict.fits == YES else remedies(run)[:1]:
        run, verdict = remedy.run, remedy.verdict
        for change in remedy.changes:
            made.change(of_change(change, options), f"To fit into GPUs of {gpu_gb:g} GB: {reason(change)}.")
    return Planned(made, run, verdict)
