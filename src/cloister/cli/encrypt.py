"""`cloister encrypt`: a client's samples as a part of an encrypted data set."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloister import files
from cloister.authority.blur import EXACT_BITS
from cloister.authority.client import AuthorityClient
from cloister.authority.records import Terms
from cloister.cli import options
from cloister.cli.console import emit_json, err, note, out, progress
from cloister.cli.newset import (
    Wishes,
    agree,
    class_numbers,
    plan,
    read_notes,
    read_ranges,
    rehearse,
)
from cloister.cli.owner import Order, blurred, statement
from cloister.crypto.csprng import KEY_BYTES, SystemRandom
from cloister.errors import EncryptionError, InputError
from cloister.fe.keyservice import DatasetInfo
from cloister.training.dataset import EncryptedDataset, Header, PartInfo
from cloister.training.noise import GaussianNoise
from cloister.training.sources import (
    Encoder,
    Source,
    chunks,
    open_source,
    random_order,
)
from cloister.training.writer import Chunk, EncryptedDatasetWriter, check_registered

NEW = "New data sets"
INPUT = "Reading the data"
UNKNOWN = "is not known to this authority"
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
        int, typer.Option("--bits", help="Signed bits of a value.", rich_help_panel=NEW)
    ] = 8,
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

    The first client makes the data set at the authority and decides its encoding and budget. The
    mask key is sealed to the authority; the file holds masked samples and labels only.
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
        clip=clip,
    )
    tested = {"train": 0.0, "test": 1.0, None: test_fraction}[split]
    noisy = None if noise is None else GaussianNoise(noise, "ciphertexts")
    source = open_source(data, x=x, y=y, label=label)
    rows = random_order(len(source.labels), rng=SystemRandom())
    kept = None if order is None else Order(order, rows)
    with AuthorityClient(authority, public=authority_key, token=read_token(token)) as client:
        info, terms = _dataset(client, name or output.stem, output, source, wishes)
        said = None if noisy is None else statement(noisy, info)
        encoder = _encoder(source, info, terms, clip=clip)
        made: Iterator[Chunk] = chunks(
            source,
            encoder,
            classes=class_numbers(info, read_notes(info, terms)["classes"], source),
            test_fraction=tested,
            order=rows,
        )
        if kept is not None:
            made = kept.watch(made)
        if noisy is not None:
            made = blurred(made, noisy, encoding=info.encoding, rng=SystemRandom())
        part = _append(client, output, made, info, total=len(rows))
    if kept is not None:
        kept.write(part)
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
        f"(mode {info.mode}){_limits(info, terms)}",
        soft_wrap=True,
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
            "first client encoded them and on its terms, whatever the options say. Samples that it "
            "held already get a second budget, and may be in both parts",
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


def _dataset(
    client: AuthorityClient, name: str, output: Path, source: Source, wishes: Wishes
) -> tuple[DatasetInfo, Terms]:
    """The data set as the authority knows it; a new one if there is none."""
    try:
        info = client.describe(name)
    except EncryptionError as error:
        if UNKNOWN not in str(error):
            raise
        if output.exists():
            raise EncryptionError(
                f"{output}: exists, but data set {name} is not known to this authority; "
                "choose another file, or its --name"
            ) from None
        info, terms = plan(name, source, wishes)
        rehearse(source, info, wishes)
        client.create_dataset(info, label_key=SystemRandom().random_bytes(KEY_BYTES), terms=terms)
        return info, terms
    if info.shape != source.shape:
        raise InputError(
            f"data set {name} holds samples {info.shape}, these are {source.shape}; "
            "bring them to one size, or choose another --name"
        )
    terms = client.terms(name)
    agree(info, terms, wishes)
    return info, terms


def _limits(info: DatasetInfo, terms: Terms) -> str:
    limits = terms.limits(info)
    if limits.max_bits is None:
        return ""
    blur = "exact" if limits.value_bits == EXACT_BITS else f"of {limits.value_bits} bits"
    functions = "one function" if limits.one_function else "any functions"
    return f": values {blur} of {functions}, at most {limits.max_bits:,} bits of a sample"


def _encoder(source: Source, info: DatasetInfo, terms: Terms, *, clip: bool) -> Encoder:
    notes = read_notes(info, terms)
    if notes["kind"] != source.kind:
        raise InputError(f"data set {info.name} holds {notes['kind']}, this is {source.kind}")
    return Encoder(source, info.encoding, ranges=notes.get("ranges"), clip=clip)


def _append(
    client: AuthorityClient, output: Path, made: Iterator[Chunk], info: DatasetInfo, *, total: int
) -> PartInfo:
    writer = EncryptedDatasetWriter(
        output,
        Header(info.name, info.shape, info.classes, info.encoding, client.fingerprint),
        permutation=client.label_permutation(info.name, info.classes),
    )
    absent = check_registered(
        EncryptedDataset.open(output, verify=False), registered(client, info.name)
    )
    if absent:
        err().print(absence(output, absent), soft_wrap=True)
    with progress("encrypting") as update:

        def shown() -> Iterator[Chunk]:
            done = 0
            for chunk in made:
                yield chunk
                done += len(chunk.x)
                update(done, total)

        return writer.append(
            shown(),
            register=lambda part, samples, digest, key: client.register_part(
                info.name, part, samples, digest, key=key
            ),
            rng=SystemRandom(),
        )
