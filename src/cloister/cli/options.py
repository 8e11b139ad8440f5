"""Options that several verbs share, and the parsing of their values."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.images import Channels, Layout, Preprocessing
from cloister.errors import InputError
from cloister.plan.plan import SUFFIX
from cloister.plan.policies import NAMES
from cloister.trusted.clips import OnClip

PREPROCESSING = "Preprocessing of pictures: (pixel * scale - mean) / std"
SEVERAL = ("--input", "--calibration")
"""Options that take every file that follows them, as a shell's glob writes them."""

ModelFile = Annotated[str, typer.Argument(metavar="MODEL.onnx", help="The model.")]
ModelOrPlan = Annotated[
    str,
    typer.Argument(
        metavar="MODEL.onnx|FILE.plan", help="The model, or a plan that `cloister plan` wrote."
    ),
]
PinnedDigest = Annotated[
    str | None,
    typer.Option("--digest", metavar="HEX", help="Refuse any plan but the one of this digest."),
]
InputFiles = Annotated[
    list[Path],
    typer.Option(
        "--input",
        metavar="FILES...",
        help="Pictures (PNG, JPEG), arrays (.npy, .npz) or folders of them.",
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", metavar="|".join(NAMES), help="Who computes what. Default: slalom."),
]
CalibrationFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="FILES...",
        help="Typical inputs that set the fixed-point ranges.",
    ),
]
WeightBits = Annotated[
    int | None, typer.Option("--weight-bits", help="Signed bits of the weights. Default: 12.")
]
ActivationBits = Annotated[
    int | None,
    typer.Option("--activation-bits", help="Signed bits of the activations. Default: 12."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the trusted side.")]
Lanes = Annotated[
    int | None,
    typer.Option(
        "--lanes", min=1, help="Messages on their way at once. Default: one for each worker."
    ),
]
OnClipChoice = Annotated[
    OnClip,
    typer.Option(
        "--on-clip",
        help="About inputs outside the calibrated range: warn, give no outputs, or say nothing.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
AuthorityUrl = Annotated[
    str, typer.Option("--authority", metavar="URL", help="https://HOST:PORT of the authority.")
]
Pin = Annotated[
    Path, typer.Option("--pin", metavar="FILE", help="The authority's public file, authority.pub.")
]
Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="CLOISTER_TOKEN",
        metavar="TOKEN",
        help="Bearer token, or @FILE that holds it.",
    ),
]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")]
PadStoreFolder = Annotated[
    Path, typer.Option("--store", metavar="PATH", help="Folder of sealed pads.")
]
PadKeyFile = Annotated[
    Path,
    typer.Option(
        "--pad-key",
        metavar="FILE",
        help="The store's key and use counter; keep it on trusted storage and never copy it back.",
    ),
]

Mean = Annotated[
    str,
    typer.Option(
        "--mean",
        help="Number, or one per channel: 0.485,0.456,0.406.",
        rich_help_panel=PREPROCESSING,
    ),
]
Std = Annotated[
    str,
    typer.Option("--std", help="Number, or one per channel.", rich_help_panel=PREPROCESSING),
]
Scale = Annotated[
    str,
    typer.Option(
        "--scale", help="Factor for pixels of 0..255, as 1/255 or 1.", rich_help_panel=PREPROCESSING
    ),
]
ModelLayout = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="The model's axes. Default: where the channels are.",
        rich_help_panel=PREPROCESSING,
    ),
]
ChannelOrder = Annotated[
    Channels | None,
    typer.Option(
        "--channels",
        help="The model's channels. Default: rgb, or gray for one.",
        rich_help_panel=PREPROCESSING,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="H,W",
        help="Bilinear, then cut the centre. Default: the model's input size.",
        rich_help_panel=PREPROCESSING,
    ),
]


def preprocessing(
    *,
    mean: str,
    std: str,
    scale: str,
    layout: Layout | None,
    channels: Channels | None,
    resize: str | None,
) -> Preprocessing:
    """The options' texts as values.

    Raises InputError naming the option.
    """
    deviations = numbers(std, option="--std")
    if min(deviations) <= 0:
        raise InputError(f"--std {std}: every value must be positive")
    factors = numbers(scale, option="--scale")
    if len(factors) != 1 or factors[0] <= 0:
        raise InputError(f"--scale {scale}: give one positive number")
    return Preprocessing(
        scale=factors[0],
        mean=numbers(mean, option="--mean"),
        std=deviations,
        layout=layout,
        channels=channels,
        resize=None if resize is None else _size(resize),
    )


def refuse_planning(
    calibration: Sequence[Path] | None, weight_bits: int | None, activation_bits: int | None
) -> None:
    """Refuse options that make a plan, beside a plan that is made already.

    Raises   InputError
    """
    given = {
        "--calibration": calibration, "--weight-bits": weight_bits,
        "--activation-bits": activation_bits,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise InputError(f"{name}: a plan's file says that already; leave it out")


def numbers(text: str, *, option: str) -> tuple[float, ...]:
    """Comma-separated numbers; fractions such as 1/255 are allowed.

    Raises InputError naming the option.
    """
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{option} {text}: give numbers separated by commas") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--resize {text}: give height,width in pixels")
    return int(parts[0]), int(parts[1])


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option before each file that follows it: `--input a b` is `--input a --input b`.

    The files of an option end at the next option, at `--` and at a model or plan, which is never an
    input.
    """
    result: list[str] = []
    current = None
    waiting = False
    for i, argument in enumerate(arguments):
        if argument == "--":
            return result + list(arguments[i:])
        if argument.startswith("-") and argument != "-":
            option = argument.partition("=")[0]
            current = option if option in SEVERAL else None
            waiting = current is not None and "=" not in argument
        elif current is not None and argument.endswith((".onnx", SUFFIX)) and not waiting:
            current = None
        elif current is not None and not waiting:
            result.append(current)
        else:
            waiting = False
        result.append(argument)
    return result


def token(text: str) -> str | Path:
    """A token given as such, or as @FILE.

    Raises   InputError for a file's name without its @
    """
    if text.startswith("@"):
        return Path(text[1:])
    if len(text) < 256 and Path(text).is_file():  # as long as a name may be
        raise InputError(f"--token {text}: is a file; give --token @{text}")
    return text.strip()
