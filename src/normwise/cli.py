"""The command line: parse, call, print. What a command does lives in the package it calls."""

import contextlib
import json
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from typer import Argument, Option
    from typer._click.exceptions import ClickException as UsageOfCommand  # typer shows no public name for it
except ModuleNotFoundError as error:
    raise SystemExit(f"normwise: the command needs {error.name}; run: pip install 'normwise[lab]'") from None

app = typer.Typer(
    name="normwise",
    help="Which normalization should this network use? Measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def everything(version: Annotated[bool, Option("--version", help="Print the version and stop.")] = False) -> None:
    """Which normalization should this network use? Measure it."""
    if version:
        from normwise import __version__

        print(f"normwise {__version__}")
        raise typer.Exit


Json = Annotated[bool, Option("--json", help="Print one JSON object on standard output, nothing else.")]
Out = Annotated[Path | None, Option("--out", "-o", help="The run's folder; an earlier run's is continued.")]
OUT = Annotated[Path | None, Option("-o", "--out", help="Folder for plan.json and weights.safetensors.")]
DryRun = Annotated[bool, Option("--dry-run", help="Print the plan and stop.")]
INTERRUPTED = 130
Text = str | None
Texts = list[str] | None


def _show(content: dict[str, Any], as_json: bool, text: Any) -> None:
    """Prints the result once: as JSON, or as whatever `text()` makes for people."""
    if as_json:
        print(json.dumps(content, allow_nan=False))
    else:
        from rich.console import Console

        console, said = Console(), text()
        whole = isinstance(said, str) and not console.is_terminal  # a pipe gets its lines unbroken
        console.print(said, markup=False, highlight=False, soft_wrap=whole)


@app.command()
def compare(
    task: Annotated[Text, Argument(help="digits, fashion-mnist, package.module:function, file.py:function.")] = None,
    model: Annotated[Text, Option(help="cnn, resnet, mlp (cnn:width=16), or package.module:function.")] = None,
    data: Annotated[Text, Option(help="A data set's name, an image folder, an .npz, or a function.")] = None,
    norm: Annotated[Texts, Option(help="An arm: a spec such as batch or group:8; repeat for more.")] = None,
    batch_size: Annotated[list[int] | None, Option(help="Repeat for more; default 8 and 64.")] = None,
    budget: Annotated[Text, Option(help="90s, 2m, 1h or 200trials; default 10m.")] = None,
    epochs: Annotated[float | None, Option(help="Training length; default: the task's own.")] = None,
    delta: Annotated[Text, Option(help="Smallest difference of interest, in the score's unit, or 2%.")] = None,
    device: Annotated[Text, Option(help="cpu (default), cuda, ...")] = None,
    precision: Annotated[Text, Option(help="fp32 (default), bf16 or fp16 (autocast).")] = None,
    processes: Annotated[int | None, Option(help="Processes that train one trial together (DDP); default 1.")] = None,
    workers: Annotated[int | None, Option(help="Trials at once; default: one a core.")] = None,
    engine: Annotated[Text, Option(help="local (default) or ray.")] = None,
    ray_address: Annotated[Text, Option(help="A running Ray cluster, host:port; default: Ray on this machine.")] = None,
    stack: Annotated[Text, Option(help="Trials trained as one: auto (default), off, or at most so many.")] = None,
    ledger: Annotated[Text, Option(help="An Optuna storage URL instead of the journal file.")] = None,
    out: Out = None,
    seed: Annotated[int | None, Option(help="Master seed; default 0.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Say which normalization a network should use, at which batch size, by how much."""
    from normwise.experiment.compare import run_request
    from normwise.experiment.request import Request
    from normwise.report import console

    request = Request(
        task=task, model=model, data=data, norms=norm or None, batch_sizes=batch_size or None, budget=budget,
        epochs=epochs, delta=delta, device=device, precision=precision, processes=processes, engine=engine,
        ray_address=ray_address, stack=stack, ledger=ledger, seed=seed,
    )  # fmt: skip
    # user code may print; standard output is for the result
    with contextlib.redirect_stdout(sys.stderr), _interruptible():
        content = run_request(request, out=out, workers=workers, dry_run=dry_run)
    _show(content, as_json, lambda: console.plan(content) if dry_run else console.summary(content))
    if not dry_run and not content["config"]["finished"]:
        raise SystemExit(INTERRUPTED)  # the summary said how to continue


@app.command()
def swap(
    model: Annotated[str, Argument(help="package.module:function or file.py:function that makes the model.")],
    spec: Annotated[str, Argument(help="A spec such as group:8, a JSON mapping of patterns, or @file.")],
    out: OUT = None,
    where: Annotated[str, Option(help="Only modules whose path matches this pattern.")] = "*",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Replace a model's norms and write the changed weights with the plan."""
    from normwise.surgery.command import swap_and_save

    with contextlib.redirect_stdout(sys.stderr):
        plan, said = swap_and_save(model, spec, where=where, out=out, dry_run=dry_run)
    _show(json.loads(plan.to_json()), as_json, lambda: said)


@app.command()
def claims(
    names: Annotated[Texts, Argument(help="Claims such as B4 or i2; default: all.")] = None,
    budget: Annotated[Text, Option(help="quick, 20m, 1h: for the whole list; default 60m.")] = None,
    gate: Annotated[Texts, Option(help="Exit with 1 when this claim is contradicted; repeat for more.")] = None,
    out: Out = None,
    seed: Annotated[int, Option(help="Master seed.")] = 0,
    workers: Annotated[int | None, Option(help="Worker processes; default: one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the textbook's claims about normalization and say which hold."""
    from normwise.claims.session import gated, run_claims
    from normwise.report import claims as report

    gates = gated(gate or [], names)
    with contextlib.redirect_stdout(sys.stderr):
        content = run_claims(names, budget or "60m", out=out, seed=seed, workers=workers)
    _show(content, as_json, lambda: report.console(content))
    if not content["config"]["finished"]:
        raise SystemExit(INTERRUPTED)  # the report said how to continue
    if any(claim["id"] in gates and claim["verdict"] == "contradicted" for claim in content["claims"]):
        raise typer.Exit(1)


@app.command()
def bench(
    norm: Annotated[Texts, Option(help="batch, instance, group:8, layer, or one with +residual+relu; repeat.")] = None,
    shape: Annotated[Texts, Option(help="NxCxsizes such as 32x256x28x28 in place of the fixed list; repeat.")] = None,
    peer: Annotated[Texts, Option(help="eager, compile, jax or onnxruntime; default: all there are; repeat.")] = None,
    quick: Annotated[bool, Option("--quick", help="A few cells, under a minute.")] = False,
    everything: Annotated[bool, Option("--all", help="The whole fixed list.")] = False,
    threads: Annotated[int | None, Option(help="Threads of every peer; default: all cores.")] = None,
    allocator: Annotated[str, Option(help="Every peer's memory: system, or tcmalloc (no page faults).")] = "system",
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for bench.json and bench.html.")] = None,
    as_json: Json = False,
) -> None:
    """Time normwise on this machine beside PyTorch, torch.compile, JAX and ONNX Runtime."""
    from normwise.bench import run
    from normwise.bench.table import table
    from normwise.errors import UsageError

    if everything and quick:
        raise UsageError("--quick and --all are two lists of cells, got both; give one of them.")
    chosen = "all" if everything else "quick" if quick else "default"
    lists: dict[str, Any] = {"norms": norm or (), "shapes": shape or (), "peers": peer or ()}
    content = run.bench(chosen, **lists, threads=threads, allocator=allocator, out=out)
    _show(content, as_json, lambda: table(content))
    if not content["finished"]:
        sys.exit(INTERRUPTED)


@app.command(name="list")
def list_norms(as_json: Json = False) -> None:
    """List the normalizations normwise knows."""
    from rich.console import Console

    from normwise.layers.cards import catalogue, lines, table

    console = Console()
    _show(catalogue(), as_json, lambda: table(console.width) if console.is_terminal else lines())


@app.command()
def explain(
    name: Annotated[str, Argument(help="A norm such as batch or ibn:0.5; `normwise list` shows all.")],
    as_json: Json = False,
) -> None:
    """Explain a normalization: its pools drawn, its steps on small numbers, its cost, when to take it."""
    from normwise.layers.explain import card
    from normwise.layers.explain import explain as content

    _show(content(name), as_json, lambda: card(name))


def main() -> None:
    """The entry point: turns errors into exit codes (2 bad input, 3 internal error, 130 interrupted)."""
    try:
        code = app(prog_name="normwise", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer's own translation of Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code)
    except (KeyboardInterrupt, typer.Abort):
        continues = sys.argv[1:2] == ["claims"]
        _stop(130, "interrupted" + ("; the same command with the same --out continues" if continues else ""))
    except UsageOfCommand as error:
        error.show()
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        _stop(2, f"this needs {error.name}; run: pip install 'normwise[lab]'")
    except Exception as error:
        from normwise.errors import UsageError

        if isinstance(error, UsageError):
            _stop(2, str(error))
        _stop(3, f"internal error: {error}\nplease report it with the log {_log(error)}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C within says how to continue, where that is known."""
    try:
        yield
    except KeyboardInterrupt as interrupted:
        if interrupted.args:
            _stop(INTERRUPTED, str(interrupted))
        raise


def _stop(code: int, message: str) -> None:
    lines = f"normwise: {message}".splitlines()
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    print(*lines, sep="\n", file=sys.stderr)
    raise SystemExit(code)


def _log(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="normwise-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name
