# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
How the training part of a step grows with tokens, context, views and processes, and the memory of the loss with tokens
and vocabulary:

python scripts/bench_scaling.py
"""

from pathlib import Path

from bench.setting import machine, parse, parser, settings


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", help="folder of a causal language model; default: SmolLM2-135M")
    args = parse(options)
    from bench import report, scaling, scaling_report

    rows = scaling.run(args)
    report.write_csv(args.output / "scaling.csv", rows)
    scaling_report.draw(rows, args.output / "scaling.png")
    model = Path(args.model).name if args.model else "SmolLM2-135M"
    setting = f"{settings(args)}; pure distillation with a live teacher, {model}, {scaling.ROWS} rows in a micro-batch"
    report.put(args.output, {"machine": machine(args.device)} | scaling_report.blocks(rows, setting))


if __name__ == "__main__":
    main()
