# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Check that models and data are there before anything heavy is imported: a folder, in the cache, or on the Hub.

Otherwise transformers and datasets find out, after importing torch and five tries to connect.
"""

import functools
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl_opsd.cli.errors import UserError
from trl_opsd.options import near


MODELS = ("model_name_or_path", "teacher_model_name_or_path", "reward_model_name_or_path")
SECONDS = 5.0  # that the Hub may take for its answer


def check_hub(given: Mapping[str, Any]) -> None:
    """
    Check the models and the data set that a recipe names, in the main process alone.

    Args:
        given (`Mapping[str, Any]`): Values of the options that are set.

    Raises:
        UserError: For the first that is nowhere; it names the id.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        return
    for option in MODELS:
        if isinstance(name := given.get(option), str):
            revision = given.get("model_revision") if option == MODELS[0] else None
            check_model(option, name, None if revision is None else str(revision))
    if isinstance(name := given.get("dataset_name"), str):
        check_data("dataset_name", name)


@functools.cache
def check_model(option: str, name: str, revision: str | None = None) -> None:
    """
    Check that a model, or an adapter, is a folder, in the cache or on the Hub.

    Raises:
        UserError: If it is nowhere, or the Hub can't be asked.
    """
    if Path(name).expanduser().exists():
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for file in ("config.json", "adapter_config.json"):
            if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
                return
    except HFValidationError:
        raise UserError(f"`{option}` is {name!r}: neither a folder{beside(name)} nor an id of the Hub.") from None
    ask(option, name, "model", functools.partial(HfApi().model_info, name, revision=revision, timeout=SECONDS))


@functools.cache
def check_data(option: str, name: str) -> None:
    """
    Check that a data set is a folder, in the cache or on the Hub.

    Raises:
        UserError: If it is nowhere, or the Hub can't be asked.
    """
    # Buckets, and formats of files such as `json`, are not looked up on the Hub by this name
    formats = Path(find_spec("datasets").origin).parent / "packaged_modules"
    other = name.startswith(("hf://", "buckets/")) or (formats / name).is_dir()
    if other or Path(name).expanduser().exists() or is_cached(name):
        return
    from huggingface_hub import HfApi

    ask(option, name, "data set", functools.partial(HfApi().dataset_info, name, timeout=SECONDS))


def is_cached(name: str) -> bool:
    """Whether datasets has prepared a data set of the Hub before; its cache has folders `owner___name`."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets").expanduser()
    known = [path.name for path in cache.glob("*")] if cache.is_dir() else []
    return plain(name.replace("/", "___")) in map(plain, known)


def plain(name: str) -> str:
    """Name of a data set without what its cache spells otherwise."""
    return name.replace("_", "").lower()


def ask(option: str, name: str, kind: str, request: functools.partial) -> None:
    """
    Ask the Hub for a repository.

    Args:
        option, name, kind (`str`): Option, its value, and what that is, for errors.
        request (`functools.partial`): Asks for it.

    Raises:
        UserError: If it is not there, or there is no answer.
    """
    from huggingface_hub import errors

    try:
        request()
    except errors.HFValidationError:
        raise UserError(f"`{option}` is {name!r}: neither a folder{beside(name)} nor an id of the Hub.") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"`model_revision`: the model {name} of the Hub has no such revision.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"`{option}` is {name}: neither a folder{beside(name)} nor a {kind} of the Hub that you can read. For a "
            "private one, log in with `hf auth login`."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"`{option}` is {name}: neither a folder{beside(name)} nor a {kind} in the cache, and HF_HUB_OFFLINE keeps "
            "from asking the Hub."
        ) from None
    except Exception as error:  # of the network, from a client that differs between versions of huggingface_hub
        raise UserError(
            f"`{option}` is {name}: neither a folder{beside(name)} nor a {kind} in the cache, and the Hub could not be "
            f"reached ({type(error).__name__}: {' '.join(str(error).split())[:100]})."
        ) from error


def beside(name: str) -> str:
    """Advice on a misspelt folder: one beside it with a similar name, or nothing."""
    parent = Path(name).expanduser().parent
    found = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    return near(name, [str(Path(name).parent / one) for one in found])
