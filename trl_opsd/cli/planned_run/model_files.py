# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small files of a model, such as its config, without loading torch: from a folder, the Hub's cache or the Hub."""

import json
from pathlib import Path
from typing import Any

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipe_check import check_folder
from trl_opsd.memory import MODELS, Shape, known_config
from trl_opsd.options import near


SECONDS = 5  # for the Hub
MODEL = "model_name_or_path"


def local_file(model: str, name: str, revision: str = "main") -> Path | None:
    """File of a model that is on this machine: in its folder, or in the Hub's cache."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError as error:
        raise UserError(f"`{MODEL}` is {model}: neither a folder nor a name that the Hub allows.") from error
    return Path(found) if isinstance(found, str) else None


def fetched(model: str, name: str, revision: str) -> str:
    """Text of a model's file on the Hub, asked for once and for a few seconds."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    try:
        url = hf_hub_url(model, name, revision=revision)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=SECONDS, follow_redirects=True)
        answer.raise_for_status()
    except Exception as error:  # of the HTTP library, of huggingface_hub and of the system
        reason = (str(error).split("\n")[0] or type(error).__name__).rstrip(".")
        raise UserError(
            f"`{MODEL}` is {model}: its {name} is neither in a folder nor in the Hub's cache on this machine, and the "
            f"Hub did not give it ({reason}). Name a folder, or for an estimate one of {', '.join(MODELS)}"
            f"{near(model, MODELS)}."
        ) from error
    return answer.text


def config_of(model: str, revision: str = "main") -> dict[str, Any]:
    """
    Config of a model: of a folder, of a model known by name, of the Hub's cache, or of the Hub.

    Args:
        model (`str`): Folder, name or Hub id.
        revision (`str`): Branch, tag or commit on the Hub.

    Raises:
        UserError: If there is none; it names the model.
    """
    check_folder(MODEL, model)
    is_folder = Path(model).expanduser().is_dir()
    if not is_folder and (known := known_config(model)):
        return known
    file = local_file(model, "config.json", revision)
    if file is None and is_folder:
        raise UserError(f"`{MODEL}` is the folder {model}, which has no config.json: name the folder of a model.")
    text = file.read_text(encoding="utf-8") if file else fetched(model, "config.json", revision)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"`{MODEL}` is {model}, whose config.json is no JSON: {error}.") from error
    return config if isinstance(config, dict) else {}


def shape_of(model: str, config: dict[str, Any]) -> Shape:
    """
    Sizes of a model.

    Raises:
        UserError: If the formulas do not cover it.
    """
    try:
        return Shape(config)
    except ValueError as error:
        raise UserError(f"`{MODEL}` is {model}: {error}.") from error
