# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Step benchmark: time and memory of the training part of a step, beside GRPO and TRL's self-distillation trainers."""

import argparse
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import settings
from benchmarks.measure import Results, interleave, map_arrays, workers
from benchmarks.report import Records, Row, Target, figure, megabytes, publish, save, table, target_table
from benchmarks.rollouts import Model, Scenario, from_folder, qwen3_like, smollm2_135m
from benchmarks.trainers import BareTeacher, Products, Window, numbered


GRPO, LORA, LIVE, BARE = "GRPO", "GRPO, LoRA", "pure, live", "bare teacher"
PRODUCTS = ", products"  # after a contender's name: its matrix products alone
SDFT, SDPO = "SDFT (TRL)", "SDPO (TRL)"
SLOW = 2.2  # times GRPO: a contender beyond it runs in one round only
_LIVE = {"teacher_model_kind": "live"}

# Contender: the class of trainer and its options
OWN = {
    GRPO: ("GRPO", {}),
    SDFT: ("SDFT", {}),
    SDPO: ("SDPO", {}),
    LIVE: ("OPSD", _LIVE),
    "pure, base": ("OPSD", {"teacher_model_kind": "base"}),
    "top-k 100": ("OPSD", {**_LIVE, "distillation_mode": "topk_logits", "distillation_topk": 100}),
    "sampled token": ("OPSD", {**_LIVE, "distillation_mode": "sampled_token", "distillation_alpha": 1.0}),
    "mixed with reward": ("OPSD", {**_LIVE, "reward": True}),
    "2 views": ("OPSD", {**_LIVE, "views": numbered(2)}),
    "4 views": ("OPSD", {**_LIVE, "views": numbered(4)}),
    LORA: ("GRPO", {"lora": True}),
    "pure, LoRA": ("OPSD", {"teacher_model_kind": "base", "lora": True}),
}
SHARED = {name: OWN[name] for name in (GRPO, SDFT, LIVE, "mixed with reward")}
PROFILED = (SDFT, LIVE)
MEMORY = {name: OWN[name] for name in (GRPO, SDFT, SDPO, LIVE, "2 views", "pure, LoRA")}
QUICK = {name: OWN[name] for name in (GRPO, SDFT, SDPO, LIVE, "2 views")}


SCENARIOS = {
    "own": (Scenario(rows=8, batch=4, completion=(16, 48)), OWN),
    "shared": (Scenario(8, 8, (16, 48), prompt=(48, 48), context=(240, 240), group=8), SHARED),
    "memory": (Scenario(16, 16, (48, 96), checkpointing=True), MEMORY),
}
TITLES = {
    "own": "A context for each row",
    "shared": "One prompt and one context of five times its length, shared by the 8 rollouts of a group",
    "memory": "Peak memory with gradient checkpointing",
}
TINY = {"rows": 4, "batch": 2, "completion": (3, 6), "prompt": (2, 4), "context": (2, 4)}


def models(args: argparse.Namespace) -> list[Model]:
    dtype = getattr(torch, args.dtype)
    if args.model:
        return [from_folder(str(folder), dtype, Path(folder).name) for folder in args.model]
    first = smollm2_135m(dtype)
    return [first] if args.quick else [first, qwen3_like(dtype, first.tokenizer)]


def scenarios(args: argparse.Namespace) -> dict[str, tuple[Scenario, dict]]:
    if not args.quick:
        return SCENARIOS
    return {
        "own": (Scenario(**TINY), QUICK),
        "memory": (Scenario(**TINY, checkpointing=True), {GRPO: OWN[GRPO]}),
    }


def run(args: argparse.Namespace) -> list[Row]:
    """Time every model in every scenario; one row a run."""
    rows = []
    for model in models(args):
        for name, (scenario, contenders) in scenarios(args).items():
            print(f"{model.name}: {TITLES[name]} ...", flush=True)
            results = time_all(model, name, scenario, contenders, args)
            check_tokens(results, contenders, scenario.rows)
            rows += to_rows(model, name, results)
    return rows


def time_all(
    model: Model, name: str, scenario: Scenario, contenders: dict, args: argparse.Namespace, slow: float = SLOW
) -> Results:
    memory = name == "memory"
    # The peak does not depend on threads and rounds, so it is had with all cores and at once
    threads, rounds = (os.cpu_count(), 1) if memory else (args.threads, args.repeats)
    builds = {
        contender: partial(window, memory, kind, model, scenario, args.device, **options)
        for contender, (kind, options) in contenders.items()
    }
    builds[BARE] = partial(BareTeacher, model, scenario, args.device)
    with workers(builds, threads, args.device) as made:
        results = interleave(made, rounds, GRPO, slow)
    return results | profiled(model, scenario, contenders, args) if name == "own" else results


def window(map_each: bool, *args: Any, **options: Any) -> Window:
    """Build a window; with `map_each` its peak is that of the arrays alone, at the price of time."""
    if map_each:
        map_arrays()
    return Window(*args, **options)


def profiled(model: Model, scenario: Scenario, contenders: dict, args: argparse.Namespace) -> Results:
    """Seconds of the matrix products within the windows, once each."""
    builds = {
        f"{name}{PRODUCTS}": partial(Products, contenders[name][0], model, scenario, args.device, **contenders[name][1])
        for name in PROFILED
        if name in contenders
    }
    with workers(builds, args.threads, args.device) as made:
        return interleave(made, 1, f"{LIVE}{PRODUCTS}")


def check_tokens(results: Results, contenders: dict, rows: int) -> None:
    """Raise unless all contenders read the same tokens. Words in another order may make some more."""
    student, teacher = results[GRPO][0].answer, results[BARE][0].answer["teacher"]
    for name, (kind, options) in contenders.items():
        read = results[name][0].answer
        views = 0 if kind == "GRPO" else len(options.get("views", ["privileged"]))
        expected, slack = views * teacher, views * max(rows, 0.01 * teacher)
        if {**read, "teacher": 0} != {**student, "teacher": 0} or abs(read["teacher"] - expected) > slack:
            raise RuntimeError(f"{name} read {read}; expected is {student}, and {expected} by the teacher.")


def base_of(name: str) -> str:
    """Reference of a contender: GRPO on the same weights."""
    return LORA if name.endswith("LoRA") else GRPO


def to_rows(model: Model, scenario: str, results: Results) -> list[Row]:
    rows = []
    for name, runs in results.items():
        compared = scenario != "memory" and not name.endswith(PRODUCTS)
        for number, one in enumerate(runs):
            if one is None:
                continue
            rows.append(
                {
                    "model": model.name,
                    "weights_mb": model.weights_mb,
                    "scenario": scenario,
                    "contender": name,
                    "round": number,
                    "seconds": one.seconds,
                    "over_grpo": one.seconds / results[base_of(name)][number].seconds if compared else "",
                    "peak_mb": "" if one.peak is None or name == BARE or scenario != "memory" else one.peak / 1e6,
                    **{f"{part}_tokens": count for part, count in one.answer.items()},
                }
            )
    return rows


def main(args: argparse.Namespace) -> None:
    rows = run(args)
    publish(args, "step", rows, text(rows, settings(args)), draw)


def text(rows: list[Row], setting: str) -> list[str]:
    made = [f"{setting}."]
    for model in Records(rows).distinct("model"):
        records = Records(rows, model=model)
        made.append(f"### {model}")
        made += [time_table(records, name) for name in ("own", "shared") if trainers_of(records, name)]
        made += [memory_table(records), target_table(targets(records))]
    return made


def trainers_of(records: Records, scenario: str) -> list[str]:
    names = records.where(scenario=scenario).distinct("contender")
    return [name for name in names if name != BARE and not name.endswith(PRODUCTS)]


def ratio(records: Records, scenario: str, name: str, other: str) -> float | None:
    """Median over the rounds of the ratio of seconds within each."""
    seconds = (records.values("seconds", scenario=scenario, contender=one) for one in (name, other))
    ratios = [one / base for one, base in zip(*seconds, strict=False)]
    return statistics.median(ratios) if ratios else None


def time_table(records: Records, scenario: str) -> str:
    """Times over GRPO, below the number of tokens that all contenders read."""
    found, rows = records.where(scenario=scenario), []
    for name in trainers_of(records, scenario):
        over = "1" if name == base_of(name) else found.spread("over_grpo", contender=name)
        products = found.spread("seconds", contender=f"{name}{PRODUCTS}")
        rows.append([name, found.spread("seconds", 1000, 0, contender=name), over, products])
    completion, student = (int(found.median(f"{part}_tokens", contender=GRPO)) for part in ("completion", "student"))
    teacher = int(found.median("teacher_tokens", contender=BARE))
    title = (
        f"{TITLES[scenario]}. Completion tokens: {completion}, with the prompts: {student}, what one view's teacher "
        f"reads: {teacher}. t/g = {ratio(records, scenario, BARE, GRPO):.3f} (t: its bare body forward, g: GRPO's loss "
        "and backward)."
    )
    return f"{title}\n\n{table(['trainer', 'ms', 'over GRPO', 'of it matrix products (s)'], rows)}"


def memory_table(records: Records) -> str:
    found, weights, rows = records.where(scenario="memory"), records.rows[0]["weights_mb"], []
    for name in trainers_of(records, "memory"):
        peak = found.median("peak_mb", contender=name)
        rows.append([name, megabytes(peak), megabytes(peak and peak + weights)])
    tokens = int(found.median("completion_tokens", contender=GRPO))
    title = f"{TITLES['memory']}, {tokens} completion tokens in one micro-batch:"
    return f"{title}\n\n{table(['trainer', 'MB above the weights', 'MB with the weights'], rows)}"


def targets(records: Records) -> list[Target]:
    over = {name: records.where(scenario=name) for name in ("own", "shared", "memory")}
    share = ratio(records, "own", BARE, GRPO)
    made = [
        Target(f"{name} over GRPO: 1 + 1.1 t/g", 1 + 1.1 * share, over["own"].median("over_grpo", contender=name))
        for name in trainers_of(records, "own")
        if name in (LIVE, "pure, base")
    ]
    if LIVE in trainers_of(records, "shared"):
        live = over["shared"].median("over_grpo", contender=LIVE)
        made.append(Target("pure, live over GRPO, shared context", 1.25, live))
    for scenario, where in (("own", ""), ("shared", ", shared context")):
        for peer in (SDFT, SDPO):
            if peer in trainers_of(records, scenario):
                speed = ratio(records, scenario, peer, LIVE)
                made.append(Target(f"steps a second over {peer}{where}", 1.5, speed, at_least=True))
    if LIVE in trainers_of(records, "memory"):
        for peer in (SDFT, SDPO):
            ours, theirs = (over["memory"].median("peak_mb", contender=name) for name in (LIVE, peer))
            for what, weights in (("above the weights", 0.0), ("with the weights", records.rows[0]["weights_mb"])):
                share = (ours + weights) / (theirs + weights) if ours and theirs else None
                made.append(Target(f"peak memory over {peer}, {what}", 0.5, share))
    return made


def draw(records: Records, path: Path) -> None:
    """Seconds over GRPO of every trainer, one picture a model."""
    names = records.distinct("model")
    made, axes = figure(len(names), width=6)
    for one, model in zip(axes, names, strict=True):
        found = records.where(model=model)
        bars = [(scenario, name) for scenario in ("own", "shared") for name in trainers_of(found, scenario)]
        labels = [f"{name}{', shared context' if scenario == 'shared' else ''}" for scenario, name in bars]
        heights = [found.median("over_grpo", scenario=scenario, contender=name) for scenario, name in bars]
        colours = ["tab:grey" if name.startswith((GRPO, "SD")) else "tab:red" for _, name in bars]
        one.barh(range(len(bars)), heights, color=colours)
        one.set_yticks(range(len(bars)), labels, fontsize="small")
        one.invert_yaxis()
        one.axvline(1, color="black", lw=1)
        one.set(title=model, xlabel="time of the training part over GRPO")
    save(made, path)
