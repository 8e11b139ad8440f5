"""`cloister encrypt`: a client's samples as a part of an encrypted data set."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloister.authority.agreement import Agreement
from cloister.authority.client import AuthorityClient
from cloister.authority.enrolment import Enrolment, enrol
from cloister.authority.noise import EXACT_BITS
from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, err, note, out, progress
from cloister.cli.newset import (
    DEFAULT_BITS,
    Wishes,
    accept,
    agree,
    class_numbers,
    plan,
    read_notes,
    read_ranges,
)
from cloister.cli.owner import Order, blurred, statement
from cloister.data.dataset import EncryptedDataset, PartInfo
from cloister.data.feature_noise import GaussianNoise
from cloister.data.sources import Encoder, Source, chunks, open_source, random_order
from cloister.data.writer import Chunk, EncryptedDatasetWriter, check_registered
from cloister.errors import EncryptionError, InputError

NEW = "New data sets"
INPUT = "Reading the data"
MAX_TOKEN_BYTES = 4096

AuthorityUrl = Annotated[
    str, typer.Option("--authority", metavar="URL", help="https://HOST:PORT of the authority.")
]
AuthorityKey = Annotated[
    Path, typer.Option("--authority-key", metavar="FILE", help="Its public file, authority.pub.")
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


def encrypt(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help=".npz, .csv or a folder of class folders.")
    ],
    authority: AuthorityUrl,
    authority_key: AuthorityKey,
    token: Token,
    output: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Data set file; added to if it exists.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Data set id. Default: the file's name.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="train|test", help="Mark all samples.")
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option("--test-fraction", min=0.0, max=1.0, help="Random part kept for testing."),
    ] = 0.0,
    x: Annotated[
        str, typer.Option("--x", help="Array of samples in .npz.", rich_help_panel=INPUT)
    ] = "x",
    y: Annotated[
        str, typer.Option("--y", help="Array of class numbers in .npz.", rich_help_panel=INPUT)
    ] = "y",
    label: Annotated[
        str, typer.Option("--label", help="Column of the class in .csv.", rich_help_panel=INPUT)
    ] = "label",
    order: Annotated[
        Path | None,
        typer.Option(
            "--order",
            metavar="FILE.npz",
            help="Keep which sample is which: the --truth of `cloister audit`. Keep it secret.",
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise",
            metavar="SIGMA",
            help="Add Gaussian noise of SIGMA times the range to every value.",
        ),
    ] = None,
    clip: Annotated[
        bool,
        typer.Option(
            "--clip", help="Bring values outside the range to its ends.", rich_help_panel=INPUT
        ),
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", help=f"Signed bits of a value. Default: {DEFAULT_BITS}.", rich_help_panel=NEW
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="LOW,HIGH", help="Public range of all values.", rich_help_panel=NEW
        ),
    ] = None,
    ranges: Annotated[
        Path | None,
        typer.Option(
            "--ranges",
            metavar="FILE",
            help='Public range of each column: {"age": [0, 120], ...}.',
            rich_help_panel=NEW,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="A,B,...", help="All class names.", rich_help_panel=NEW),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=0,
            help="Rank that may be given away of a sample. Default: a quarter; of pictures, 1/16.",
            rich_help_panel=NEW,
        ),
    ] = None,
    max_bits: Annotated[
        int | None,
        typer.Option(
            "--max-bits",
            min=0,
            help="Bits of values given away at most. Default: 8 for each function of the budget.",
            rich_help_panel=NEW,
        ),
    ] = None,
    value_bits: Annotated[
        int | None,
        typer.Option(
            "--value-bits",
            min=1,
            max=EXACT_BITS,
            help="Bits of each value, by blur; 32: exact. Default: 8.",
            rich_help_panel=NEW,
        ),
    ] = None,
    many_functions: Annotated[
        bool,
        typer.Option(
            "--many-functions",
            help="Give values of several functions, and gradients, within the budget.",
            rich_help_panel=NEW,
        ),
    ] = False,
    labels_to: Annotated[
        str,
        typer.Option(
            "--labels-to",
            metavar="server|trusted",
            help="Who may get (permuted) labels.",
            rich_help_panel=NEW,
        ),
    ] = "server",
    mode: Annotated[
        str, typer.Option("--mode", metavar="guarded|paper", rich_help_panel=NEW)
    ] = "guarded",
    allow_unbounded_leakage: Annotated[
        bool,
        typer.Option(
            "--allow-unbounded-leakage",
            help="Needed for --mode paper: samples are given away.",
            rich_help_panel=NEW,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Encrypt samples and add them to a data set. Nothing plain leaves this process.

    The first client makes the data set, with its samples, and decides its encoding and terms.
    Others join it if it gives away no more than their own options, or the defaults, would allow.
    The mask key is sealed to the authority; the file holds masked samples and labels only.
    """
    if split not in (None, "train", "test"):
        raise InputError(f"--split {split}: train or test")
    if labels_to not in ("server", "trusted"):
        raise InputError(f"--labels-to {labels_to}: server or trusted")
    wishes = Wishes(
        bits=bits,
        value_range=options.numbers(value_range, option="--range") if value_range else None,
        ranges=read_ranges(ranges) if ranges else None,
        classes=tuple(part.strip() for part in classes.split(",")) if classes else None,
        budget=budget,
        max_bits=max_bits,
        value_bits=value_bits,
        many_functions=many_functions,
        labels_to_server=labels_to == "server",
        mode=mode,
        allow_unbounded_leakage=allow_unbounded_leakage,
    )
    tested = {"train": 0.0, "test": 1.0, None: test_fraction}[split]
    noisy = None if noise is None else GaussianNoise(noise, "ciphertexts")
    source = open_source(data, x=x, y=y, label=label)
    rows = random_order(len(source.labels), rng=SystemRandom())
    kept = None if order is None else Order(order, rows)
    with AuthorityClient(authority, public=authority_key, token=read_token(token)) as client:
        enrolment = _enrol(client, name or output.stem, output, source, wishes)
        agreed, info = enrolment.agreement, enrolment.agreement.info
        notes = read_notes(agreed)
        said = None if noisy is None else statement(noisy, info)
        encoder = Encoder(source, info.encoding, ranges=notes["ranges"], clip=clip)
        made: Iterator[Chunk] = chunks(
            source,
            encoder,
            classes=class_numbers(info, notes["classes"], source),
            test_fraction=tested,
            order=rows,
        )
        if kept is not None:
            made = kept.watch(made)
        if noisy is not None:
            made = blurred(made, noisy, encoding=info.encoding, rng=SystemRandom())
        part = _append(client, output, made, enrolment, total=len(rows))
    if kept is not None:
        _keep(kept, part, output)
    if json:
        found = {"dataset": info.name, "fingerprint": client.fingerprint, **asdict(part)}
        found |= {"remarks": list(source.remarks), "clipped": encoder.clipped}
        emit_json(found | ({} if said is None else {"noise": said}))
        return
    console = out()
    console.print(
        f"{part.samples:,} samples encrypted into {output}: data set {info.name}, part "
        f"{part.part[:8]}, ids {part.first} to {part.last - 1}"
    )
    console.print(
        f"resolution {info.encoding.resolution:.4g}, budget {info.budget_rank} of {info.dim} "
        f"(mode {info.mode}){_limits(agreed)}",
        soft_wrap=True,
    )
    if info.mode == "guarded" and info.budget_rank == 0:
        note(
            "a budget of 0 gives a training server nothing: only `cloister train --unmask-to "
            "trusted` trains on this data set; a new one may have a --budget"
        )
    for remark in source.remarks:
        note(remark)
    if encoder.clipped:
        note(f"{encoder.clipped:,} values outside the range were brought to its ends")
    if said is not None:
        console.print(said, soft_wrap=True)
    if info.samples:
        err().print(
            f"note: data set {info.name} had {info.samples:,} samples; these are added as its "
            "first client encoded them and on its terms, which give away no more than yours. "
            "Samples that it held already get a second budget, and may be in both parts",
            soft_wrap=True,
        )
    if order is not None:
        err().print(f"note: {order} holds your samples in plain; keep it to yourself")


def read_token(text: str) -> str:
    """A token given as such, or as @FILE.

    Raises   InputError, also when others can read the file
    """
    if not text.startswith("@"):
        if len(text) < 256 and Path(text).is_file():  # as long as a name may be
            raise InputError(f"--token {text}: is a file; give --token @{text}")
        return text.strip()
    try:
        data = files.read_private(Path(text[1:]), most=MAX_TOKEN_BYTES)
        return data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token {text}: cannot be read ({error})") from None


def registered(client: AuthorityClient, name: str) -> list[PartInfo]:
    """The parts of a data set that its authority has on record."""
    return [PartInfo(**asdict(part)) for part in client.parts(name)]


def absence(path: Path, absent: Sequence[PartInfo]) -> str:
    """What to say of parts on record that a file does not hold."""
    count, names = sum(part.samples for part in absent), ", ".join(p.part[:8] for p in absent)
    return (
        f"note: {count:,} registered samples are not in {path} (part {names}): their client was "
        "interrupted and may encrypt them again, or is not done, or they are in another copy"
    )


def _enrol(
    client: AuthorityClient, name: str, output: Path, source: Source, wishes: Wishes
) -> Enrolment:
    """This client's place in the data set, which it makes if there is none.

    Raises   InputError, RangeError, EncryptionError
    """
    known = client.find(name)
    if known is None:
        if output.exists() and EncryptedDataset.open(output, verify=False).parts:
            raise EncryptionError(
                f"{output}: exists, but data set {name} is not known to this authority; "
                "choose another file, or its --name"
            )
        accepted = plan(name, source, wishes)
    else:
        accepted = accept(known.agreement, source, wishes)
        agree(known.agreement, accepted, wishes)
    return enrol(client, accepted, rng=SystemRandom())


def _limits(agreed: Agreement) -> str:
    limits = agreed.terms.limits(agreed.info)
    if limits.max_bits is None:
        return ""
    blur = "exact" if limits.value_bits == EXACT_BITS else f"of {limits.value_bits} bits"
    functions = "one function" if limits.one_function else "any functions"
    return f": values {blur} of {functions}, at most {limits.max_bits:,} bits of a sample"


def _keep(kept: Order, part: PartInfo, output: Path) -> None:
    try:
        kept.write(part)
    except InputError as error:
        raise InputError(
            f"{error}; the samples are in {output} all the same, do not encrypt them again"
        ) from None


def _append(
    client: AuthorityClient,
    output: Path,
    made: Iterator[Chunk],
    enrolment: Enrolment,
    *,
    total: int,
) -> PartInfo:
    writer, info = EncryptedDatasetWriter(output, enrolment), enrolment.agreement.info
    absent = registered(client, info.name) if info.samples else []
    if output.exists():
        absent = check_registered(EncryptedDataset.open(output, verify=False), absent)
    if absent:
        err().print(absence(output, absent), soft_wrap=True)
    with progress("encrypting") as update:

        def shown() -> Iterator[Chunk]:
            done = 0
            for chunk in made:
                yield chunk
                done += len(chunk.x)
                update(done, total)

        return writer.append(shown(), rng=SystemRandom())
