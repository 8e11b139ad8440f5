"""The command `cloister`: assembles the verbs and turns errors into one line and an exit code."""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from cloister.cli import (
    audit,
    authority_verbs,
    bench_verbs,
    compare,
    data_verbs,
    demo,
    demo_training,
    inspect,
    pads,
    plan,
    run,
    train_verbs,
    worker,
)
from cloister.cli.console import err, out
from cloister.cli.options import spread
from cloister.errors import CloisterError, VerificationError

EXIT_PIPE = 1
EXIT_ERROR = 2
EXIT_NOT_VERIFIED = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Run neural networks on hardware you do not trust.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(inspect.inspect)
app.command()(plan.plan)
app.command()(run.run)
app.command()(compare.compare)
app.command()(worker.worker)
app.command()(train_verbs.train)
app.command()(demo_training.demo_training)
app.add_typer(pads.app, name="pads")
app.add_typer(data_verbs.app, name="data")
app.add_typer(authority_verbs.app, name="authority")
app.add_typer(audit.app, name="audit")
app.add_typer(bench_verbs.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        out().print(f"cloister {version('cloister')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run neural networks on hardware you do not trust."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 done, 1 the reader of a pipe has left, 2 an error the message explains, 3 a worker's answer
    was wrong, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(spread(given) or ["--help"], prog_name="cloister", standalone_mode=False)
        sys.stdout.flush()
    except VerificationError as error:
        return _fail(error, EXIT_NOT_VERIFIED)
    except CloisterError as error:
        return _fail(error, EXIT_ERROR)
    except typer.TyperException as error:
        return _fail(error.format_message(), EXIT_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left; point stdout elsewhere so that the exit flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_ERROR)
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    err().print(f"warning: {' '.join(str(message).split())}", soft_wrap=True)


def _fail(error: object, code: int) -> int:
    err().print(f"error: {' '.join(str(error).split())}", soft_wrap=True)
    return code
