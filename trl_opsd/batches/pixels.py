# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Pixel tensors of the images in student and teacher prompts, row by row.

Pixel tensors are laid out by the family of the model: patches of all images, tiles, one entry for each image or for
each row. Here they are kept row by row, so that rows can be dealt anew, left out and read by several views, and are
joined when a model is called.

Legend: R rows that are read in one forward, T their tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import pad
from transformers import ProcessorMixin
from trl.trainer.utils import split_pixel_values_by_grid

from trl_opsd.engines import Backend
from trl_opsd.rollouts.message_images import image_content
from trl_opsd.rollouts.rollout import Messages


Pixels = dict[str, torch.Tensor]

PIXELS = (
    "pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids",
)  # fmt: skip
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
# Model inputs beside ids and mask that TRL's forward takes from a batch
MODALITIES = (*PIXELS, "num_images", "num_tiles", *TOKEN_TYPES)


def rows_of_pixels(batch: dict[str, Any]) -> list[Pixels]:
    """Pixel tensors of the student by row, views of those of the batch; empty for a row without images."""
    count = len(batch["prompt_ids"])
    numbers = batch.get("num_images")
    if numbers is None or batch.get("pixel_values") is None:
        return [{} for _ in range(count)]
    split = split_pixel_values_by_grid(batch)
    found = {name: split[name] for name in PIXELS if split.get(name) is not None}
    return [
        {name: value[row] if isinstance(value, list) else value[row : row + 1] for name, value in found.items()}
        if numbers[row]
        else {}
        for row in range(count)
    ]


def check_ranks(sees: list[bool], accelerator: Accelerator) -> None:
    """
    Refuse forwards in which only some processes see, where an engine gathers the vision tower's weights together: the
    others would wait for ever. A collective, which raises everywhere or nowhere.

    Args:
        sees (`list[bool]`): Whether there is an image in each forward of this process.
        accelerator (`Accelerator`): Knows the engine.
    """
    if not Backend(accelerator).gathers_whole_modules:
        return
    counts = accelerator.reduce(torch.tensor(sees, device=accelerator.device).long(), reduction="sum").tolist()
    if any(0 < count < accelerator.num_processes for count in counts):
        raise ValueError(
            "Some processes have images in a micro-batch and others none, for the student or for a view. ZeRO-3 and "
            "FSDP gather the vision tower only where all use it. Give every row an image, and the teacher's views an "
            "image in every row or in none; or use DDP or ZeRO-2."
        )


def without_empty_pixels(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Model inputs without the pixel tensors of no image, which vision towers can't read."""
    pixels = kwargs.get("pixel_values")
    if pixels is None or len(pixels):
        return kwargs
    return {name: value for name, value in kwargs.items() if name not in PIXELS}


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors along their first dimension, the others padded with 0: some families pad pictures to one size."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def missing(own: torch.Size) -> list[int]:
        """Argument of `pad`: from the last dimension to the second, before and after."""
        return [n for size, have in zip(shape[::-1], own[:0:-1], strict=True) for n in (0, size - have)]

    return torch.cat([pad(tensor, missing(tensor.shape)) for tensor in tensors])


@dataclass
class ImageTensors:
    """
    Pixel tensors of a prompt's images, which are moved to the model's device when they are first asked for.

    Args:
        images (`list`): Images of the prompt.
        tensors (`Pixels`): Tensors as the processor made them, empty without images.
        prepare (`Callable`): Moves tensors to the model's device, as the trainer does with a batch.
    """

    images: list[Any]
    tensors: Pixels
    prepare: Callable[[Pixels], Pixels]

    @cached_property
    def pixels(self) -> Pixels:
        return self.prepare(self.tensors)


@dataclass
class ImageCache:
    """
    Prompts with images that were encoded for one batch: rows and views with equal images share their tensors.

    Args:
        ids (`dict`): Token ids by text and images.
        tensors (`dict[tuple[str, ...], ImageTensors]`): Pixel tensors by images.
    """

    ids: dict[tuple[str, tuple[str, ...]], list[int]] = field(default_factory=dict)
    tensors: dict[tuple[str, ...], ImageTensors] = field(default_factory=dict)


@dataclass
class ImageInputs:
    """
    Encoder of images into the model inputs of a model family.

    Args:
        processor (`ProcessorMixin`): Processing class of the trainer.
        prepare (`Callable`): Moves tensors to the model's device, as the trainer does with a batch.

    Raises:
        ValueError: If the processor can't read a chat message with an image, or its model needs more of an image than
            TRL and this package pass on.
    """

    processor: ProcessorMixin
    prepare: Callable[[Pixels], Pixels]
    _one_a_row: bool = field(default=False, init=False)
    _type_names: list[str] = field(default_factory=list, init=False)
    _types: dict[int, int] = field(default_factory=dict, init=False)  # of tokens that are not text

    def probe(self, encode: Callable[[Messages], dict[str, Any]]) -> None:
        """
        Learn from two blank images which model inputs the family has.

        Args:
            encode (`Callable`): From a prompt to the processor's tensors.
        """
        from PIL import Image  # there where an image processor is

        name, blank = type(self.processor).__name__, Image.new("RGB", (64, 64))
        content = [{"type": "image", "image": blank}] * 2 + [{"type": "text", "text": "What are these?"}]
        way = "For text-only training of such a model, pass its tokenizer as `processing_class`; otherwise set "
        way += "`distillation_weight=0.0`."
        try:
            found = encode([{"role": "user", "content": content}])
        except Exception as error:  # processors and templates raise what they like
            raise ValueError(
                f"The processor {name} can't encode a chat message with an image: {error} The distillation term reads "
                f"images of chat messages only. {way}"
            ) from error
        unknown = sorted(set(found) - {"input_ids", "attention_mask", *PIXELS, *TOKEN_TYPES})
        if unknown or "pixel_values" not in found:
            raise ValueError(
                f"The processor {name} gives {unknown or sorted(found)} for an image, which the trainer can't tell "
                f"apart by row: it handles {list(PIXELS)}. {way}"
            )
        # Idefics and its kin pad to the most images of a row: TRL then can't always tell which entry is whose
        self._one_a_row = len(found["pixel_values"]) == 1 and "image_grid_thw" not in found
        ids = found["input_ids"]
        self._type_names = [type_name for type_name in TOKEN_TYPES if type_name in found]
        for type_name in self._type_names:
            own = found[type_name]
            self._types |= dict(zip(ids[own != 0].tolist(), own[own != 0].tolist(), strict=True))
            if not torch.equal(self._token_types(ids), own.long()):
                raise ValueError(f"The processor {name} gives one token several `{type_name}`. {way}")

    def check_rows(self, counts: list[int]) -> None:
        """
        Check that TRL can tell the images of rows apart.

        Args:
            counts (`list[int]`): Images in the student's prompt of each row of the local generation batch.
        """
        if self._one_a_row and len(set(counts)) > 1:
            raise ValueError(
                f"The rows of a batch have {sorted(set(counts))} images, and {type(self.processor).__name__} pads them "
                "to one number, after which TRL can't tell which are whose. Give every row of the dataset the same "
                "number of images."
            )

    def encode(
        self, text: str, images: list[Any], process: Callable[[], dict[str, Any]], cache: ImageCache
    ) -> tuple[list[int], ImageTensors]:
        """
        Token ids of a prompt, in which each image has as many tokens as it needs, and its pixel tensors.

        Args:
            text (`str`): Prompt as the chat template renders it.
            images (`list`): Images of the prompt.
            process (`Callable`): Runs the processor on both.
            cache ([`ImageCache`]): Results for the batch. Equal prompts are processed once.
        """
        contents = tuple(image_content(image) for image in images)
        if (text, contents) not in cache.ids:
            found = process()
            cache.ids[text, contents] = found["input_ids"][0].tolist()
            tensors = {name: found[name] for name in PIXELS if name in found}
            cache.tensors.setdefault(contents, ImageTensors(images, tensors, self.prepare))
        return list(cache.ids[text, contents]), cache.tensors[contents]

    def model_inputs(self, rows: list[Pixels], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Model inputs of some rows beside ids and mask.

        Args:
            rows (`list[Pixels]` of length R): Pixel tensors of each, empty for a row without image.
            input_ids (`torch.Tensor` of shape `(R, T)`): Their tokens.
        """
        inputs = {name: self._token_types(input_ids) for name in self._type_names}
        seen = [row for row in rows if row]
        for name in seen[0] if seen else ():
            inputs[name] = _joined([row[name].to(input_ids.device) for row in seen])
        return inputs

    def _token_types(self, ids: torch.Tensor) -> torch.Tensor:
        types = torch.zeros_like(ids)
        for token, kind in self._types.items():
            types[ids == token] = kind
        return types
