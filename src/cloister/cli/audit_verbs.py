"""`cloister audit`: attacks on the messages, or the part of a model, that a party received."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cloister.audit import input as input_audit
from cloister.audit import model as model_audit
from cloister.audit import training
from cloister.audit.architecture.architecture_audit import (
    DEFAULT_CALLS,
    DEFAULT_OBSERVATIONS,
    audit_architectures,
)
from cloister.audit.architecture.tell_apart import FOLDS
from cloister.audit.input.request_audit import audit_requests, requests_page
from cloister.audit.input.split_settings import DEFAULT_ATTACKED, SplitSettings
from cloister.audit.model.theft_settings import Answers, TheftSettings
from cloister.audit.training.attack_settings import DEFAULT_RANGE, AttackSettings
from cloister.audit.training.lattice import LARGEST_LATTICE
from cloister.authority.noise import EXACT_BITS
from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.bundle.compiled_module import CompiledModule
from cloister.cli import options
from cloister.cli.bundle_verbs import POWER
from cloister.cli.console import emit_json, err, note, out, progress, steps, table
from cloister.errors import InputError
from cloister.graph.legality import require_sizes
from cloister.plan.split_report import weaknesses
from cloister.plan.split_scores import ATTACKS
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.wire.transcript import Transcript

if TYPE_CHECKING:
    from cloister.audit.model.theft_data import LabelledSamples

app = typer.Typer(
    help="Attack what an untrusted party received: messages, or a model.", no_args_is_help=True
)

TranscriptFile = Annotated[
    Path, typer.Argument(metavar="FILE.npz", help="What `cloister run --transcript` wrote.")
]
LogFile = Annotated[
    Path,
    typer.Argument(
        metavar="LOG",
        help="Log of `cloister train --release-log` or `--request-log`, or of `cloister data "
        "serve --log`.",
    ),
]
TruthFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--truth",
        metavar="FILE.npz",
        help="The data, for scoring: the file of `cloister data encrypt --order`, once for each "
        "part; or plain data with its scale and offset, and --order.",
    ),
]
OrderFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--order", metavar="FILE.npz", help="Which sample is which, for plain data as --truth."
    ),
]
PublicFile = Annotated[
    Path | None,
    typer.Option(
        "--public", metavar="FILE.npz", help="Similar data the attacker has: x, as in --truth."
    ),
]
INTEGERS = ",".join(f"{end:g}" for end in DEFAULT_RANGE)
ValueRange = Annotated[
    str,
    typer.Option("--range", metavar="LOW,HIGH", help="Range of the encoded integers."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Samples to attack.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Releases joined at most.")]
Lattice = Annotated[
    int,
    typer.Option(
        "--lattice",
        min=0,
        max=LARGEST_LATTICE,
        help="Elements up to which integer decoding is tried; it takes up to a minute.",
    ),
]
ValueBits = Annotated[
    int,
    typer.Option(
        "--value-bits",
        min=1,
        max=EXACT_BITS,
        help="Bits of a value as the data set's owner set them: attacks then know the noise. 32: "
        "the values are exact, as under --privacy paper.",
    ),
]
Page = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page with pictures.")
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR|FILE",
        help="Samples with classes that the model was not trained on: arrays x and y in an .npz, "
        "a .csv, or a folder with one folder a class.",
    ),
]
ThiefData = Annotated[
    Path | None,
    typer.Option(
        "--thief-data",
        metavar="DIR|FILE",
        help="Samples that the thief has. Default: half of --data. Classes are not used.",
    ),
]
Members = Annotated[
    Path | None,
    typer.Option(
        "--members",
        metavar="DIR|FILE",
        help="The model's training data, to attack its membership.",
    ),
]
Splits = Annotated[
    str, typer.Option("--splits", metavar="all|1,2,3", help="Numbers of hidden last layers.")
]
Queries = Annotated[
    str, typer.Option("--queries", metavar="N,..", help="Query budgets of the thief.")
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Repetitions of every theft.")]
AnswerKind = Annotated[
    Answers, typer.Option("--answers", help="What the model answers a query with.")
]
TrainingSteps = Annotated[int, typer.Option("--steps", min=1, help="Of training one surrogate.")]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0,
        metavar="MINUTES",
        help="Begin no theft after this time; the same command goes on.",
    ),
]
ReportFolder = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder for report.json, report.html and what is done."
    ),
]
TailOk = Annotated[bool, typer.Option("--tail-ok", help="Leave out a record that was cut off.")]

Images = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR|FILE.npz",
        help="Images that the model was not trained on: a folder of pictures, or an .npz with x, "
        "images, or test_images and train_images.",
    ),
]
PublicImages = Annotated[
    Path | None,
    typer.Option(
        "--public",
        metavar="DIR|FILE.npz",
        help="Images that the attacker has. Default: those of --data that are not attacked.",
    ),
]
SplitNodes = Annotated[
    str,
    typer.Option(
        "--splits",
        metavar="all|NODE,..;NODE",
        help="Last nodes before each split, the splits separated by semicolons.",
    ),
]
AttackNames = Annotated[
    str, typer.Option("--attacks", metavar="NAME,..", help="Attacks of the battery to make.")
]
BATTERY = ",".join(ATTACKS)
Attacked = Annotated[int, typer.Option("--attacked", min=1, help="Images to attack.")]
RunSeeds = Annotated[int, typer.Option("--seeds", min=1, help="Repetitions of every attack.")]
Effort = Annotated[
    float, typer.Option("--effort", help="Factor for the steps of the attacks' searches.")
]
AttackMinutes = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0,
        metavar="MINUTES",
        help="Begin no attack after this time; the same command goes on.",
    ),
]

Modules = Annotated[
    list[Path],
    typer.Argument(metavar="MODULE MODULE...", help="Folders of `cloister compile --out`."),
]
WhichEngine = Annotated[
    Literal["native", "wasm"], typer.Option("--engine", help="What runs the modules.")
]
Observations = Annotated[
    int, typer.Option("--observations", min=FOLDS, help="Starts of each module's engine.")
]
Calls = Annotated[int, typer.Option("--calls", min=1, help="Calls at each start.")]
PadTo = Annotated[
    str,
    typer.Option(
        "--pad-to",
        metavar=f"{POWER}|BYTES",
        help="Size of a bundle, and of a module in memory, with padding.",
    ),
]
GridMs = Annotated[
    float, typer.Option("--grid-ms", help="With padding, answers come at multiples of this.")
]


@app.command(epilog="Example: cloister audit transcript run.npz --out page.html")
def transcript(path: TranscriptFile, page: Page = None, json: options.Json = False) -> None:
    """Attack the messages to workers during inference: find values, and pads that were used
    twice.
    """
    recorded = Transcript.load(path)
    found = audit_requests(recorded)
    if page is not None:
        _write(page, requests_page(recorded, found))
    if json:
        emit_json([one.to_dict() for one in found])
        return
    rows = [
        (
            one.target_id, one.dtype, one.inputs, one.nbytes,
            None if one.uniformity is None else one.uniformity.p_text, one.verdict,
        )
        for one in found
    ]  # fmt: skip
    columns = ("node", "numbers", "inputs", "bytes", "chi-square p", "verdict")
    out().print(table(columns, rows))


@app.command("training", epilog="Example: cloister audit training release.log --truth truth.npz")
def training_log(
    log: LogFile,
    truth: TruthFiles = None,
    order: OrderFiles = None,
    public: PublicFile = None,
    value_range: ValueRange = INTEGERS,
    samples: Samples = AttackSettings.samples,
    steps: Steps = AttackSettings.steps,
    lattice: Lattice = LARGEST_LATTICE,
    value_bits: ValueBits = EXACT_BITS,
    page: Page = None,
    tail_ok: TailOk = False,
    json: options.Json = False,
) -> None:
    """Attack the messages of encrypted training to the server, a ciphertext host or the
    authority.
    """
    ends = options.value_range(value_range)
    audit = training.audit_log(
        log, truth=truth or (), order=order or (), public=public, tail_ok=tail_ok,
        settings=AttackSettings(ends, samples, steps, lattice, value_bits),
    )  # fmt: skip
    if page is not None:
        _write(page, audit.page())
    if json:
        emit_json(audit.to_dict())
        return
    out().print(table(audit.columns, audit.rows()))
    out().print(f"\nverdict: {audit.verdict}. {audit.conclusion}", soft_wrap=True)
    out().print(audit.severity, soft_wrap=True)
    out().print(audit.thresholds, soft_wrap=True)


@app.command(epilog="Example: cloister audit architecture wide deep --grid-ms 5")
def architecture(
    modules: Modules,
    engine: WhichEngine = "native",
    observations: Observations = DEFAULT_OBSERVATIONS,
    calls: Calls = DEFAULT_CALLS,
    pad_to: PadTo = POWER,
    grid_ms: GridMs = PaddingProfile.grid_ms,
    json: options.Json = False,
) -> None:
    """Tell hidden modules apart by what the owner of a machine sees: sizes, times and fuel, with
    and without padding.
    """
    if pad_to != POWER and not (pad_to.isascii() and pad_to.isdecimal()):
        raise InputError(f"--pad-to {pad_to}: give {POWER} or a number of bytes")
    padding = PaddingProfile(None if pad_to == POWER else int(pad_to), grid_ms)
    loaded = {str(path): CompiledModule.load(path) for path in modules}
    with progress("starts") as update:
        audit = audit_architectures(
            loaded, engine, padding=padding, rng=SystemRandom(), observations=observations,
            calls=calls, progress=update,
        )  # fmt: skip
    if json:
        emit_json(audit.to_dict())
        return
    columns = ("what is seen", "accuracy (95 % intervals)", "with padding")
    out().print(table(columns, audit.rows()))
    out().print(f"\na guess has {audit.chance:.2f}. {audit.conclusion}", soft_wrap=True)


@app.command(
    "model", epilog="Example: cloister audit model digits.onnx --data digits.npz --out report"
)
def theft(
    model: options.ModelFile,
    data: Data,
    folder: ReportFolder,
    thief_data: ThiefData = None,
    members: Members = None,
    splits: Splits = "all",
    queries: Queries = "0,50,100,500",
    seeds: Seeds = TheftSettings.seeds,
    answers: AnswerKind = TheftSettings.answers,
    steps: TrainingSteps = TheftSettings.steps,
    minutes: Minutes = None,
    mean: options.Mean = "0",
    std: options.Std = "1",
    scale: options.Scale = "1/255",
    dim: options.Dims = None,
    threads: options.ProcessThreads = 1,
    json: options.Json = False,
) -> None:
    """Attack a model whose last layers are hidden: what a thief gets of every split."""
    settings = TheftSettings(
        None if splits == "all" else options.integers(splits, option="--splits"),
        options.integers(queries, option="--queries"), seeds, answers, steps=steps,
    )  # fmt: skip
    pixels = options.ModelInputs(mean=mean, std=std, scale=scale).preprocessing()
    graph = options.load_model(model, dim)

    def read(path: Path) -> "LabelledSamples":
        return model_audit.read_samples(graph, path, pixels)

    parts = model_audit.audit_data(
        read(data), thief=None if thief_data is None else read(thief_data),
        members=None if members is None else read(members), evaluated=settings.evaluated,
    )  # fmt: skip
    with progress("thefts") as update:
        report = model_audit.audit_model(
            graph, parts, folder=folder, settings=settings, minutes=minutes, threads=threads,
            update=update,
        )  # fmt: skip
    err().print(f"report written to {folder}", soft_wrap=True)
    if json:
        emit_json(report.to_dict())
        return
    out().print(table(*report.accuracy_table()))
    out().print(f"\n{report.verdict}", soft_wrap=True)
    if report.seeds_done < seeds:
        note(f"{report.seeds_done} of {seeds} seeds are done; the same command goes on")


@app.command(
    "input", epilog="Example: cloister audit input resnet.onnx --data cifar10.npz --out report"
)
def splits_of_inputs(
    model: options.ModelFile,
    data: Images,
    folder: ReportFolder,
    public: PublicImages = None,
    splits: SplitNodes = "all",
    attacks: AttackNames = BATTERY,
    seeds: RunSeeds = SplitSettings.seeds,
    attacked: Attacked = DEFAULT_ATTACKED,
    effort: Effort = SplitSettings.effort,
    minutes: AttackMinutes = None,
    mean: options.Mean = "0",
    std: options.Std = "1",
    scale: options.Scale = "1/255",
    layout: options.ModelLayout = None,
    channels: options.ChannelOrder = None,
    dim: options.Dims = None,
    threads: options.ProcessThreads = 1,
    json: options.Json = False,
) -> None:
    """Attack the splits of a model: what the values that cross one tell of the input."""
    named = None
    if splits != "all":
        named = tuple(tuple(filter(None, one.split(","))) for one in splits.split(";") if one)
    settings = SplitSettings(named, tuple(attacks.split(",")), seeds, effort)
    pixels = options.ModelInputs(
        mean=mean, std=std, scale=scale, layout=layout, channels=channels
    ).preprocessing()
    graph = options.load_model(model, dim)
    require_sizes(graph, "an audit")
    images = input_audit.read_split_images(graph, data, pixels, public=public, attacked=attacked)
    if images.repeated:
        note(f"{images.repeated} images were left out: each equals another one of the data")
    for weakness in weaknesses(effort=effort, public=len(images.public)):
        note(f"the audit will accept no split: {weakness}")
    with steps("attacks") as said:
        report = input_audit.audit_splits(
            graph, images, folder=folder, settings=settings, minutes=minutes, threads=threads,
            said=said,
        )  # fmt: skip
    err().print(f"report written to {folder}", soft_wrap=True)
    if json:
        emit_json({**report.to_dict(), "digest": report.digest, **report.judgement()})
        return
    out().print(table(*report.table()))
    out().print(f"\n{report.conclusion}", soft_wrap=True)
    for flaw in report.flaws:
        if flaw not in report.weaknesses and flaw not in report.conclusion:
            note(flaw)


def _write(page: Path, text: str) -> None:
    # It shows samples.
    files.replace(page, text.encode(), private=True)
    err().print(f"page written to {page}", soft_wrap=True)
