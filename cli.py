"""The command line: verbs that parse arguments, call, and print.

Verbs import what they need when they run: most need no kernel, and the command starts often.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lamina.commands import console
from lamina.compiler.errors import CODES, CompileError, suggest
from lamina.compiler.options import AUTO, TARGETS, Every, Options, from_environment, wants_color
from lamina.runtime.errors import Failure

MAX_LISTED = 30  # candidates that a message lists
FEW = 6  # of more than that, the nearest
COLLECT_EVERY = 50_000  # new objects between searches for garbage: imports make 100,000, all kept
INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C ends

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
OVERRIDE = click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE",
                        help="Set a model's or a recipe's setting.")
TARGET = click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True)
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="Number of threads.")
TUNE = click.option("--tune", is_flag=True,
                    help="Run each convolution by the algorithm that is faster here: measured "
                         "once, then kept. Results differ in rounding.")
INPUT = click.option("--input", "sizes", multiple=True, metavar="NAME=1x3x224x224",
                     help="Sizes of an input, where the model leaves them open.")
A_RUN = "A run's folder, or a safetensors file."
BEAM = click.option("--beam", type=click.IntRange(1, 1000), metavar="N",
                    help="Keep the N best beginnings of what is said.")
PENALTY = click.option("--penalty", type=click.FloatRange(0),
                       help="With --beam: above 0.6 for longer texts, down to 0 for shorter ones.")
WEIGHTS = click.option("--weights", type=click.Path(), required=True, help=A_RUN)


def _layers(context: click.Context, parameter: click.Parameter, text: str | None) -> Every:
    """What --checkpoint-every asks for."""
    if text is None or text == AUTO:
        return text
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise click.BadParameter(f"{text!r} is neither a whole number from 1 nor {AUTO}")
    return int(text)


CHECKPOINT = click.option(
    "--checkpoint-every", "every", metavar="N", callback=_layers,
    help="In training keep every N-th layer's result for the gradient and compute the others "
         "again: less memory, up to a forward pass more time. auto: the root of their number.")


def guarded(command: Callable) -> Callable:
    """A user's mistake is a message and exit code 1, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except CompileError as error:
            console.print_errors(error, wants_color())
        except Failure as error:
            console.print_failure(error, _split(str(kwargs.get("file", "")))[0])
        except MemoryError as error:
            run = "arena" in str(error)  # a plan says so; else it is the weights themselves
            option = "--batch 16" if "batch" in kwargs else "-o batch=16"
            console.print_error(f"out of memory: {error}",
                                f"use a smaller batch: {option}{_or_keep_less(kwargs)}"
                                if run else "the weights alone are too large for this machine: "
                                "`lamina shapes` shows where they are")
        except BrokenPipeError:
            console.drop_output()
        except KeyboardInterrupt:
            console.print_error("interrupted")
            sys.exit(INTERRUPTED)
        except OSError as error:
            console.drop_output()
            console.print_error(f"{error.filename or 'output'}: {error.strerror or error}")
        sys.exit(1)

    return run


def _or_keep_less(given: Mapping[str, Any]) -> str:
    """The other way out of a training step that is too large; `given` are a verb's arguments."""
    trains = "resume" in given or given.get("for_training") or given.get("mode") == "train"
    if not trains or given["every"] is not None:
        return ""
    return f", or keep less for the gradient: --checkpoint-every {AUTO}"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lamina")
def main() -> None:
    """Lamina, a graph compiler for neural networks.

    FILE is a path or the name of a zoo model; FILE#Name picks a model or a recipe in it.
    """
    gc.set_threshold(COLLECT_EVERY)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@JSON
@guarded
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Report every error of the files: names, shapes, recipes."""
    from lamina.commands.checking import check_file, diagnostic_json

    found = [diagnostic for file in files for diagnostic in check_file(*_split(file))]
    if as_json:
        console.print_json([diagnostic_json(diagnostic) for diagnostic in found])
        sys.exit(1 if found else 0)
    if found:
        raise CompileError(*found)
    click.echo(f"{len(files)} file{'' if len(files) == 1 else 's'} without errors")


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 if it would.")
@guarded
def fmt(files: tuple[str, ...], only_check: bool) -> None:
    """Rewrite files in the canonical format; comments stay."""
    from lamina.compiler.syntax.fmt import format_source
    from lamina.compiler.syntax.parse import read_source

    changed = 0
    for name in files:
        source = read_source(name)
        text = format_source(source)
        if text == source.text:
            continue
        changed += 1
        if not only_check:
            _replace(Path(name), text)
        click.echo(f"{'would change' if only_check else 'formatted'} {name}")
    sys.exit(1 if only_check and changed else 0)


def _replace(path: Path, text: str) -> None:
    from lamina.runtime.checkpoint import write_durable

    write_durable(path, text.encode())


@main.command()
@click.argument("file")
@OVERRIDE
@INPUT
@click.option("--columns", metavar="LIST", help="Columns of the table, as in in,out,macs; or all.")
@click.option("--formula", is_flag=True, help="Costs as functions of the sizes left open.")
@click.option("--why", metavar="PATH", help="Show the output-size formula of one layer.")
@JSON
@guarded
def shapes(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], columns: str | None,
           formula: bool, why: str | None, as_json: bool) -> None:
    """The layer table: shapes, parameters, multiply-accumulates, receptive fields.

    Columns: op, in, out, params, macs, flops, backward, bytes, share, field, stride, line.
    """
    from lamina.commands import costs, views
    from lamina.compiler.inspect.formula import explain_sizes
    from lamina.compiler.inspect.polynomial import formulas

    if (columns is not None) + formula + (why is not None) > 1:
        raise click.UsageError("--columns, --formula and --why ask for different tables: give one")
    chosen = None if columns is None else _columns(columns, costs.COLUMNS)
    net = _net(file, overrides, sizes)
    if why is not None:
        _require_path(why, [scope.path for scope in net.graph.scopes])
        lines = explain_sizes(net.graph, why)
        console.print_json({"layer": why, "sizes": lines}) if as_json else \
            click.echo("\n".join(lines))
    elif formula:
        found = formulas(net.graph)
        console.print_json(costs.formulas_json(found)) if as_json else \
            costs.print_formulas(views.terminal(), found)
    elif as_json:
        console.print_json(costs.summary_json(net.summary()))
    elif chosen is not None:
        costs.print_columns(views.terminal(), net.summary(), chosen)
    else:
        views.print_summary(net.summary())


@main.command()
@click.argument("file")
@click.option("--at", "path", metavar="PATH", help="Show every path to one layer or output.")
@click.option("--input", "inputs", multiple=True, metavar="NAME[=SIZES]",
              help="Only this input; with sizes, as in image=1x3x224x224, where they are open.")
@OVERRIDE
@JSON
@guarded
def rf(file: str, path: str | None, inputs: tuple[str, ...], overrides: tuple[str, ...],
       as_json: bool) -> None:
    """Receptive fields of all layers, over all paths and path by path."""
    from lamina.commands import fields, views

    net = _net(file, overrides, tuple(text for text in inputs if "=" in text))
    names = _measured(net.graph, [text.partition("=")[0] for text in inputs])
    if path is not None:
        _require_path(path, fields.places(net.graph))
    if as_json:
        console.print_json(fields.as_json(net.graph, names, path))
    else:
        fields.show(views.terminal(), net.graph, names, path)


@main.command()
@click.argument("file")
@OVERRIDE
@TARGET
@THREADS
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@CHECKPOINT
@TUNE
@JSON
@guarded
def train(file: str, overrides: tuple[str, ...], target: str, threads: int | None,
          out: Path | None, resume: bool, every: Every, tune: bool, as_json: bool) -> None:
    """Train a recipe; checkpoints and a log go to the run's folder."""
    from lamina.commands import views
    from lamina.commands.training import run_training

    training = _training(file, overrides)
    folder = out or _run_folder(training, resume)
    options = _options(target, threads, every, tune)
    if every is not None and not as_json:
        click.echo(f"note: --checkpoint-every {every}: what is not kept is computed again",
                   err=True)
    view = views.Silent() if as_json else \
        views.TrainingView(training.net.summary(), training.errors, options.building)
    try:
        result = run_training(training, options, folder, resume, view)
    finally:
        view.close()
    figures = {"folder": str(folder), "kept": str(result.kept), "step": result.state.step,
               "best": result.state.best, "best_epoch": result.state.best_epoch,
               "train": result.train, "valid": result.valid, "checkpoint_every": every}
    if as_json:
        console.print_json(figures)
    else:
        held_out = bool(training.recipe.data.get("valid"))
        views.print_result(training.recipe.keep, held_out, result, training.errors)
    sys.exit(result.exit_code)


def _run_folder(training: Any, resume: bool) -> Path:
    """runs/NAME, or the next free runs/NAME-2 ...; the latest one to resume."""
    from lamina.runtime.checkpoint import LAST

    base = Path("runs") / f"{training.recipe.model.name}-{training.recipe.name}"
    folder, number = base, 1
    latest = base
    while (folder / LAST).exists():
        latest, number = folder, number + 1
        folder = base.with_name(f"{base.name}-{number}")
    return latest if resume else folder


@main.command(name="eval")
@click.argument("file")
@WEIGHTS
@OVERRIDE
@TARGET
@THREADS
@BEAM
@PENALTY
@click.option("--no-decode", is_flag=True, help="No token errors, only loss and metrics.")
@JSON
@guarded
def evaluate(file: str, weights: str, overrides: tuple[str, ...], target: str,
             threads: int | None, beam: int | None, penalty: float | None, no_decode: bool,
             as_json: bool) -> None:
    """Loss and metrics of trained weights on a recipe's held-out data.

    A model that chooses its tokens (`choose`) is decoded as well, greedily or with --beam: token
    errors are the edit distance to the nearest reference over its length, exact is the share of
    sources that are said as a reference is.
    """
    from lamina.commands import decoding, views
    from lamina.commands.training import run_evaluation

    asked = decoding.wish(beam, penalty)
    if no_decode and asked.named:
        raise click.UsageError(f"{asked.named[0]} and --no-decode do not go together")
    training = _training(file, overrides)
    report = views.Silent() if as_json else views.print_warning
    figures = run_evaluation(training, _options(target, threads), Path(weights), report,
                             None if no_decode else asked)
    if as_json:
        console.print_json(figures)
    else:
        views.print_figures(figures, training.errors)


@main.command()
@click.argument("file")
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@WEIGHTS
@OVERRIDE
@click.option("--text", "texts", multiple=True, metavar="[NAME=]TEXT",
              help="A text in place of a file; it may be given many times.")
@BEAM
@PENALTY
@click.option("--sample", is_flag=True, help="Draw each token by its probability.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True),
              help="With --sample: below 1 likely tokens become likelier.")
@click.option("--top-k", type=click.IntRange(1), help="With --sample: of the K likeliest tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True),
              help="With --sample: of the fewest tokens that have this share together.")
@click.option("--seed", type=click.IntRange(0), help="With --sample: another draw.")
@click.option("--limit", type=click.IntRange(1), help="So many tokens at most.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT",
              help="What the chosen tokens begin with.")
@TARGET
@THREADS
@click.option("--invert", is_flag=True, help="Swap dark and light, for dark ink on white paper.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="FILE.npy: the first output, a row per example; FILE.png: a mask, objects or "
              "the alignment; FILE.txt: what is said, a line per example.")
@JSON
@guarded
def predict(file: str, inputs: tuple[str, ...], weights: str, overrides: tuple[str, ...],
            texts: tuple[str, ...], beam: int | None, penalty: float | None, sample: bool,
            temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None,
            limit: int | None, prompts: tuple[str, ...], target: str, threads: int | None,
            invert: bool, out: Path | None, as_json: bool) -> None:
    """What a trained model says to pictures, texts or .npy arrays.

    The label and its probability where the recipe compares the first output with labels, a label
    for each token where it compares it with those, else the output. A model that chooses its
    tokens says them, greedily or by --beam or --sample. A line of a file of texts is an example.
    A model of several inputs takes one file for each: NAME=FILE. A model without a recipe takes
    .npy arrays.
    """
    from lamina.commands import decoding, predicted, prediction
    from lamina.commands.trained import Request, open_model

    wish = decoding.wish(beam, penalty, sample, temperature, top_k, top_p, seed, limit, prompts)
    trained = _trained(file, overrides)
    model = open_model(*trained, _options(target, threads), Path(weights))
    wanted = "" if out is None else predicted.require_ending(out, model.texts)
    request = Request(inputs, texts, invert, wish, wanted)
    found = []
    for one in prediction.predict(model, request):
        found.append(one)
        if as_json:
            continue
        if one.failure is not None:
            console.print_failure(one.failure, _split(file)[0])
        else:
            click.echo(predicted.describe(one))
    if as_json:
        console.print_json([predicted.as_json(one) for one in found])
    else:
        for warning in predicted.warnings(found):
            click.echo(f"warning: {warning}", err=True)
    if out is not None:
        predicted.save_outputs(out, found, model.texts)
    sys.exit(1 if any(one.failure is not None for one in found) else 0)


STAGES = ("ast", "graph", "backward", "fused", "memory", "kernels")


@main.command()
@click.argument("file")
@OVERRIDE
@INPUT
@click.option("--stage", default="graph", show_default=True,
              help=f"One of {', '.join(STAGES)}, or the name of a pass.")
@click.option("--train", "for_training", is_flag=True, help="The training step.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True,
              help="The batch of the memory plan, of kernels --why and of what fused moves.")
@CHECKPOINT
@click.option("--why", "why", is_flag=True,
              help="For kernels: the algorithm of each product and convolution, what it takes, and "
                   "why this one. For fused: what was not fused, and why.")
@click.option("--rate", type=click.IntRange(1, 10**9), metavar="GFLOPS",
              help="For kernels --why: the machine's rate. Default: measured now.")
@click.option("--all", "everything", is_flag=True, help="For memory: small buffers too.")
@guarded
def show(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], stage: str,
         for_training: bool, batch: int, every: Every, why: bool, rate: int | None,
         everything: bool) -> None:
    """One stage of the compilation as text.

    memory: what sets the peak, what is kept for the backward pass or computed again, and every
    buffer's lifetime.
    fused: below the graph, what is only moved in memory, how many bytes, and why.
    Passes that LAMINA_SKIP names are left out, as in a run.
    """
    from lamina.commands import choices, memory, showing

    if stage == "ast":
        click.echo(showing.show_ast(_split(file)[0]))
        return
    known = (*STAGES, *showing.pass_names())
    if stage not in known:
        _fail(f"no stage is named `{stage}`", stage, known)
    skip = _left_out(showing.pass_of(stage))
    training = for_training or stage == "backward"
    net, step = _runnable(file, overrides, sizes, training, every, "--train")
    graph = net.graph if step is None else step
    if stage == "memory":
        click.echo(memory.show_memory(net.graph, graph, batch, everything, skip))
    elif stage == "kernels" and why:
        click.echo(choices.show_choices(graph, batch, rate, _options("cpu", None)))
    else:
        click.echo(showing.show(graph, stage, why, skip, batch))


@main.command()
@click.argument("code")
@guarded
def explain(code: str) -> None:
    """The page of an error code: lamina explain E312."""
    from lamina.commands.checking import explanation

    text = explanation(code.upper())
    if text is None:
        _fail(f"no error has the code {code}", code.upper(), CODES)
    click.echo(text)


@main.command()
@JSON
@guarded
def zoo(as_json: bool) -> None:
    """The models that ship with Lamina."""
    from lamina.commands import views
    from lamina.commands.facts import zoo_rows

    rows = zoo_rows()
    console.print_json(rows) if as_json else views.print_zoo(rows)


@main.command()
@JSON
@guarded
def doctor(as_json: bool) -> None:
    """Versions, processor, threads and the kernel cache."""
    from lamina.commands.facts import diagnosis

    found = diagnosis(from_environment())
    console.print_json(found) if as_json else console.print_pairs(found)


@main.group()
def cache() -> None:
    """The folder of compiled kernels."""


@cache.command()
@JSON
@guarded
def info(as_json: bool) -> None:
    """Where the cache is and how much it holds."""
    from lamina.commands.facts import cache_facts

    facts = cache_facts(from_environment())
    console.print_json(facts) if as_json else console.print_pairs(facts)


@cache.command()
@JSON
@guarded
def clear(as_json: bool) -> None:
    """Remove all compiled kernels."""
    from lamina.commands.facts import open_cache

    opened = open_cache(from_environment())
    if opened.warning:
        click.echo(f"warning: {opened.warning}", err=True)
    removed = opened.clear()
    console.print_json({"removed": removed}) if as_json else click.echo(f"removed {removed} files")


@main.command()
@click.argument("file")
@OVERRIDE
@INPUT
@click.option("--mode", type=click.Choice(["train", "infer"]), default="infer", show_default=True)
@click.option("--batch", type=click.IntRange(1), help="Default: that of --input, or 64.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True)
@CHECKPOINT
@TARGET
@THREADS
@TUNE
@JSON
@guarded
def bench(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], mode: str,
          batch: int | None, steps: int, every: Every, target: str, threads: int | None, tune: bool,
          as_json: bool) -> None:
    """Measure a training step or inference, beside the machine's matrix-product rate."""
    from lamina.commands.bench import bench as measure

    net, graph = _runnable(file, overrides, sizes, mode == "train", every, "--mode train")
    found = measure(net, graph, mode, batch, steps, _options(target, threads, every, tune))
    console.print_json(found) if as_json else console.print_pairs(found)


@main.command()
@click.argument("file")
@OVERRIDE
@INPUT
@click.option("--train", "for_training", is_flag=True, help="The training step.")
@click.option("--batch", type=click.IntRange(1), help="Default: that of --input, or 64.")
@click.option("--rounds", type=click.IntRange(2, 10_000), metavar="N",
              help="Runs, of which the fastest is shown. Default: for about 3 seconds.")
@click.option("--by", type=click.Choice(["layer", "kernel", "step"]), default="layer",
              show_default=True, help="What a row of the table is.")
@click.option("--sort", "order", type=click.Choice(["time", "order"]), default="time",
              show_default=True, help="The longest first, or in the order in which they run.")
@click.option("--top", type=click.IntRange(1), metavar="N",
              help="Show the N longest; the others are one row.")
@CHECKPOINT
@TARGET
@THREADS
@TUNE
@JSON
@guarded
def profile(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], for_training: bool,
            batch: int | None, rounds: int | None, by: str, order: str, top: int | None,
            every: Every, target: str, threads: int | None, tune: bool, as_json: bool) -> None:
    """Measure where the time of a run goes, by layer, by kernel or step by step.

    For each the time, the multiply-accumulates (MACs) that its kernels do, its rate and what share
    that is of the rate of a large matrix product. Below the table, each row that multiplies at
    less than 60 % of that rate has the reason that was found: memory, empty lanes, short sums,
    few rows, other work than products; or it says that none is known. The inputs are random.
    """
    from lamina.commands import profiling, views

    net, graph = _runnable(file, overrides, sizes, for_training, every, "--train")
    found = profiling.measure(net, graph, batch, rounds, _options(target, threads, every, tune))
    if as_json:
        console.print_json(profiling.profile_json(found, order))
    else:
        profiling.print_profile(views.terminal(), found, by, order, top)


SETTING = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                       help="Set a model's setting.")


def _output(default: str | None, what: str, required: bool = True) -> Callable:
    """The option -o of the verbs that make a file."""
    return click.option("-o", "--out", type=click.Path(path_type=Path), default=default,
                        required=required and default is None, show_default=bool(default),
                        help=f"{what} (settings are --set KEY=VALUE here).")


@main.command()
@click.argument("file")
@_output("report.html", "The page to write")
@SETTING
@INPUT
@click.option("--batch", type=click.IntRange(1),
              help="The batch of the memory charts. Default: 1, and that of the recipe.")
@guarded
def report(file: str, out: Path, settings: tuple[str, ...], sizes: tuple[str, ...],
           batch: int | None) -> None:
    """One self-contained page: the graph, layers, receptive fields, cost and memory.

    It opens in any browser and loads nothing from anywhere. With a recipe in the file the memory
    of a training step is shown too. Needs lamina[report].
    """
    from lamina.commands import report as page

    net = _net(file, settings, sizes, "--set")
    training = page.training_step_of(net, *_split(file), _pairs(settings))
    graph, trained = training or (None, 1)
    size = page.write_report(net, graph, (batch or 1, batch or trained), out, file,
                             _pairs(settings), _left_out())
    click.echo(f"wrote {out}, {size / 1024:,.0f} KiB")


@main.command()
@click.argument("file")
@_output(None, "The picture to write: .svg, .png or .dot")
@SETTING
@INPUT
@click.option("--depth", type=click.IntRange(0), default=1, show_default=True,
              help="How many blocks within blocks are drawn open.")
@guarded
def draw(file: str, out: Path, settings: tuple[str, ...], sizes: tuple[str, ...],
         depth: int) -> None:
    """A static picture of a model's graph. Needs lamina[report,plots]; .dot needs nothing."""
    from lamina.commands.bench import example_sizes
    from lamina.commands.drawing import draw_model

    graph = _net(file, settings, sizes, "--set").graph
    draw_model(graph, example_sizes(graph, 1), depth, out)
    click.echo(f"wrote {out}")


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...",
                type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True,
              help="The picture to write: .png or .svg.")
@guarded
def plot(runs: tuple[Path, ...], out: Path) -> None:
    """Loss, metrics and learning rate of runs, over their steps. Needs lamina[plots]."""
    from lamina.commands.plots import plot_runs

    plot_runs(runs, out)
    click.echo(f"wrote {out}")


@main.command()
@click.argument("file")
@WEIGHTS
@_output(None, "The picture to write: .png or .svg")
@SETTING
@click.option("--at", metavar="PATH", help="The layer whose feature maps are drawn.")
@click.option("--input", "picture", type=click.Path(), help="The picture that the maps are of.")
@TARGET
@THREADS
@guarded
def filters(file: str, weights: str, out: Path, settings: tuple[str, ...], at: str | None,
            picture: str | None, target: str, threads: int | None) -> None:
    """The first layer's filters; with --at and --input a layer's feature maps.

    The model and its settings are the recipe's, and a picture goes through its transforms; a
    model without a recipe takes a .npy array. Needs lamina[plots].
    """
    from lamina.commands import plots, prediction
    from lamina.commands.training import read_weights

    if (at is None) != (picture is None):
        raise click.UsageError("--at and --input belong together: a layer and a picture")
    net, training = _trained(file, settings)
    params = read_weights(net.init(), Path(weights))
    if at is None or picture is None:
        click.echo(f"wrote {out}: {plots.draw_filters(net, params, out)}")
        return
    _require_path(at, [scope.path for scope in net.graph.scopes])
    options = _options(target, threads)
    inputs = prediction.read_example(net, training, Path(weights), picture)
    plots.draw_maps(net, params, at, inputs, options, out)
    click.echo(f"wrote {out}")


@main.command()
@click.argument("file")
@click.option("--weights", type=click.Path(), help=f"{A_RUN} Default: the initial weights.")
@click.option("--batches", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="How many batches of the training data.")
@_output(None, "A picture of it: .png or .svg", required=False)
@SETTING
@TARGET
@THREADS
@JSON
@guarded
def gradflow(file: str, weights: str | None, batches: int, out: Path | None,
             settings: tuple[str, ...], target: str, threads: int | None, as_json: bool) -> None:
    """How the loss's gradient flows back through time and through the layers of a recipe.

    For every state of a scan the norm of the gradient after every step, from the last one back;
    for every layer the sizes of its result, of the gradient by it, and of each parameter's.
    """
    from lamina.commands import views
    from lamina.commands.gradflow import flow_json, measure, print_flow
    from lamina.commands.plots import draw_flow

    training = _training(file, settings)
    flow = measure(training, _options(target, threads), Path(weights) if weights else None, batches)
    if out is not None:
        draw_flow(flow, out)
    console.print_json(flow_json(flow)) if as_json else print_flow(views.terminal(), flow)
    if out is not None and not as_json:
        click.echo(f"wrote {out}")


# --- arguments ----------------------------------------------------------------------------------


def _options(target: str, threads: int | None, every: Every = None, tune: bool = False
             ) -> Options:
    from lamina.commands.facts import open_cache

    options = from_environment()
    warning = open_cache(options).warning if target == "cpu" else ""
    if warning:
        click.echo(f"warning: {warning}", err=True)
    as_json = click.get_current_context().params.get("as_json", False)
    return replace(options, target=target, threads=threads or options.threads,
                   checkpoint_every=every, building=console.build_line(as_json), tune=tune)


def _left_out(name: str = "") -> frozenset[str]:
    """The passes that LAMINA_SKIP leaves out, which is said; a usage error if `name` is one."""
    from lamina.compiler.transform.pipeline import optional

    skip = optional(from_environment().skip)
    if name in skip:
        raise click.UsageError(f"LAMINA_SKIP leaves out the pass {name}: no stage comes of it; "
                               "name another stage, or unset the variable")
    if skip:
        click.echo(f"note: LAMINA_SKIP leaves out {' and '.join(sorted(skip))}", err=True)
    return skip


def _split(file: str) -> tuple[str, str]:
    """A file's path or zoo name, and what is picked in it after a `#`."""
    name, mark, choice = file.rpartition("#")
    return (name, choice) if mark and not Path(file).exists() else (file, "")


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def _net(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], option: str = "-o") -> Any:
    from lamina.commands.selection import select_net

    return select_net(*_split(file), _pairs(overrides), _pairs(sizes), option)


def _training(file: str, overrides: tuple[str, ...]) -> Any:
    from lamina.api import load

    name, choice = _split(file)
    return load(name).recipe(choice or None, **_pairs(overrides))


def _trained(file: str, overrides: tuple[str, ...]) -> tuple[Any, Any]:
    from lamina.commands.selection import select_trained

    return select_trained(*_split(file), _pairs(overrides))


def _runnable(file: str, overrides: tuple[str, ...], sizes: tuple[str, ...], for_training: bool,
              every: Every, option: str) -> tuple[Any, Any]:
    """A model, and its training step if that is what runs, as `option` asks for."""
    from lamina.commands.selection import select_training

    if for_training:
        return select_training(*_split(file), _pairs(overrides), _pairs(sizes), every)
    if every is not None:
        raise click.UsageError("--checkpoint-every is for training steps, as only gradients need "
                               f"what is kept: add {option}, or leave it out")
    return _net(file, overrides, sizes), None


def _require_path(path: str, paths: list[str]) -> None:
    if path not in paths:
        _fail(f"no layer has the path `{path}`", path, paths)


def _columns(text: str, known: tuple[str, ...]) -> list[str]:
    """The columns of a list such as in,out,macs."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*known, "all"):
            _fail(f"no column is named `{name}`", name, known)
    if not names:
        _fail("no column is named", "", known)
    every = [one for name in names for one in (known if name == "all" else (name,))]
    return list(dict.fromkeys(every))


def _measured(graph: Any, wanted: list[str]) -> list[str]:
    """The inputs over which receptive fields are asked for, or all that have them."""
    from lamina.compiler.inspect.paths import measurable

    known = measurable(graph)
    for name in wanted:
        if name not in graph.inputs:
            _fail(f"no input is named `{name}`", name, tuple(graph.inputs))
        if name not in known:
            _fail(f"`{name}` has no axes but batch and channels to measure fields along", "", ())
    if not known:
        _fail("no input has axes to measure receptive fields along", "", ())
    return [name for name in known if name in wanted or not wanted]


def _fail(message: str, word: str, candidates: Any) -> None:
    found = suggest(word, candidates)
    names = list(candidates)
    listed = f"; there are: {', '.join(names)}" * bool(names)
    if len(names) > MAX_LISTED:
        near = get_close_matches(word[:64], names, FEW, 0.3) or names[:FEW]
        listed = f"; there are {len(names)}, such as: {', '.join(near)}"
    hint = f"; did you mean `{found}`?" if found else listed
    raise click.UsageError(message + hint)


if __name__ == "__main__":
    main()
