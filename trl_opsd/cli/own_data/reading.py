# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A user's data: rows of a file, a folder or the Hub, read as the training reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opsd.cli.errors import UserError


READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
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
        return self.rows.select_columns(column)[:LOOKED_AT][column]

    def converted(self, expression: str) -> str:
        """Advice with a command that writes the data anew, with columns that an expression makes of a `row`."""
        file = f"{Path(self.name).stem}_converted.jsonl"
        code = f"from datasets import load_dataset; {self.loading}.map(lambda row: {expression}).to_json('{file}')"
        return f'this command makes {file} of it: python -c "{code}"'


def check_place(data: str) -> None:
    """
    Refuse a file that is not there or that nobody reads, before anything heavy is imported.

    Raises:
        UserError: Naming the file.
    """
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix not in READERS:
            raise UserError(f"`--data` is {data}: it must be one of {', '.join(READERS)}, a folder or a Hub id.")
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
        options = {"dataset_name": str(path) if path.is_dir() else data}
        options |= {"dataset_config": config} if config else {}
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
