# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A user's data: rows of a file, a folder or the Hub, and which columns are the prompt and the privileged context."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opsd.cli.errors import UserError, near


READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "task")
CONTEXTS = (
    "privileged_context", "solution", "reference_solution", "answer", "reference_answer", "reference", "rationale",
    "explanation", "reasoning", "feedback", "critique", "hint", "hints", "demonstration", "ground_truth", "target",
    "completion", "response", "output",
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation")
LOOKED_AT = 1000  # rows


@dataclass
class OwnData:
    """
    Rows of a user.

    Args:
        name (`str`): What the user gave.
        rows (`datasets.Dataset`): The rows to train on.
        options (`dict[str, Any]`): Options of a recipe that load them.
        loading (`str`): Python expression that loads them.
    """

    name: str
    rows: Any
    options: dict[str, Any]
    loading: str

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    def values(self, column: str) -> list[Any]:
        """Values of a column in the first rows."""
        return self.rows[: min(LOOKED_AT, len(self.rows))][column]

    def converted(self, expression: str) -> str:
        """Advice with a command that writes the data anew, with columns that an expression makes of a `row`."""
        file = f"{Path(self.name).stem}_converted.jsonl"
        code = f"from datasets import load_dataset; {self.loading}.map(lambda row: {expression}).to_json('{file}')"
        return f'this command makes {file} of it: python -c "{code}"'


@dataclass
class Column:
    """
    A column with its kind.

    Args:
        name (`str`): Its name.
        values (`list[Any]`): Its values in the first rows, without `None`.
        messages (`bool`): Whether it holds chat messages, and otherwise text.
    """

    name: str
    values: list[Any]
    messages: bool

    @property
    def texts(self) -> list[str]:
        """Text of each value."""
        if not self.messages:
            return self.values
        return ["\n".join(str(message.get("content") or "") for message in value) for value in self.values]

    @property
    def is_bare(self) -> bool:
        """Whether its texts are bare answers that show no way to them."""
        return not self.messages and statistics.median(len(text.split()) for text in self.texts) <= 3


def check_place(data: str) -> None:
    """
    Refuse a file that is not there or that nobody reads, before anything heavy is imported.

    Raises:
        UserError: Naming the file.
    """
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix not in READERS:
            raise UserError(
                f"`--data` is {data}: it must be a {', '.join(READERS)} file, a folder of them or a Hub id."
            )
    elif not path.is_dir() and (
        path.suffix in READERS or data.startswith((".", "/", "~")) or data.count("/") > 1 or not data.strip()
    ):
        raise UserError(f"`--data` is {data!r}, and there is no such file or folder.")


def read(data: str, config: str | None = None) -> OwnData:
    """
    Read a user's data with the loader that the training uses.

    Args:
        data (`str`): File, folder or Hub id.
        config (`str`, *optional*): Config of a data set on the Hub.

    Raises:
        UserError: If it can't be read or has no rows.
    """
    path = Path(data).expanduser()
    if not path.exists():
        ask_hub(data)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if path.is_file():
        reader = READERS[path.suffix]
        options: dict[str, Any] = {"datasets": [{"path": reader, "data_files": str(path)}]}
        loading, how = f"load_dataset('{reader}', data_files='{path}'", {"path": reader, "data_files": str(path)}
    else:
        options = {
            "dataset_name": str(path) if path.is_dir() else data,
            **({"dataset_config": config} if config else {}),
        }
        loading, how = f"load_dataset('{data}'" + (f", '{config}'" if config else ""), {"path": data, "name": config}
    try:
        found = datasets.load_dataset(**how)
    except StopIteration:
        raise UserError(f"`--data` is {data}, which has no rows.") from None
    except Exception as error:  # of the readers of each format, which share no base
        raise UserError(f"`--data` is {data}: {unread(error, data)}") from error
    split = "train" if "train" in found else next(iter(found))
    if split != "train":
        options["dataset_train_split"] = split
    if not len(found[split]):
        raise UserError(f"`--data` is {data}, which has no rows.")
    return OwnData(data, found[split], options, f"{loading}, split='{split}')")


def unread(error: Exception, data: str) -> str:
    """Sentence on data that can't be read."""
    if "save_to_disk" in str(error):
        code = f"from datasets import load_from_disk; load_from_disk('{data}').to_json('{Path(data).name}.jsonl')"
        return f'it was written by `save_to_disk`, so make it a file: python -c "{code}"'
    if "onfig name is missing" in str(error):
        return f"{' '.join(str(error).split())} Name it by `--dataset_config`."
    cause = error.__cause__ or error
    return f"it can't be read: {(str(cause).strip() or type(cause).__name__).splitlines()[0]}"


def ask_hub(data: str) -> None:
    """
    Ask the Hub whether it has a data set, once and for a few seconds. Without a connection its cache is enough.

    Raises:
        UserError: If the Hub says that there is none, or that it is closed.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers, get_session

    url = f"{huggingface_hub.constants.ENDPOINT}/api/datasets/{data}"
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=5, follow_redirects=True)
    except Exception:  # of the HTTP library and of the system
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        return
    if answer.status_code in (401, 403, 404):
        advice = "log in by `hf auth login` if it is private" if answer.status_code != 403 else "ask for access there"
        raise UserError(f"`--data` is {data}: neither a file or folder here nor a data set of the Hub; {advice}.")


def prompt_of(data: OwnData, given: str | None) -> Column:
    """
    The column with the prompts.

    Args:
        data ([`OwnData`]): The data.
        given (`str`, *optional*): Its name, if the user gives it.

    Raises:
        UserError: If none fits or several do, or one holds no prompts.
    """
    fitting = [name for name in PROMPTS if name in data.columns]
    chats = [name for name in CHATS if name in data.columns]
    if given is None and not fitting and chats:
        first = next((value for value in data.values(chats[0]) if value), None)
        raise UserError(
            f"`--data` has whole conversations (`{chats[0]}`) and no prompts. Split off the last message, for the "
            f"teacher to read as `solution`; {data.converted(split_off(chats[0], first))}"
        )
    name = chosen(data, "--prompt", given, fitting, "the prompt", PROMPTS)
    values = data.values(name)
    for number, value in enumerate(values):
        check_prompt_value(data, name, number, value)
    if len({isinstance(value, str) for value in values}) > 1:
        raise UserError(f"`--data`: the column `{name}` mixes text and chat messages: make it one of them.")
    return Column(name, values, not isinstance(values[0], str))


def context_of(data: OwnData, given: str | None, prompt: str) -> Column:
    """
    The column that the teacher reads.

    Args:
        data ([`OwnData`]): The data.
        given (`str`, *optional*): Its name, if the user gives it.
        prompt (`str`): Name of the column with the prompts.

    Raises:
        UserError: If none fits or several do, or one holds what no teacher can read.
    """
    fitting = [name for name in CONTEXTS if name in data.columns and name != prompt]
    name = chosen(data, "--context", given, fitting, "what only the teacher reads", CONTEXTS)
    if name == prompt:
        raise UserError(f"`--context` is {name}, which is the prompt: the teacher must read more than the student.")
    values = data.values(name)
    for number, value in enumerate(values):
        check_context_value(data, name, number, value)
    values = [value for value in values if value is not None]
    if not values:
        raise UserError(f"`--data`: the column `{name}` holds nothing: name another by `--context`.")
    return Column(name, values, not isinstance(values[0], str))


def chosen(
    data: OwnData, option: str, given: str | None, fitting: Sequence[str], what: str, known: Sequence[str]
) -> str:
    """One column: that of the user, the first of the known names, or the only one that fits."""
    columns = ", ".join(data.columns)
    if given is not None:
        if given not in data.columns:
            advice = near(given, data.columns)
            raise UserError(f"`{option}` is {given}, and the data has no such column{advice}: it has {columns}.")
        return given
    if fitting and (fitting[0] == known[0] or len(fitting) == 1):
        return fitting[0]
    if not fitting:
        raise UserError(f"no column has a usual name of {what}: name one of {columns} by `{option} COLUMN`.")
    raise UserError(f"several columns may be {what}: {', '.join(fitting)}. Name one by `{option} COLUMN`.")


def split_off(column: str, value: Any) -> str:
    """Python expression that makes prompt and solution of a `row` with a whole conversation."""
    keys = set(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else set()
    if {"from", "value"} <= keys:  # another format of conversations
        roles = "{'human': 'user', 'gpt': 'assistant'}"
        renamed = f"{{'role': {roles}.get(m['from'], m['from']), 'content': m['value']}}"
        return f"{{'prompt': [{renamed} for m in row['{column}'][:-1]], 'solution': row['{column}'][-1]['value']}}"
    return f"{{'prompt': row['{column}'][:-1], 'solution': row['{column}'][-1]['content']}}"


def is_chat(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value)
    )


def check_prompt_value(data: OwnData, name: str, number: int, value: Any) -> None:
    """Refuse a value that is no prompt."""
    where = f"`--data`, row {number}: the column `{name}`"
    if isinstance(value, str) and value.strip():
        return
    if not is_chat(value):
        raise UserError(
            f"{where} holds {worded(value)}. A prompt is text, or a list of chat messages with the keys `role` and "
            "`content`, and not empty."
        )
    if value[-1]["role"] == "assistant":
        raise UserError(
            f"{where} ends with the assistant's message, and the student would go on after it. Split it off; "
            f"{data.converted(split_off(name, value))}"
        )


def check_context_value(data: OwnData, name: str, number: int, value: Any) -> None:
    """Refuse a value that no teacher can read; say how to make text of it."""
    where = f"`--data`, row {number}: the column `{name}`"
    if value is None or (isinstance(value, str) and value.strip()) or is_chat(value):
        return
    if isinstance(value, str):
        expression = f"{{'{name}': row['{name}'].strip() or None}}"
        raise UserError(f"{where} is empty; a row without a context has null there; {data.converted(expression)}")
    makes = f"'\\n\\n'.join(row['{name}'])" if is_texts(value) else f"str(row['{name}'])"
    expression = f"{{'{name}': {makes}}}"
    raise UserError(
        f"{where} holds {worded(value)}, and a teacher reads text or chat messages. Make it text; "
        f"{data.converted(expression)}"
    )


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def worded(value: Any) -> str:
    """A value in an error."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
