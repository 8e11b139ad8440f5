"""`cloister data`: encrypted data sets, as owners make them and an untrusted host holds them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from cloister import training
from cloister.authority.noise import EXACT_BITS
from cloister.authority.request_log import ReleaseLog
from cloister.base.rng import SystemRandom
from cloister.cli import clinic_verbs, options
from cloister.cli.console import emit_json, note, out, stages, table
from cloister.cli.reading_options import ReadingOptions, names
from cloister.cli.serving import serve_until_interrupted
from cloister.data.columns import PublicRange
from cloister.data.csv_source import TableSource
from cloister.data.dataset import EncryptedDataset
from cloister.data.folder_source import PictureOptions
from cloister.data.owner import LEVELS, NewDataset, Privacy, read_ranges, read_target_ranges
from cloister.data.preprocessing import Channels, Layout
from cloister.data.sources import Source, open_source
from cloister.data.table_options import TableOptions
from cloister.data.writer import PATIENCE_S
from cloister.errors import CloisterError, InputError, ShapeError
from cloister.training import ciphertext_service
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.training.data_owner import EncryptedPart
from cloister.training.proposal import DEFAULT_BITS

NEW = "A new data set"
DETAILS = "Details of --privacy"
INPUT = "Reading the data"

app = typer.Typer(
    help="Encrypt samples, show data sets, and hold them for a trusted runtime.",
    no_args_is_help=True,
)

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE...", help=".npz, .npy, .csv or folders of class folders."),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="Data set file; added to if it exists.")
]
Name = Annotated[str | None, typer.Option("--name", help="Data set id. Default: the file's name.")]
PrivacyLevel = Annotated[
    str,
    typer.Option(
        "--privacy",
        metavar=LEVELS,
        help="strict: a quarter of the rank, 1/16 of pictures from 16x16. budget=N: rank N. paper: "
        "all of it.",
    ),
]
Consent = Annotated[
    bool, typer.Option("--allow-unbounded-leakage", help="Needed for --privacy paper.")
]
Split = Annotated[
    str | None, typer.Option("--split", metavar="train|test", help="Mark all samples.")
]
TestFraction = Annotated[
    float, typer.Option("--test-fraction", min=0.0, max=1.0, help="Random part kept for testing.")
]
Unlabelled = Annotated[
    bool, typer.Option("--unlabelled", help="The samples have no labels: they are to be predicted.")
]
Noise = Annotated[
    float | None,
    typer.Option(
        "--noise",
        metavar="SIGMA",
        help="Add Gaussian noise of SIGMA times the range to every value.",
    ),
]
Order = Annotated[
    Path | None,
    typer.Option(
        "--order",
        metavar="FILE.npz",
        help="Keep which sample is which: the --truth of `cloister audit`. Keep it secret.",
    ),
]
Patience = Annotated[
    float,
    typer.Option("--patience", min=0, help="Seconds to wait for other clients that append."),
]
Digests = Annotated[
    Path | None,
    typer.Option(
        "--digests",
        metavar="FOLDER",
        help="Digests of your samples, to notice the same ones. Default: your state folder.",
    ),
]
Again = Annotated[
    bool, typer.Option("--again", help="Add samples that you have added before all the same.")
]
ValueBits = Annotated[
    int | None,
    typer.Option(
        "--value-bits",
        min=1,
        max=EXACT_BITS,
        help="Bits of each value, by noise; 32: exact. Default: 8.",
        rich_help_panel=DETAILS,
    ),
]
MaxBits = Annotated[
    int | None,
    typer.Option(
        "--max-bits",
        min=0,
        help="Bits of values given away at most. Default: 8 for each function of the budget.",
        rich_help_panel=DETAILS,
    ),
]
ManyFunctions = Annotated[
    bool,
    typer.Option(
        "--many-functions",
        help="Give values of several functions, and gradients, within the budget.",
        rich_help_panel=DETAILS,
    ),
]
LabelsTo = Annotated[
    str,
    typer.Option(
        "--labels-to",
        metavar="server|trusted",
        help="Who may get (permuted) labels.",
        rich_help_panel=DETAILS,
    ),
]
Evaluations = Annotated[
    int,
    typer.Option(
        "--evaluations",
        min=0,
        help="With --labels-to trusted: sums over labels that a server gets, for accuracies.",
        rich_help_panel=DETAILS,
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits", help=f"Signed bits of a value. Default: {DEFAULT_BITS}.", rich_help_panel=NEW
    ),
]
Range = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW,HIGH", help="Public range of all values.", rich_help_panel=NEW
    ),
]
Ranges = Annotated[
    Path | None,
    typer.Option(
        "--ranges",
        metavar="FILE",
        help='Public range of each column: {"age": [0, 120], "sex": ["f", "m"], ...}.',
        rich_help_panel=NEW,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="A,B,...",
        help="Names of all classes, labels or numbers; of those of an array in their order.",
        rich_help_panel=NEW,
    ),
]
TargetRanges = Annotated[
    Path | None,
    typer.Option(
        "--target-ranges",
        metavar="FILE",
        help='Public range of each number to be predicted: {"pressure": [50, 250], ...}.',
        rich_help_panel=NEW,
    ),
]
TargetKind = Annotated[
    Literal["classes", "labels", "numbers"] | None,
    typer.Option(
        "--targets",
        help="classes: one of several. labels: any of several, 0 and 1. numbers: to be predicted. "
        "Default: as the data suggest.",
        rich_help_panel=INPUT,
    ),
]
Clip = Annotated[
    bool,
    typer.Option(
        "--clip", help="Bring values outside the range to its ends.", rich_help_panel=INPUT
    ),
]
X = Annotated[str, typer.Option("--x", help="Array of samples in .npz.", rich_help_panel=INPUT)]
Y = Annotated[
    str,
    typer.Option("--y", help="Array of targets in .npz, or a file .npy.", rich_help_panel=INPUT),
]
ArrayLayout = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="Axes of arrays of pictures. Default: nhwc, refused if the channels seem to be first.",
        rich_help_panel=INPUT,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="COLOUR",
        help="Behind transparent pixels of pictures, as white or #rrggbb. Default: refused.",
        rich_help_panel=INPUT,
    ),
]
PictureChannels = Annotated[
    Channels | None,
    typer.Option(
        "--channels",
        metavar="gray|rgb",
        help="Of all pictures. Default: as they are, if these are alike.",
        rich_help_panel=INPUT,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="H,W",
        help="Size of all pictures, bilinear. Default: as they are, if these are alike.",
        rich_help_panel=INPUT,
    ),
]
HostFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The host's folder.")]


@dataclass(frozen=True)
class PrivacyOptions:
    """What the data set may give away."""

    privacy: PrivacyLevel = "strict"
    allow_unbounded_leakage: Consent = False
    value_bits: ValueBits = None
    max_bits: MaxBits = None
    many_functions: ManyFunctions = False
    labels_to: LabelsTo = "server"
    evaluations: Evaluations = 0

    def chosen(self) -> Privacy:
        """The options as a value."""
        return Privacy(
            self.privacy,
            value_bits=self.value_bits,
            max_bits=self.max_bits,
            many_functions=self.many_functions,
            labels_to=self.labels_to,
            evaluations=self.evaluations,
            allow_unbounded_leakage=self.allow_unbounded_leakage,
        )


@dataclass(frozen=True)
class NewOptions:
    """What describes a data set that is new."""

    bits: Bits = None
    value_range: Range = None
    ranges: Ranges = None
    classes: Classes = None
    target_ranges: TargetRanges = None

    def dataset(self) -> NewDataset:
        """The options' texts as values.

        Raises   InputError naming the option
        """
        return NewDataset(
            bits=self.bits,
            value_range=options.value_range(self.value_range) if self.value_range else None,
            ranges=read_ranges(self.ranges) if self.ranges else None,
            classes=names(self.classes) or None,
            target_ranges=read_target_ranges(self.target_ranges) if self.target_ranges else None,
        )


@dataclass(frozen=True)
class SampleOptions:
    """How the samples of the sources are read."""

    split: Split = None
    test_fraction: TestFraction = 0.0
    unlabelled: Unlabelled = False
    noise: Noise = None
    clip: Clip = False
    x: X = "x"
    y: Y = "y"
    targets: TargetKind = None
    layout: ArrayLayout = None
    background: Background = None
    channels: PictureChannels = None
    resize: Resize = None

    def open(self, path: Path, table: TableOptions) -> Source:
        """The samples in a file or folder.

        Raises   InputError, RangeError, ShapeError
        """
        size = None if self.resize is None else options.picture_size(self.resize)
        pictures = PictureOptions(self.background, self.channels, size)
        return open_source(
            path, x=self.x, y=self.y, table=table, targets=self.targets, layout=self.layout,
            pictures=pictures, unlabelled=self.unlabelled,
        )  # fmt: skip

    def tested(self) -> float:
        """The part that is kept for testing.

        Raises   InputError
        """
        if self.unlabelled and (self.split is not None or self.test_fraction):
            raise InputError("--unlabelled samples train and test nothing: leave out the split")
        if self.split not in (None, "train", "test"):
            raise InputError(f"--split {self.split}: train or test")
        if self.split is not None and self.test_fraction:
            raise InputError("--split marks all samples: leave out --test-fraction")
        return {"train": 0.0, "test": 1.0, None: self.test_fraction}[self.split]


@app.command(
    epilog="Example: cloister data encrypt rows.csv --out rows.cloister --authority "
    "https://key.example:8443 --pin authority.pub --token @client.token"
)
@options.grouped
def encrypt(
    sources: Sources,
    access: options.AuthorityAccess,
    out_file: Out,
    privacy: PrivacyOptions,
    samples: SampleOptions,
    reading: ReadingOptions,
    new: NewOptions,
    name: Name = None,
    order: Order = None,
    digests: Digests = None,
    again: Again = False,
    patience: Patience = PATIENCE_S,
    json: options.Json = False,
) -> None:
    """Encrypt samples and add them to a data set. Nothing plain leaves this process.

    The first client makes the data set, with its samples, and decides its encoding and privacy.
    Others join it if it gives away no more than their own options, or the defaults, would allow.
    The pads' key is sealed to the authority; the file holds blinded samples and labels only.
    """
    if order is not None and len(sources) > 1:
        raise InputError("--order FILE.npz: keeps the order of one SOURCE; encrypt them one by one")
    allowed, described, tested = privacy.chosen(), new.dataset(), samples.tested()
    with access.connect() as service:
        parts: list[EncryptedPart] = []
        # All are opened first: a file that cannot be used stops the work before any is registered.
        for source in _opened(sources, samples, reading.table(), described.ranges):
            with stages() as update, _saying(sources[: len(parts)], out_file):
                part = training.encrypt(
                    source, out_file, authority=service, privacy=allowed, new=described, name=name,
                    test_fraction=tested, unlabelled=samples.unlabelled, noise=samples.noise,
                    clip=samples.clip, order=order, digests=digests, again=again,
                    patience_s=patience, note=note, update=update,
                )  # fmt: skip
            parts.append(part)
            if not json:
                _show_part(part, out_file)
    if json:
        emit_json(_document(parts))


def _opened(
    paths: list[Path],
    samples: SampleOptions,
    table: TableOptions,
    ranges: Mapping[str, PublicRange] | None,
) -> list[Source]:
    """The sources of a command.

    Raises   InputError, ShapeError for one that cannot follow the first
    """
    opened = [samples.open(path, table) for path in paths]
    for source in opened if len(opened) > 1 else []:
        if isinstance(source, TableSource):
            source.columns(ranges)
    for path, source in zip(paths, opened, strict=True):
        if source.targets != opened[0].targets:
            raise ShapeError(
                f"{path}: has {source.targets} to learn, but {paths[0]} has {opened[0].targets}; "
                "say which with --targets; nothing was encrypted"
            )
        if (source.shape, source.kind) != (opened[0].shape, opened[0].kind):
            raise ShapeError(
                f"{path}: holds {source.kind} of shape {source.shape}, but {paths[0]} holds "
                f"{opened[0].kind} of shape {opened[0].shape}; nothing was encrypted"
            )
    return opened


@contextmanager
def _saying(done: list[Path], out_file: Path) -> Iterator[None]:
    """A context whose errors say which sources were added before.

    Raises   the error of the block, with more to its text
    """
    try:
        yield
    except CloisterError as error:
        if not done:
            raise
        names = ", ".join(map(str, done))
        raise type(error)(
            f"{error}; {names}: in {out_file} already, do not encrypt them again"
        ) from error


app.command(epilog="Example: cloister data merge north.cloister south.cloister --out all.cloister")(
    clinic_verbs.merge
)
app.command(
    epilog="Example: cloister data withdraw biopsies --part 3f9a02c1 --authority "
    "https://key.example:8443 --pin authority.pub --token @client.token"
)(clinic_verbs.withdraw)


@app.command(epilog="Example: cloister data show rows.cloister")
@options.grouped
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE.cloister", help="Encrypted data set.")],
    access: options.OptionalAuthority,
    json: options.Json = False,
) -> None:
    """Show the public contents of an encrypted data set, and check its parts.

    Given an authority, compare the parts with its list, and show which samples were withdrawn.
    """
    opened = EncryptedDataset.open(path)
    withdrawn = clinic_verbs.withdrawn_samples(opened, access)
    described = {
        "name": opened.name, "shape": opened.shape, "targets": opened.targets,
        "classes": opened.classes,
        "bits": opened.encoding.bits, "low": opened.encoding.low, "high": opened.encoding.high,
        "samples": opened.samples, "test_samples": len(opened.test_ids),
        "unlabelled_samples": len(opened.unlabelled_ids),
        "authority": opened.authority_fingerprint,
    }  # fmt: skip
    if withdrawn is not None:
        described["withdrawn"] = int(withdrawn.holds(opened.ids).sum())
    if json:
        spans = {} if withdrawn is None else {"withdrawn_spans": withdrawn.spans}
        emit_json(described | {"parts": opened.parts} | spans)
        return
    out().print(table(("", ""), [(k.replace("_", " "), v) for k, v in described.items()]))
    columns = ["part", "first id", "samples", "SHA-256"]
    rows: list[list[object]] = [
        [part.part, part.first, part.samples, part.sha256] for part in opened.parts
    ]
    if withdrawn is not None:
        columns.insert(3, "withdrawn")
        for part, row in zip(opened.parts, rows, strict=True):
            row.insert(3, int(withdrawn.holds(np.arange(part.first, part.last)).sum()))
    out().print(table(columns, rows))


@app.command(epilog="Example: cloister data init host")
def init(folder: HostFolder) -> None:
    """Make a ciphertext host's certificate, and the file its trusted runtime needs."""
    path = ciphertext_service.init(folder, rng=SystemRandom())
    out().print(f"{path}  give this file to the trusted runtime only: it holds a token")


@app.command(epilog="Example: cloister data serve host rows.cloister --listen 0.0.0.0:9443")
def serve(
    folder: HostFolder,
    datasets: Annotated[
        list[Path], typer.Argument(metavar="DATA.cloister...", help="Encrypted data sets.")
    ],
    listen: options.Listen,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="FILE", help="Keep the requests to this host, for cloister audit."
        ),
    ] = None,
    threads: options.ProcessThreads = 1,
) -> None:
    """Compute on ciphertexts for a trusted runtime, over HTTPS, until interrupted; holds no key."""
    held = LocalCiphertextServer(*map(EncryptedDataset.open, datasets), threads=threads)
    with nullcontext() if log is None else ReleaseLog(log) as kept:
        start = partial(ciphertext_service.serve, held, folder=folder, listen=listen, log=kept)
        serve_until_interrupted(start, "ciphertext host")


def _document(parts: list[EncryptedPart]) -> dict[str, object]:
    return {
        "dataset": parts[0].agreement.info.name,
        "fingerprint": parts[0].fingerprint,
        "parts": [
            vars(part.part)
            | {"remarks": part.remarks, "clipped": part.clipped, "noise": part.noise}
            for part in parts
        ],
    }


def _show_part(made: EncryptedPart, path: Path) -> None:
    part, info = made.part, made.agreement.info
    limits = made.agreement.terms.limits(info)
    said = ""
    if limits.max_bits is not None:
        exactness = "exact" if limits.value_bits == EXACT_BITS else f"of {limits.value_bits} bits"
        functions = "one function" if limits.one_function else "any functions"
        said = f": values {exactness} of {functions}, at most {limits.max_bits:,} bits of a sample"
    budget = f"budget {info.budget_rank} of {info.dim} (mode {info.mode})"
    if info.mode == "paper":
        budget = "no budget (mode paper): a training server can learn every value"
    out().print(
        f"{part.samples:,} samples encrypted into {path}: data set {info.name}, part "
        f"{part.part[:8]}, ids {part.first} to {part.last - 1}"
    )
    out().print(
        f"resolution {info.encoding.resolution:.4g}, {budget}{said}",
        soft_wrap=True,
    )
    if made.noise is not None:
        out().print(made.noise, soft_wrap=True)
