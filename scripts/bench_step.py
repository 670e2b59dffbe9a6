# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Time and memory of the training part of a step, on scripted rollouts: OPSDTrainer beside GRPOTrainer and TRL's
experimental self-distillation trainers:

python scripts/bench_step.py
python scripts/bench_step.py --methods
"""

from bench.setting import machine, parse, parser, settings


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", action="append", help="folder of a causal language model; default: two models")
    options.add_argument("--methods", action="store_true", help="the published methods instead, on the first model")
    args = parse(options)
    from bench import methods, report, step, step_report

    part, shown, name = (methods, methods, "step_methods") if args.methods else (step, step_report, "step")
    rows = part.run(args)
    report.write_csv(args.output / f"{name}.csv", rows)
    shown.draw(rows, args.output / f"{name}.png")
    report.put(args.output, {"machine": machine(args.device)} | shown.blocks(rows, settings(args)))


if __name__ == "__main__":
    main()
