"""Options that several verbs share, and the parsing of their values.

Options that belong together are the fields of a dataclass, which `grouped` verbs take as one value.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cloister
from cloister import authority
from cloister.base.reading import parsing
from cloister.bundle.bundle_header import is_bundle_file
from cloister.cli.console import note
from cloister.cli.reading_options import CellOptions
from cloister.data.preprocessing import Channels, Layout, Preprocessing
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.input_files import ARRAYS, TABLE, Inputs, picture_form, read_inputs
from cloister.graph.sample_form import own_pixels
from cloister.plan import split_report
from cloister.plan.plan import Plan
from cloister.plan.plan_choice import DEFAULT_POLICY, PlanChoice, is_plan_file, read_digest
from cloister.plan.policies import NAMES, needs_ranges
from cloister.plan.protection import HIDDEN_END
from cloister.plan.split_choice import AUTO, FAMILY, SplitRequest
from cloister.plan.split_report import AuditedPixels, SplitReport
from cloister.trusted.clips import OnClip
from cloister.trusted.pads.factory import Rate
from cloister.trusted.session import DEFAULT_BATCH

if TYPE_CHECKING:
    from cloister.authority import AuthorityClient

PREPROCESSING = "Preprocessing of pictures: (pixel * scale - mean) / std"
PLANNING = "The plan of a model"
WORKING = "How it is computed"


class IntegrityName(StrEnum):
    """What a plan with a split checks: the names in `protection.INTEGRITY`."""

    FULL = "full"
    PREFIX = "prefix"
    NONE = "none"


ModelFile = Annotated[str, typer.Argument(metavar="MODEL", help="The model, such as model.onnx.")]
ModelPlanOrBundle = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|FILE.plan|FILE.bundle",
        help="The model, a plan that `cloister plan` wrote, or a bundle that a vendor sealed.",
    ),
]
ModelOrPlan = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|FILE.plan", help="The model, or a plan that `cloister plan` wrote."
    ),
]
InputFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Pictures, arrays (.npy, .npz), tables (.csv) or folders.",
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="|".join((*NAMES, FAMILY, HIDDEN_END)),
        help="Who computes what. Default: slalom; of compile: open. A hidden end adds +ennclave.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar=f"NODE[,NODE]|{AUTO}",
        help="Of policy origami: the last nodes before the split, up to which values are hidden, "
        f"or the first that --audit accepts. Default: {AUTO}.",
        rich_help_panel=PLANNING,
    ),
]
Integrity = Annotated[
    IntegrityName | None,
    typer.Option(
        "--integrity",
        help="Of policy origami, and a goal of plan: which answers are checked: all, those before "
        "the split, or none, which trusts the worker. Without a value, and by default: full.",
        rich_help_panel=PLANNING,
    ),
]
SplitAudit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE|DIR",
        help="A report of `cloister audit input`, which has to accept the split.",
        rich_help_panel=PLANNING,
    ),
]
PinnedDigest = Annotated[
    str | None,
    typer.Option("--digest", metavar="HEX", help="Refuse any plan but the one of this digest."),
]
CalibrationFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="PATH",
        help="Typical inputs that set the fixed-point ranges: a file, a folder or a quoted "
        "pattern. Repeatable.",
        rich_help_panel=PLANNING,
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option(
        "--weight-bits", help="Signed bits of the weights. Default: 12.", rich_help_panel=PLANNING
    ),
]
ActivationBits = Annotated[
    int | None,
    typer.Option(
        "--activation-bits",
        help="Signed bits of the activations. Default: 12.",
        rich_help_panel=PLANNING,
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
        "--scale",
        help="Factor for pixels of 0..255, as 1/255 or 1/127.5.",
        rich_help_panel=PREPROCESSING,
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
Background = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="COLOUR",
        help="Behind transparent pixels, as white or #rrggbb. Default: refused.",
        rich_help_panel=PREPROCESSING,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAME,NAME,...",
        help="Columns of a CSV file that are the features, in the model's order. Default: all.",
    ),
]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        metavar="NAME=SIZE",
        help="A number for a free size of the model's inputs, by its name in the file, or batch. "
        "Repeatable. Default: that of the inputs.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the trusted side.")]
ProcessThreads = Annotated[int, typer.Option("--threads", min=1, help="Threads of this process.")]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="HOST:PORT",
        help="Repeatable. Default: a local process.",
        rich_help_panel=WORKING,
    ),
]
WorkerThreads = Annotated[
    int | None,
    typer.Option(
        "--worker-threads",
        min=1,
        help="Threads of the local worker. Default: 1.",
        rich_help_panel=WORKING,
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", min=1, help="Inputs per message.", rich_help_panel=WORKING)
]
Lanes = Annotated[
    int | None,
    typer.Option(
        "--lanes",
        min=1,
        help="Messages on their way at once. Default: one for each worker.",
        rich_help_panel=WORKING,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.001,
        help="Seconds a worker may take per layer. Default: 60.",
        rich_help_panel=WORKING,
    ),
]
OnClipChoice = Annotated[
    OnClip | None,
    typer.Option(
        "--on-clip",
        help="About inputs outside the calibrated range: warn, give no outputs, or say nothing. "
        "Default: warn.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PadFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of sealed pads.")]
PadKey = Annotated[
    Path,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The pads' key and use counter; keep it on trusted storage and never copy it back.",
    ),
]
_AUTHORITY_URL = typer.Option(
    "--authority", metavar="URL", help="https://HOST:PORT of the authority."
)
_PIN = typer.Option("--pin", metavar="FILE", help="The authority's public file, authority.pub.")
_TOKEN = typer.Option(
    "--token",
    envvar="CLOISTER_TOKEN",
    metavar="TOKEN",
    help="Bearer token, or @FILE that holds it.",
)
AuthorityUrl = Annotated[str, _AUTHORITY_URL]
Pin = Annotated[Path, _PIN]
Token = Annotated[str, _TOKEN]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")]


def load_model(model: str, dim: Sequence[str] | None = None) -> Graph:
    """The model in a file, with the numbers of --dim for free sizes.

    Raises   InputError, for a plan too: it holds no float32 weights to compare or plan with
    """
    refuse_plan(model)
    return cloister.load(model, dims=sizes(dim))


def sizes(dim: Sequence[str] | None) -> dict[str, int]:
    """The sizes of --dim by name.

    Raises   InputError
    """
    dims: dict[str, int] = {}
    for text in dim or ():
        name, _, size = text.rpartition("=")
        if not name or not (size.isascii() and size.isdigit()):
            raise InputError(f"--dim {text}: give NAME=SIZE, such as T=128")
        if dims.setdefault(name, int(size)) != int(size):
            raise InputError(f"--dim {text}: {name} is {dims[name]} already; give it once")
    return dims


def refuse_plan(model: str) -> None:
    """Take a model's file only.

    Raises   InputError for a plan and for a bundle
    """
    if is_plan_file(model):
        raise InputError(f"{model}: is a plan; give the model that it was made from")
    if is_bundle_file(model):
        raise InputError(
            f"{model}: is a bundle; `cloister run` runs it, and `cloister bundle show` shows it"
        )


@dataclass(frozen=True)
class ChosenPolicy:
    """A policy, where it stops to hide values, and numbers for the model's free sizes."""

    policy: PolicyName = None
    until: Until = None
    integrity: Integrity = None
    audit: SplitAudit = None
    dim: Dims = None

    @property
    def split(self) -> SplitRequest:
        """The options about a split."""
        integrity = None if self.integrity is None else self.integrity.value
        return SplitRequest(self.until, integrity, self.audit)

    def load(self, model: str) -> Graph:
        """The model in a file; see `load_model`."""
        return load_model(model, self.dim)

    def _refuse_dims(self, decided_by: str) -> None:
        refuse_given(f"is decided by the {decided_by}; leave it out", {"--dim": self.dim})

    @property
    def named(self) -> str:
        """The policy's name, or the default's.

        Raises   InputError for options that contradict it
        """
        return self.split.policy(self.policy) or DEFAULT_POLICY

    def inspected(self, path: str, *, digest: str | None) -> Plan:
        """The plan in a file, of any policy if none is named: it is shown, and not run.

        Raises   InputError, PlanError
        """
        self._refuse_dims("plan")
        plan = Plan.load(
            path,
            policy=self.split.policy(self.policy),
            digest=None if digest is None else read_digest(digest),
        )
        # Nothing is run: whoever looks at a plan learns where it is split.
        self.split.confirm(plan, what=path, pinned=True)
        return plan


@dataclass(frozen=True)
class ModelInputs(ChosenPolicy, CellOptions):
    """How files become inputs of a model, and how the model becomes a plan."""

    calibration: CalibrationFiles = None
    weight_bits: WeightBits = None
    activation_bits: ActivationBits = None
    mean: Mean = "0"
    std: Std = "1"
    scale: Scale = "1/255"
    layout: ModelLayout = None
    channels: ChannelOrder = None
    resize: Resize = None
    background: Background = None
    columns: Columns = None

    def preprocessing(self) -> Preprocessing:
        """The options' texts as values.

        Raises   InputError naming the option
        """
        deviations = numbers(self.std, option="--std")
        if min(deviations) <= 0:
            raise InputError(f"--std {self.std}: every value must be positive")
        factors = numbers(self.scale, option="--scale")
        if len(factors) != 1 or factors[0] <= 0:
            raise InputError(f"--scale {self.scale}: give one positive number")
        return Preprocessing(
            scale=factors[0],
            mean=numbers(self.mean, option="--mean"),
            std=deviations,
            layout=self.layout,
            channels=self.channels,
            resize=None if self.resize is None else picture_size(self.resize),
            background=self.background,
        )

    def check_samples(self, policy: str, *, given: bool = False) -> None:
        """Refuse a command that lacks typical inputs, or says how to read some that it lacks.

        given   whether it names inputs besides --calibration

        Raises   InputError naming the option
        """
        if given or self.calibration:
            return
        if self.audit is None and needs_ranges(policy):
            raise InputError(
                "--calibration: name typical inputs: a file, a folder or a quoted pattern"
            )
        usual = ModelInputs()
        texts = {"--mean": "mean", "--std": "std", "--scale": "scale"}
        said = {option: getattr(self, field) for option, field in texts.items()}
        refuse_given(
            "is about reading inputs, and none are named; leave it out",
            {
                **{o: t for o, t in said.items() if t != getattr(usual, texts[o])},
                "--layout": self.layout, "--channels": self.channels, "--resize": self.resize,
                "--background": self.background, "--columns": self.columns,
                "--missing": self.missing, "--separator": self.separator,
                "--decimal": self.decimal, "--thousands": self.thousands,
                "--date-format": self.date_format, "--encoding": self.encoding,
            },
        )  # fmt: skip

    def read(self, graph: Graph, paths: Sequence[Path]) -> Inputs:
        """The inputs in files.

        Raises   InputError, PlanError for pictures that become other inputs than those of --audit
        """
        pictured = [p for p in paths if p.suffix.lower() not in (*ARRAYS, TABLE)]
        if self.audit is not None and pictured:
            pixels = own_pixels(graph, self.preprocessing())
            form = picture_form(graph, graph.inputs[0], pictured[0], pixels)
            made = AuditedPixels(*pixels.of_unit_pixels, str(form.channels))
            split_report.load(self.audit).require_pixels(made)
        columns = None if self.columns is None else self.columns.split(",")
        return read_inputs(
            graph, paths, self.preprocessing(), columns=columns, written=self.table(), note=note
        )

    def plan(
        self,
        graph: Graph,
        *,
        inputs: Inputs | None = None,
        stored: Plan | None = None,
        whole: Graph | None = None,
        digest: str | None = None,
        inside: frozenset[str] | None = None,
        audit: SplitReport | None = None,
    ) -> tuple[Plan, str]:
        """See `PlanChoice.make`."""
        typical = self.read(graph, self.calibration) if self.calibration else None
        return replace(self._choice(digest), inside=inside).make(
            graph, calibration=typical, inputs=inputs, stored=stored, whole=whole, audit=audit
        )

    def load_plan(self, path: str, *, digest: str | None = None) -> tuple[Plan, str]:
        """See `PlanChoice.load`."""
        self._refuse_dims("plan")
        if self.calibration:
            raise InputError("--calibration: is decided by the plan; leave it out")
        return self._choice(digest).load(Path(path))

    def accept_plan(self, plan: Plan, path: str, *, digest: str | None) -> tuple[Plan, str]:
        """See `PlanChoice.accept`."""
        self._refuse_dims("bundle")
        if self.calibration:
            raise InputError("--calibration: is decided by the plan; leave it out")
        return self._choice(digest).accept(plan, Path(path))

    def _choice(self, digest: str | None) -> PlanChoice:
        bits = self.weight_bits, self.activation_bits
        return PlanChoice(self.policy, *bits, digest, self.split)


@dataclass(frozen=True)
class Execution:
    """Who computes, and how many messages at once."""

    worker: Workers = None
    threads: Threads = 1
    worker_threads: WorkerThreads = None
    batch: Batch = DEFAULT_BATCH
    lanes: Lanes = None
    timeout: Timeout = None

    def refuse_unused(self, plan: Plan) -> None:
        """Refuse options about workers that the plan does not have, or that are not started here.

        Raises   InputError naming the option
        """
        if not any(protection.on_worker for protection in plan.protections.values()):
            refuse_given(
                f"policy {plan.policy} sends nothing to a worker; leave it out",
                {
                    "--worker": self.worker,
                    "--worker-threads": self.worker_threads,
                    "--timeout": self.timeout,
                },
            )
        if self.worker:
            refuse_given(
                "is about the local worker, and --worker names others; leave it out",
                {"--worker-threads": self.worker_threads},
            )


LEARNS = "Who learns what"
RETRY_FOR_S = 5.0
"""On one connection to an authority; beyond, what asks waits as long as its patience lasts."""
CiphertextHost = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="local|URL",
        help="With --unblind-to trusted: who computes on the ciphertexts.",
        rich_help_panel=LEARNS,
    ),
]
CiphertextHostAccess = Annotated[
    Path | None,
    typer.Option(
        "--access",
        metavar="FILE",
        help="The file of that ciphertext host that `cloister data init` made; it holds a token.",
        rich_help_panel=LEARNS,
    ),
]
ServicePatience = Annotated[
    float,
    typer.Option(
        "--patience", min=0, help="Seconds to wait for an authority or host that is away."
    ),
]


@dataclass(frozen=True)
class AuthorityAccess:
    """How the authority is reached, and who asks."""

    url: AuthorityUrl
    pin: Pin
    token: Token

    def connect(self, **more: float) -> "AuthorityClient":
        """See `cloister.authority.connect`."""
        return authority.connect(self.url, pin=self.pin, token=token(self.token), **more)


@dataclass(frozen=True)
class OptionalAuthority:
    """As `AuthorityAccess`, for a verb that says more where it may ask an authority."""

    url: Annotated[str | None, _AUTHORITY_URL] = None
    pin: Annotated[Path | None, _PIN] = None
    token: Annotated[str | None, _TOKEN] = None

    def connect(self) -> "AuthorityClient | None":
        """A client; None: no authority is named.

        Raises   InputError when only some of the options are given
        """
        if self.url is None and self.pin is None:
            return None
        if self.url is None or self.pin is None or self.token is None:
            raise InputError("an authority is asked with --authority, --pin and --token")
        return AuthorityAccess(self.url, self.pin, self.token).connect()


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb of which every dataclass parameter is given as one option for each of its fields."""
    signature = inspect.signature(verb)
    groups: dict[str, type] = {
        name: given.annotation
        for name, given in signature.parameters.items()
        if isinstance(given.annotation, type) and is_dataclass(given.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, given in signature.parameters.items():
        if name not in groups:
            parameters.append(given.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for one in fields(groups[name]):
            default = inspect.Parameter.empty if one.default is MISSING else one.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(
                inspect.Parameter(one.name, kind, default=default, annotation=one.type)
            )

    @wraps(verb)
    def command(**options: Any) -> None:  # noqa: ANN401  (as Typer calls it)
        for name, group in groups.items():
            chosen = {one.name: options.pop(one.name) for one in fields(group)}
            options[name] = group(**chosen)
        verb(**options)

    vars(command)["__signature__"] = signature.replace(parameters=parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def read_time(option: str, text: str) -> datetime:
    """A time with its zone, in UTC.

    Raises   InputError naming the option
    """
    with parsing(f"{option} {text}: must be such as 2026-01-31T12:00Z"):
        found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise InputError(f"{option} {text}: has no time zone; write it such as 2026-01-31T12:00Z")
    return found.astimezone(UTC)


def refuse_given(why: str, options: Mapping[str, object]) -> None:
    """Refuse options that were given and have no meaning here.

    Raises   InputError naming the first
    """
    for name, given in options.items():
        if given is not None:
            raise InputError(f"{name}: {why}")


def numbers(text: str, *, option: str) -> tuple[float, ...]:
    """Comma-separated numbers; fractions such as 1/255 and 1/127.5 are allowed.

    Raises InputError naming the option.
    """
    try:
        return tuple(_number(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{option} {text}: give numbers separated by commas") from None


def _number(text: str) -> float:
    above, *below = (Fraction(part.strip()) for part in text.split("/"))
    if len(below) > 1:
        raise ValueError("a fraction has one numerator and one denominator")
    return float(above / below[0] if below else above)


def integers(text: str, *, option: str) -> tuple[int, ...]:
    """Comma-separated integers.

    Raises   InputError naming the option
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: give whole numbers separated by commas") from None


def value_range(text: str) -> tuple[float, float]:
    """The ends of --range LOW,HIGH.

    Raises   InputError
    """
    ends = numbers(text, option="--range")
    if len(ends) != 2:
        raise InputError("--range: give LOW,HIGH")
    return ends[0], ends[1]


def picture_size(text: str) -> tuple[int, int]:
    """The height and width of --resize H,W.

    Raises   InputError
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--resize {text}: give height,width in pixels")
    return int(parts[0]), int(parts[1])


def rate(text: str) -> Rate:
    """A limit on making pads, such as 25% (of the time) or 100/h (pads).

    Raises   InputError
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%|/h)", text)
    if match is None:
        raise InputError(f"--rate {text}: give a share of the time, as 25%, or pads, as 100/h")
    number = float(match[1])
    return Rate(share=number / 100) if match[2] == "%" else Rate(per_hour=number)


def token(text: str) -> str | Path:
    """A token given as such, or as @FILE.

    Raises   InputError for a file's name without its @
    """
    if text.startswith("@"):
        return Path(text[1:])
    if len(text) < 256 and Path(text).is_file():  # as long as a name may be
        raise InputError(f"--token {text}: is a file; give --token @{text}")
    return text.strip()
