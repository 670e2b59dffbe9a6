# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Step benchmark of the methods: time of each beside the plain loss that it changes, with as many views."""

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.environment import settings
from benchmarks.report import Records, Row, Target, figure, publish, save, table, target_table
from benchmarks.rollouts import Scenario
from benchmarks.step import BARE, GRPO, TINY, check_tokens, models, ratio, time_all, to_rows
from benchmarks.trainers import numbered
from trl_opsd import OPSDConfig
from trl_opsd.methods import method_names, method_of


SCENARIO = "methods"
MOST_AT_ONCE = 12
MOST = 1.1  # times the plain loss


def names_in(source: Any) -> list[str]:
    """Names of the views that a described source gives."""
    kind, options = next(iter(source.items())) if isinstance(source, dict) else (source, {})
    if kind == "all_of":
        return [name for part in options for name in names_in(part)]
    if kind == "first_of":
        return names_in(options[0])
    inner = names_in(options["source"]) if "source" in options else []
    if kind == "with_baselines":
        return inner + [name for name in ("alone", "bare") if options.get(name, True)]
    name, count = options.get("name", "privileged"), options.get("count", 1)
    return inner or ([name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)])


def views_of(name: str) -> list[str]:
    """Names of a method's views, which stand in for its own source: that is not what is timed."""
    return names_in(method_of(name).defaults.get("privileged_source") or "column")


def options_of(name: str) -> dict[str, Any]:
    method = method_of(name)
    options = {"method": name, "privileged_source": None, "views": views_of(name), "reward": is_mixed(name)}
    if method.reads_reward and not is_mixed(name):  # it looks at rewards that train nothing
        options |= {"reward": True, "policy_weight": 0.0}
    return options


def has_turns(name: str) -> bool:
    """Whether a method samples its own rollouts: its loss is GRPO's or a plain one, which is timed by itself."""
    return "turns" in method_of(name).defaults


def is_mixed(name: str) -> bool:
    """Whether a method has a policy term."""
    method = method_of(name)
    return method.needs_reward or method.defaults.get("policy_weight", 0.0) > 0


def plain(name: str) -> tuple[str, dict[str, Any]]:
    """Name and options of the loss that a method changes: same mode, teacher, reward and number of views."""
    config = OPSDConfig(output_dir="unused", method=name, num_generations=2, bf16=False)
    kind, reward = config.teacher_model_kind, is_mixed(name)
    views = len(views_of(name))
    options = {"distillation_mode": config.distillation_mode, "teacher_model_kind": kind, "reward": reward}
    options["views"] = numbered(views)
    if kind == "snapshot":
        options["teacher_sync_steps"] = 10  # it is renewed between windows
    if config.distillation_mode == "topk_logits":
        options["distillation_topk"] = config.distillation_topk
    if config.distillation_mode == "sampled_token":
        options["distillation_alpha"] = 1.0
    mode = config.distillation_mode
    mode = f"top-k {config.distillation_topk}" if mode == "topk_logits" else mode.replace("_", " ")
    parts = [mode, kind, "reward" if reward else "", f"{views} views" if views > 1 else ""]
    return ", ".join(filter(None, parts)), options


Contenders = dict[str, tuple[str, dict]]


def groups() -> list[Contenders]:
    """Plain losses with the methods that change them, and GRPO with each group. A teacher may hold weights of its own,
    for which there is not memory at once."""
    plains = {name: plain(name) for name in method_names() if not has_turns(name)}
    made: list[Contenders] = []
    for label, options in dict(plains.values()).items():
        part = {label: ("OPSD", options)}
        part |= {f"method {name}": ("OPSD", options_of(name)) for name in plains if plains[name][0] == label}
        if not made or len(made[-1]) + len(part) > MOST_AT_ONCE:
            made.append({GRPO: ("GRPO", {})})
        made[-1] |= part
    return made


def run(args: argparse.Namespace) -> list[Row]:
    """On the first model alone; one row a run."""
    model, rows = models(args)[0], []
    # The first round is not counted: in it, shared weights are copied where a teacher takes their place
    warmed = argparse.Namespace(**{**vars(args), "repeats": args.repeats + 1})
    scenario = Scenario(**TINY) if args.quick else Scenario(4, 4, (8, 24), prompt=(4, 8), context=(12, 24))
    for group in groups():
        print(f"{model.name}: {', '.join(group)} ...", flush=True)
        results = time_all(model, SCENARIO, scenario, group, warmed, slow=math.inf)
        results = {name: runs[1:] for name, runs in results.items()}
        check_tokens(results, group, scenario.rows)
        rows += to_rows(model, SCENARIO, results)
    return rows


def main(args: argparse.Namespace) -> None:
    rows = run(args)
    publish(args, "step_methods", rows, text(rows, settings(args)), draw)


def methods_in(records: Records) -> list[str]:
    names = records.distinct("contender")
    return [name.removeprefix("method ") for name in names if name.startswith("method ")]


def text(rows: list[Row], setting: str) -> list[str]:
    records = Records(rows)
    lines, plains, shares = [], {}, {}
    for name in methods_in(records):
        timed, label = f"method {name}", plain(name)[0]
        plains[label] = records.spread("over_grpo", contender=label)
        shares[name] = ratio(records, SCENARIO, timed, label)
        times = [records.spread("seconds", 1000, 0, contender=timed), records.spread("over_grpo", contender=timed)]
        lines.append([f"`{name}`", *times, f"{shares[name]:.2f}", label])
    modes = table(["plain loss", "over GRPO"], [[label, spread] for label, spread in plains.items()])
    methods = table(["method", "ms", "over GRPO", "over its plain loss", "which is"], lines)
    targets = [Target(f"`{name}` over its plain loss", MOST, share) for name, share in shares.items() if share > MOST]
    worst = max(shares, key=shares.get)
    targets = targets or [Target(f"the most over its plain loss: `{worst}`", MOST, shares[worst])]
    grpo = records.spread("seconds", 1000, 0, contender=GRPO)
    bare = records.median("over_grpo", contender=BARE)
    title = f"{setting}, {rows[0]['model']}. GRPO: {grpo} ms; t/g = {bare:.3f}."
    return [title, modes, methods, target_table(targets)]


def draw(records: Records, path: Path) -> None:
    """Time over GRPO of each method, and as a mark that of its plain loss."""
    made, (axes,) = figure(1, width=7, height=8)
    names = methods_in(records)
    heights, marks = (
        [records.median("over_grpo", contender=label) for label in labels]
        for labels in ([f"method {name}" for name in names], [plain(name)[0] for name in names])
    )
    axes.barh(range(len(names)), heights, color="tab:red")
    axes.plot(marks, range(len(names)), "k|", markersize=9, label="its plain loss, as many views")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    axes.set(title=records.rows[0]["model"], xlabel="time of the training part over GRPO")
    save(made, path)
