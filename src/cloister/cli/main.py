"""The command `cloister`: assembles the verbs and turns errors into a message and an exit code."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from cloister.cli import (
    attest_verbs,
    audit_verbs,
    authority_verbs,
    bench_verbs,
    broker_verbs,
    bundle_verbs,
    data_verbs,
    demo_verbs,
    export_verbs,
    hidden_verbs,
    license_verbs,
    model_verbs,
    options,
    pads_verbs,
    predict_verbs,
    splits_verbs,
    train_verbs,
    trusted_verbs,
    worker_verbs,
)
from cloister.cli.command import EXIT_INTERRUPTED
from cloister.cli.console import err, out
from cloister.errors import CellsError, CloisterError, VerificationError

EXIT_PIPE = 1
EXIT_ERROR = 2
EXIT_NOT_VERIFIED = 3
TRACEBACK = "CLOISTER_TRACEBACK"
"""Environment variable that shows where an unexpected exception comes from."""

app = typer.Typer(
    help="Run neural networks on hardware you do not trust.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
INFERENCE = "Inference on an untrusted worker"
HIDDEN = "Hidden layers"
TRAINING = "Training on encrypted data"
TRYING = "Try, attack and measure"


def _verb(verb: Callable[..., None], panel: str, example: str) -> None:
    app.command(rich_help_panel=panel, epilog=f"Example: cloister {example}")(verb)


_verb(model_verbs.plan, INFERENCE, "plan model.onnx --calibration photos --out model.plan")
_verb(model_verbs.run, INFERENCE, "run model.plan photo.png --worker gpu.example:7000")
_verb(model_verbs.compare, INFERENCE, "compare model.onnx photos --calibration typical")
_verb(model_verbs.inspect, INFERENCE, "inspect model.onnx --policy verified")
app.add_typer(pads_verbs.app, name="pads", rich_help_panel=INFERENCE)
app.add_typer(worker_verbs.app, name="worker", rich_help_panel=INFERENCE)
app.add_typer(attest_verbs.app, name="attest", rich_help_panel=INFERENCE)
app.add_typer(trusted_verbs.app, name="trusted", rich_help_panel=INFERENCE)
_verb(hidden_verbs.compile, HIDDEN, "compile model.onnx --last 2 --answers label --out head")
app.add_typer(bundle_verbs.app, name="bundle", rich_help_panel=HIDDEN)
app.add_typer(license_verbs.app, name="license", rich_help_panel=HIDDEN)
app.add_typer(broker_verbs.app, name="broker", rich_help_panel=HIDDEN)
app.add_typer(data_verbs.app, name="data", rich_help_panel=TRAINING)
app.add_typer(authority_verbs.app, name="authority", rich_help_panel=TRAINING)
_verb(
    train_verbs.train, TRAINING,
    "train data.cloister --authority https://key.example:8443 --pin authority.pub "
    "--token @server.token",
)  # fmt: skip
_verb(
    predict_verbs.predict, TRAINING,
    "predict model data.cloister --authority https://key.example:8443 --pin authority.pub "
    "--token @server.token --out data.answers --answers-to client",
)  # fmt: skip
_verb(
    predict_verbs.answers, TRAINING,
    "answers data.answers --authority https://key.example:8443 --pin authority.pub "
    "--token @client.token --order order.npz --out predictions.csv",
)  # fmt: skip
_verb(
    export_verbs.export, TRAINING,
    "export model --out model.onnx --authority https://key.example:8443 --pin authority.pub "
    "--token @client.token",
)  # fmt: skip
app.add_typer(demo_verbs.app, name="demo", rich_help_panel=TRYING)
app.add_typer(audit_verbs.app, name="audit", rich_help_panel=TRYING)
app.add_typer(bench_verbs.app, name="bench", rich_help_panel=TRYING)
_verb(splits_verbs.splits, TRYING, "splits --preset mnist --cache presets --out page")


def with_integrity(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which an --integrity without a value stands for all integrity there is."""
    known = tuple(options.IntegrityName)
    return [
        f"--integrity={options.IntegrityName.FULL}"
        if one == "--integrity" and (i + 1 == len(arguments) or arguments[i + 1] not in known)
        else one
        for i, one in enumerate(arguments)
    ]


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
    given = with_integrity(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(given or ["--help"], prog_name="cloister", standalone_mode=False)
        sys.stdout.flush()
    except VerificationError as error:
        return _fail(error, EXIT_NOT_VERIFIED)
    except CloisterError as error:
        return _fail(error, EXIT_ERROR)
    except typer.TyperException as error:
        # A group without a verb has printed its help, and there is nothing more to say.
        message = error.format_message()
        return _fail(message, EXIT_ERROR) if message else EXIT_ERROR
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left; point stdout elsewhere so that the exit flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_ERROR)
    except Exception as error:  # noqa: BLE001  (the last resort: a fault of Cloister or a library)
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        return _fail(
            f"{type(error).__name__}: {error}; this is a fault of Cloister or of a library: please "
            f"report it with the output of {TRACEBACK}=1", EXIT_ERROR,
        )  # fmt: skip
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    err().print(f"warning: {' '.join(str(message).split())}", soft_wrap=True)


def _fail(error: object, code: int) -> int:
    lines = error.lines if isinstance(error, CellsError) else ()
    first, *others = lines or (str(error),)
    err().print(f"error: {' '.join(first.split())}", soft_wrap=True)
    for line in others:
        err().print(f"  {line}", soft_wrap=True)
    return code
