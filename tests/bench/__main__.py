"""Lamina beside PyTorch and ONNX Runtime: `python -m lamina.tests.bench [MODEL...]`.

Each system runs in a process of its own, at the same weights, batch and threads. Its result is
compared with ours before it is timed, and rounds go in turn.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from lamina.tests.bench import machine, models, report, rounds, systems

PRODUCT_FLOPS = 2 * 1024**3


def main(arguments: Sequence[str]) -> int:
    """Measure and report, or report what was measured; 1 if a cell of ours is not good."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(models.known()))
        return 0
    if given.of:
        found = json.loads(given.of.read_text(encoding="utf-8"))
    else:
        found = run(chosen_models(parser, given), given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(report.markdown(found), encoding="utf-8")
    elif given.of:
        print(report.markdown(found), end="")
    return 0 if all(cell["status"] == "ok" for cell in found["cells"]
                    if cell["system"] == report.OURS) else 1


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lamina.tests.bench", formatter_class=argparse.RawTextHelpFormatter,
        description="Time models here, in PyTorch and in ONNX Runtime, at equal weights, batch "
                    "and threads.\nEvery result is compared with ours before it is timed.",
        epilog="For figures to believe, let nothing else run on the machine.\n"
               "A whole run takes an hour or two; name a model for a short one.")
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL",
        help="a model of the zoo, vgg.VGG16, a pattern, 'resnet.*', or one of lstm, gru, cell,\n"
             "conv, gemm; without: " + " ".join(models.USUAL[:5]) + " ...")
    add("--list", action="store_true", help="print the names of all models and stop")
    add("--modes", type=names_of(models.MODES), default=models.MODES, metavar="MODES",
        help="train, infer or both, with a comma between (both): a training step with SGD and\n"
             "momentum; inference of one example and of the batch")
    add("--systems", type=names_of(tuple(systems.SYSTEMS)), default=systems.USUAL,
        metavar="NAMES", help="some of " + ",".join(systems.SYSTEMS) + "\n"
                              "(all but compile-channels-last)")
    add("--batch", type=positive, metavar="N",
        help="examples of a training step, and of the larger inference (each model's own)")
    add("--threads", type=positive, default=2, metavar="N", help="threads of every system (2)")
    add("--rounds", type=positive, default=7, metavar="N", help="rounds of each system (7)")
    add("--seconds", type=float, default=0.5, metavar="S",
        help="work of one system in one round, at least one call (0.5)")
    add("--limit", type=float, default=300.0, metavar="SECONDS",
        help="time of one system for one work, its start and compilation included; one that\n"
             "takes longer is ended and reported so (300)")
    add("--no-cold", action="store_true",
        help="leave out the start of ours from an empty cache, and use the kernels that are kept")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--from", type=Path, metavar="FILE", dest="of",
        help="measure nothing: print the tables of a file that --json wrote")
    return parser


def names_of(known: tuple[str, ...]) -> Any:
    """A reader of names with commas between."""
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def chosen_models(parser: argparse.ArgumentParser, given: argparse.Namespace
                  ) -> list[models.Model]:
    """The models that are named, each once; an unknown name ends the program."""
    names: list[str] = []
    for text in given.models or models.USUAL:
        found = matching(models.known(), text)
        if not found:
            parser.error(f"no model is named {text!r}; --list prints the names")
        names += found
    return [models.find(name, given.batch) for name in dict.fromkeys(names)]


def run(chosen: Sequence[models.Model], given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, printed as it comes."""
    settings = rounds.Settings(given.rounds, given.threads, given.seconds, given.limit,
                               not given.no_cold)
    picked = [systems.SYSTEMS[name] for name in given.systems]
    found: dict[str, Any] = {
        "machine": machine.facts(), "settings": {**asdict(settings), "cache": str(settings.cache)},
        "tolerances": {"result": rounds.RESULT, "change": rounds.CHANGE},
        "product_gflops": {"before": product_rates(settings)}, "cells": []}
    print(f"right within {rounds.RESULT:.0e} of our largest entry; training: the first loss, and "
          f"within {rounds.CHANGE:.0e} what {systems.STEPS} steps change it by\n", flush=True)
    for model in chosen:
        able = [system for system in picked if system.name in model.systems]
        found["cells"] += rounds.measure(
            model, able, given.modes, settings,
            lambda cells: print(report.lines_of(cells), flush=True))
        if given.json:  # what is there survives an interrupt
            given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found["product_gflops"]["after"] = product_rates(settings)
    print(report.conditions(found))
    return found


def product_rates(settings: rounds.Settings) -> dict[str, float]:
    """GFLOP/s of a matrix product 1024^3, ours and NumPy's."""
    few = replace(settings, rounds=3, cold=False)
    pair = [systems.SYSTEMS[name] for name in ("ours", "numpy")]
    cells = rounds.measure(models.find("gemm"), pair, ("infer",), few)
    return {cell["label"]: PRODUCT_FLOPS / cell["seconds"]["median"] / 1e9
            for cell in cells if report.good(cell)}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no process and no folder
    sys.exit(main(sys.argv[1:]))
