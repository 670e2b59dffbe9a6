# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Sums that stand in pictures, for vision-language models, with what is written there as a column.

Needs Pillow (`pip install 'trl-opsd[vision]'`).
"""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


QUESTION = "Work out what stands in the picture. Answer in one short sentence."
ROWS = {"train": 512, "test": 64}
SIZE = (224, 112)


def picture(text: str, rng: random.Random) -> Image.Image:
    """Black letters at a random place, slightly turned, on white paper."""
    image = Image.new("RGB", SIZE, "white")
    place = rng.randint(8, 60), rng.randint(8, 52)
    ImageDraw.Draw(image).text(place, text, fill="black", font=ImageFont.load_default(40))
    return image.rotate(rng.uniform(-4, 4), fillcolor="white")


def prepare(target: Path, seed: int = 0, rows: dict[str, int] = ROWS) -> Path:
    """Write pictures and `metadata.jsonl` for each split, as `datasets.load_dataset(target)` reads them."""
    rng = random.Random(seed)
    pairs = rng.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], sum(rows.values()))
    for split, count in rows.items():
        (target / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            a, b = pairs.pop()
            name = f"{number:04d}.png"
            picture(f"{a} + {b}", rng).save(target / split / name)
            row = {"file_name": name, "prompt": [{"role": "user", "content": QUESTION}]}
            lines.append(json.dumps({**row, "transcription": f"{a} + {b}", "answer": a + b}) + "\n")
        (target / split / "metadata.jsonl").write_text("".join(lines))
    return target
