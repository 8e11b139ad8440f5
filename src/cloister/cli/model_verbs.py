"""`cloister plan`, `run`, `compare` and `inspect`: a model, and its plan under a policy."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from cloister.attest.appraiser import Appraiser
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.base.sizes import human_bytes
from cloister.broker.broker_client import BrokerClient
from cloister.bundle.bundle_header import is_bundle_file
from cloister.bundle.compiled_module import CompiledModule
from cloister.cli import hidden_end, options, plan_goals
from cloister.cli.attester_options import SimulatedMachineKey
from cloister.cli.console import emit_json, err, out, progress, table
from cloister.cli.hidden_end import HiddenCost
from cloister.cli.license_options import RELEASED, License
from cloister.cli.maker_options import PadMakers
from cloister.cli.results import Answers, check_labels, read_labels
from cloister.cli.trusted_options import OPERATOR, TrustedElsewhere
from cloister.errors import InputError, PadsExhausted, PlanError, printable
from cloister.graph.batch import batch_axis, element_type, is_other
from cloister.graph.graph import Graph
from cloister.graph.hidden import HiddenSplit
from cloister.graph.input_files import Inputs
from cloister.graph.legality import require_sizes, unsupported
from cloister.graph.output_values import flat_arrays
from cloister.plan import split_report
from cloister.plan.claims import Claims, claims_of
from cloister.plan.cost import PlanCost, estimate
from cloister.plan.memory import MemoryCost
from cloister.plan.openable import kept_inside
from cloister.plan.placement import Placement, default_costs, placements
from cloister.plan.placement import measure as measure_costs
from cloister.plan.plan import SUFFIX, Plan
from cloister.plan.plan_choice import DEFAULT_POLICY, is_plan_file
from cloister.plan.policies import assign, needs_ranges
from cloister.plan.protection import (
    EVERYWHERE,
    OPEN,
    OUTSOURCED,
    Protection,
    hiding,
    outer_policy,
    protections_of,
)
from cloister.plan.split_choice import split_line
from cloister.plan.split_report import SplitReport
from cloister.plan.ticket_claims import with_ticket
from cloister.planner.expected_gain import expected_gain
from cloister.planner.plan_search import CostedPlan
from cloister.planner.session_memory import session_memory
from cloister.tickets.ticket_meter import TicketMeter
from cloister.trusted.clips import OnClip, clip_text
from cloister.trusted.compare import Comparison
from cloister.trusted.compare import compare as measure_errors
from cloister.trusted.engines.sandbox import hide_memory
from cloister.trusted.metered_session import MeteredResult, MeteredSession
from cloister.trusted.pads.makers import MakerAddress
from cloister.trusted.pads.pad_ledger import PadLedger
from cloister.trusted.pads.store import PadStore
from cloister.trusted.pads.stored_plan import load_plan
from cloister.trusted.query_counter import QueryCounter
from cloister.trusted.report import Result
from cloister.trusted.session import DEFAULT_TIMEOUT_S, Session

COLUMNS = (
    "node", "op", "kind", "protection", "output", "parameters", "flops",
    "bytes_to_worker", "bytes_from_worker", "pad_bytes",
)  # fmt: skip
SUMS = COLUMNS[5:]

PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar=f"FILE{SUFFIX}",
        help="Where the plan is written. With goals, it may be left out.",
    ),
]
OwnInputs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="INPUT...", help="Inputs to calibrate on, without --calibration."),
]
NewModule = Annotated[
    Path | None,
    typer.Option(
        "--module",
        metavar="DIR",
        help="Where the compiled module is written. Default: beside the plan.",
        rich_help_panel=hidden_end.HIDING,
    ),
]
SALT_BYTES = 32
LabelFile = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Class names, one per line or index,name."),
]
Top = Annotated[int, typer.Option("--top", min=1, help="Classes shown per input.")]
Pads = Annotated[
    Path | None,
    typer.Option("--pads", metavar="DIR", help="A store filled by `cloister pads make`."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="The key file of --pads, or the content key of a bundle."
    ),
]
CSV = ".csv"
_NOT_BOUGHT = "goes with a bundle; leave it out"
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.npz|.csv",
        help="Write the outputs here: raw as .npz, or a .csv row for each input, classes by name.",
    ),
]
TranscriptFile = Annotated[
    Path | None,
    typer.Option(
        "--transcript",
        metavar="FILE.npz",
        help="Keep the messages to and from the workers, for cloister audit.",
    ),
]
MemoryBatch = Annotated[
    int, typer.Option("--batch", min=1, help="Inputs per message, for the memory.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Measure depthwise layers' costs on this machine.")
]


@options.grouped
def plan(
    model: options.ModelFile,
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    goals: plan_goals.GoalOptions,
    inputs: OwnInputs = None,
    to: PlanFile = None,
    engine: hidden_end.Engine = None,
    module: NewModule = None,
    json: options.Json = False,
) -> None:
    """Make the plan of a model: decide for every node, and save the decision with its integers.

    The file decides all that is computed and protected. It runs on another machine with the same
    results, and without the model. The writer of the file chooses the plan: pin it by its digest,
    or state its policy when it is run.

    Layers that are hidden (--last, --from) are compiled into a module, which the plan names by its
    digest. The folder of the module has their weights; the plan has not.

    With goals, the planner measures what plans of the model cost on this machine, shows those that
    no other one beats in every respect, and chooses one.
    """
    if to is not None:
        _require_place("--out", to, SUFFIX)
    if goals.given:
        _plan_by_goals(model, given, end, goals, inputs, engine, module, to=to, json=json)
        return
    goals.refuse_any()
    if to is None:
        raise InputError(f"--out: name a {SUFFIX} file, or give goals, such as --hide-input proven")
    _check_samples(given, inputs)
    whole = given.load(model)
    split = end.split(whole, given.policy)
    if split is None:
        options.refuse_given(
            "is about a hidden end; give --last N or --from NODE",
            {"--engine": engine, "--module": module},
        )
    found, claims = _write_plan(whole, split, given, end, inputs, engine, module, to=to)
    if json:
        emit_json({**found, "claims": claims.to_dict()})
    else:
        _show_plan(found, claims)


def _check_samples(given: options.ModelInputs, inputs: list[Path] | None) -> None:
    """Refuse two sources of ranges, and none where the policy needs one.

    Raises   InputError
    """
    if inputs and given.calibration:
        raise InputError("--calibration: INPUT sets the ranges already; give one of the two")
    if inputs and given.audit:
        raise InputError(
            "--audit: has the ranges of its data; leave INPUT out, or give it as --calibration"
        )
    given.check_samples(given.policy or DEFAULT_POLICY, given=bool(inputs))


def _write_plan(
    whole: Graph,
    split: HiddenSplit | None,
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    inputs: list[Path] | None,
    engine: hidden_end.EngineName | None,
    module: Path | None,
    *,
    to: Path,
    chosen: CostedPlan | None = None,
    audit: SplitReport | None = None,
) -> tuple[dict[str, object], Claims]:
    """Compile the hidden end, make the plan, and write both; what was written, and the claims.

    chosen   the planner's plan, which this one has to be

    Raises   PlanError if it is another one
    """
    graph, compiled = whole, None
    if split is not None:
        salt = SystemRandom().random_bytes(SALT_BYTES)
        compiled = hidden_end.compile_end(split, engine, salt=salt)
        graph = split.named(compiled.manifest.digest, queries=end.queries)
    read = given.read(graph, inputs) if inputs else None
    inside = chosen.inside if chosen is not None and needs_ranges(chosen.policy) else None
    made, origin = given.plan(graph, inputs=read, whole=whole, inside=inside, audit=audit)
    if chosen is not None and made.protections != chosen.protections:
        raise PlanError(f"{to}: the plan that was made is not the one that was chosen")
    found: dict[str, object] = {"plan": to, "plan_digest": made.digest, "calibration": origin}
    if compiled is not None:
        folder = module or to.with_suffix(".module")
        compiled.save(folder)
        found |= {"module": folder, "module_digest": compiled.manifest.digest}
    made.save(to)
    return found, made.claims()


def _show_plan(found: Mapping[str, Any], claims: Claims) -> None:
    console, to = out(), found["plan"]
    digest, origin = found["plan_digest"].hex(), found["calibration"]
    console.print(f"{to}: plan {digest}, {to.stat().st_size} bytes; {origin}")
    if "module" in found:
        console.print(f"{found['module']}: module {found['module_digest'].hex()}", soft_wrap=True)
    console.print()
    console.print(str(claims), soft_wrap=True)


def _plan_by_goals(
    model: str,
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    goals: plan_goals.GoalOptions,
    inputs: list[Path] | None,
    engine: hidden_end.EngineName | None,
    module: Path | None,
    *,
    to: Path | None,
    json: bool,
) -> None:
    """Let the planner choose, and write the plan if there is a place for it."""
    if to is None:
        why = "is for a plan that is written; give --out as well"
        calibration = given.calibration or None
        options.refuse_given(
            why, {"INPUT": inputs or None, "--calibration": calibration, "--module": module}
        )
    else:
        _check_samples(given, inputs)
    whole = given.load(model)
    end = goals.hidden_end(end)
    split = end.split(whole, None)
    if split is None:
        options.refuse_given(
            "is about a hidden end; give --hide-weights last=N",
            {"--engine": engine, "--module": module},
        )
    require_sizes(whole, "the planner")
    audit = None if given.audit is None else split_report.load(given.audit)
    searched = goals.search(whole, given, split, audit)
    found: dict[str, object] = {}
    claims = None
    if to is not None:
        chosen = searched.chosen
        found, claims = _write_plan(
            whole, split, goals.decided(given, chosen), end, inputs, engine, module, to=to,
            chosen=chosen, audit=audit,
        )  # fmt: skip
    if json:
        written = {} if claims is None else {**found, "claims": claims.to_dict()}
        emit_json({**searched.to_dict(), **written})
        return
    plan_goals.show_search(searched)
    if claims is not None:
        out().print()
        _show_plan(found, claims)


@dataclass(frozen=True)
class PlannedRun:
    """What a run needs: a plan, where it is from, inputs, and the modules of its hidden parts.

    pinned   whether the caller has made or named exactly this plan
    meter    of the ticket that buys the outputs, if one is needed
    release  what the vendor's key broker has recorded of it, if there is one
    """

    plan: Plan
    origin: str
    read: Inputs
    modules: Mapping[str, CompiledModule]
    pinned: bool = True
    meter: TicketMeter | None = None
    release: Mapping[str, object] | None = None


@options.grouped
def run(
    context: typer.Context,
    model: options.ModelPlanOrBundle,
    inputs: options.InputFiles,
    given: options.ModelInputs,
    execution: options.Execution,
    makers: PadMakers,
    end: hidden_end.HiddenEnd,
    trust: hidden_end.BundleTrust,
    elsewhere: TrustedElsewhere,
    bought: License,
    digest: options.PinnedDigest = None,
    engine: hidden_end.Engine = None,
    module: hidden_end.ModuleFolder = None,
    counter: hidden_end.CounterFile = None,
    pads: Pads = None,
    key: KeyFile = None,
    labels: LabelFile = None,
    top: Top = 5,
    to: OutputFile = None,
    transcript: TranscriptFile = None,
    on_clip: options.OnClipChoice = None,
    insecure_simulated: SimulatedMachineKey = None,
    json: options.Json = False,
) -> None:
    """Run a model on inputs: private, verified, or both, with an untrusted worker.

    Its last layers may be hidden (--last, --from): a compiled module runs them in a process of its
    own. A bundle has the plan and the module of a vendor, whose signature pins the plan: name the
    policy or the digest as well to choose how your inputs are protected. With --broker, the vendor
    releases its key to a machine that proves itself.

    With --trusted, all of it runs on another machine, which has to prove what --appraisal asks for
    before it gets the plan or an input.
    """
    appraiser = elsewhere.appraiser()
    if appraiser is not None:
        elsewhere.refuse_execution(execution)
        options.refuse_given(
            OPERATOR,
            {
                "--pads": pads, "--key": key, "--maker": makers.maker or None,
                "--engine": engine, "--module": module, "--counter": counter,
            },
        )  # fmt: skip
        end.refuse_any("goes in the bundle that the --trusted machine serves; leave it out")
        bought.refuse_any("is spent by the --trusted machine; leave it out")
        options.refuse_given(
            "messages to workers stay on the --trusted machine; leave it out",
            {"--transcript": transcript},
        )
    if (pads is None) != (key is None) and not is_bundle_file(model):
        raise InputError("--pads and --key belong together; give both or neither")
    addresses = makers.addresses(stored=pads is not None)
    for option, path, suffixes in (
        ("--out", to, (".npz", CSV)), ("--transcript", transcript, (".npz",)),
    ):  # fmt: skip
        if path is not None:
            _require_place(option, path, *suffixes)
    names = read_labels(labels) if labels else ()
    if bought.broker is None:
        options.refuse_given("goes with --broker", {"--insecure-simulated": insecure_simulated})
    if is_bundle_file(model):
        end.refuse_any("is decided by the bundle; leave it out")
        options.refuse_given("goes with a plan, not a bundle", {"--module": module, "--pads": pads})
        client = bought.client(model, vendor=trust.vendor, key=key, machine=insecure_simulated)
        if client is not None:
            # The key is for this process alone, and not for others of its user.
            hide_memory()
            context.call_on_close(client.close)
        found = _planned_in_bundle(
            model, inputs, given, digest, trust, bought, key, client, sealed=appraiser is not None
        )
    elif is_plan_file(model):
        trust.refuse_any()
        bought.refuse_any(_NOT_BOUGHT)
        end.refuse_any("is decided by the plan; leave it out")
        found = _planned_in_file(
            model, inputs, given, digest, module, key, hidden=appraiser is None
        )
    else:
        trust.refuse_any()
        bought.refuse_any(_NOT_BOUGHT)
        options.refuse_given("goes with a plan; leave it out", {"--module": module})
        found = _planned_now(model, inputs, given, end, engine, digest, pads, key)
    planned = found.plan
    execution.refuse_unused(planned)
    _refuse_unused(planned, engine=engine, transcript=transcript, on_clip=on_clip)
    check_labels(planned.graph, names, labels)
    if to is not None and to.suffix == CSV:
        _require_rows(f"--out {to}", planned.graph)
    on_clip = on_clip or OnClip.WARN
    if appraiser is not None and elsewhere.trusted is not None:
        result, claims, started = _compute_elsewhere(
            found, elsewhere.trusted, appraiser, on_clip=on_clip
        )
    else:
        started = None
        result, claims = _compute(
            found,
            execution,
            store=_pad_store(planned, pads, key, inputs=len(found.read.names)),
            makers=makers,
            addresses=addresses,
            engine=engine,
            counter=hidden_end.open_counter(planned, counter),
            on_clip=on_clip,
            transcript=transcript,
        )
    receipt = receipt_key = left = None
    if isinstance(result, MeteredResult):
        receipt_key = result.receipt.receipt.signer.hex()
        save = bought.save if appraiser is None else elsewhere.save
        receipt = save(result)
        if found.meter is not None:
            left = found.meter.ticket.left_after(result.receipt.receipt.behind)
    answers = Answers(planned, claims, result, found.read.names, found.origin, names, top)
    if to is not None:
        # Results tell about inputs, and the worker may be another user of this machine.
        with files.replacing(to, private=True) as file:
            if to.suffix == CSV:
                file.write(answers.to_csv().encode())
            else:
                np.savez(file, allow_pickle=False, **flat_arrays(result.outputs))
    beyond = clip_text(result.report) if on_clip is OnClip.WARN else None
    if beyond is not None:
        err().print(f"warning: {beyond}", style="yellow", soft_wrap=True)
    if json:
        written: dict[str, object] = {}
        if receipt is not None:
            written |= {"receipt": receipt, "receipt_key": receipt_key}
        if left is not None:
            written["outputs_left"] = left
        if found.release is not None:
            written["release"] = found.release
        if started is not None:
            written["manifest"] = asdict(started)
        emit_json({**answers.to_dict(), "warning": beyond, **written})
    else:
        answers.show()
        if started is not None:
            told = printable(shlex.join(started.arguments))
            out().print(f"machine started as: {told}", soft_wrap=True)
        if receipt is not None:
            told = f"receipt {receipt}, which --receipt-key {receipt_key} verifies"
            out().print(told, soft_wrap=True)
        if found.meter is not None and left is not None:
            ticket = found.meter.ticket
            out().print(f"ticket {ticket.license}: {left} of {ticket.quota} outputs are left")
        if found.release is not None:
            out().print(RELEASED.format(**found.release), soft_wrap=True)


def _compute(
    found: PlannedRun,
    execution: options.Execution,
    *,
    store: PadStore | None,
    makers: PadMakers,
    addresses: list[MakerAddress],
    engine: hidden_end.EngineName | None,
    counter: QueryCounter | None,
    on_clip: OnClip,
    transcript: Path | None,
) -> tuple[Result, Claims]:
    with (
        Session(
            found.plan,
            workers=execution.worker or None,
            pads=store,
            makers=addresses or None,
            insecure_one_party=makers.insecure_one_party,
            insecure_plaintext=makers.insecure_plaintext,
            threads=execution.threads,
            worker_threads=execution.worker_threads or 1,
            batch=execution.batch,
            lanes=execution.lanes,
            timeout_s=execution.timeout or DEFAULT_TIMEOUT_S,
            record_payloads=transcript is not None,
            # A warning is printed by the verb, without the place in the code that Python adds.
            on_clip=OnClip.RAISE if on_clip is OnClip.RAISE else OnClip.IGNORE,
            modules=found.modules or None,
            engine=engine,
            counter=counter,
        ) as session,
        progress("inputs") as update,
    ):
        running: Session | MeteredSession = session
        if found.meter is not None:
            running = MeteredSession(session, found.meter, rng=SystemRandom())
        result = running.run(found.read.arrays, progress=update)
        claims = session.claims(pinned=found.pinned)
        if found.meter is not None:
            claims = with_ticket(claims)
    if transcript is not None:
        result.transcript.save(transcript)
    return result, claims


def _compute_elsewhere(
    found: PlannedRun, url: str, appraiser: Appraiser, *, on_clip: OnClip
) -> tuple[Result, Claims, RuntimeManifest | None]:
    """The result of a run on another machine, which proves itself first, and what it started as."""
    clips = OnClip.RAISE if on_clip is OnClip.RAISE else OnClip.IGNORE
    with (
        Session(found.plan, trusted=url, appraisal=appraiser, on_clip=clips) as session,
        progress("inputs") as update,
    ):
        result = session.run(found.read.arrays, progress=update)
        return result, session.claims(pinned=found.pinned), session.manifest


def _planned_in_bundle(
    path: str,
    inputs: list[Path],
    given: options.ModelInputs,
    digest: str | None,
    trust: hidden_end.BundleTrust,
    bought: License,
    key: Path | None,
    client: BrokerClient | None,
    *,
    sealed: bool,
) -> PlannedRun:
    """The plan of a bundle, and its module; the vendor's signature pins the plan.

    sealed   the module is opened elsewhere
    """
    if sealed:
        made, origin = given.accept_plan(trust.plan(path), path, digest=digest)
        return PlannedRun(made, origin, given.read(made.graph, inputs), {})
    keys = None if client is None else client.release()
    bundle, module = trust.open(path, key if keys is None else keys.bundle_key)
    made, origin = given.accept_plan(bundle.plan, path, digest=digest)
    modules = {made.modules[0].node: module}
    read = given.read(made.graph, inputs)
    meter = bought.open(bundle.header, vendor=trust.vendor, key=key, client=client)
    release = None if keys is None else {"entry": keys.entry, "digest": keys.digest.hex()}
    return PlannedRun(made, origin, read, modules, meter=meter, release=release)


def _planned_in_file(
    path: str,
    inputs: list[Path],
    given: options.ModelInputs,
    digest: str | None,
    module: Path | None,
    key: Path | None,
    *,
    hidden: bool,
) -> PlannedRun:
    """The plan in a file; the key file of pads pins it where the caller does not.

    hidden   its hidden end runs here
    """
    if digest is None and key is not None:
        digest = PadLedger.open(key).plan_digest.hex()
    made, origin = given.load_plan(path, digest=digest)
    modules = hidden_end.load_module(made, module, path=path) if hidden else {}
    read = given.read(made.graph, inputs)
    return PlannedRun(made, origin, read, modules, pinned=digest is not None)


def _planned_now(
    model: str,
    inputs: list[Path],
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    engine: hidden_end.EngineName | None,
    digest: str | None,
    pads: Path | None,
    key: Path | None,
) -> PlannedRun:
    """The plan of a model, and the modules that are compiled for it."""
    stored = load_plan(pads, key_file=key) if pads and key and not given.calibration else None
    graph = whole = given.load(model)
    split = end.split(whole, given.policy or (stored.policy if stored else None))
    modules: dict[str, CompiledModule] = {}
    if split is not None:
        modules[split.node] = hidden_end.compile_end(split, engine)
        graph = split.named(modules[split.node].manifest.digest, queries=end.queries)
    read = given.read(graph, inputs)
    made, origin = given.plan(graph, inputs=read, stored=stored, whole=whole, digest=digest)
    if made.template is None:
        # Only the integers are needed from here on; the model's float32 weights go with the graph.
        made = made.without_float_weights()
    return PlannedRun(made, origin, read, modules)


def _refuse_unused(
    planned: Plan,
    *,
    engine: hidden_end.EngineName | None,
    transcript: Path | None,
    on_clip: OnClip | None,
) -> None:
    """Refuse options that mean nothing for a plan.

    Raises   InputError naming the option
    """
    why = f"policy {planned.policy} "
    if not planned.modules:
        options.refuse_given(why + "hides no layers; leave it out", {"--engine": engine})
    if not planned.quantised:
        options.refuse_given(why + "clips nothing; leave it out", {"--on-clip": on_clip})
    if not any(protection.on_worker for protection in planned.protections.values()):
        options.refuse_given(
            why + "sends nothing to a worker; leave it out", {"--transcript": transcript}
        )


def _pad_store(
    planned: Plan, pads: Path | None, key: Path | None, *, inputs: int
) -> PadStore | None:
    """The store of --pads, if it has a pad set for each input: a run that ends halfway burns them.

    Raises   InputError, PadsExhausted, PadStoreError
    """
    if pads is None or key is None:
        return None
    if not planned.hidden_nodes:
        raise InputError(
            f"--pads {pads}: policy {planned.policy!r} blinds nothing; leave out --pads"
        )
    store = PadStore.open(pads, plan_digest=planned.digest, key_file=key)
    ready = store.status().ready
    if ready < inputs:
        raise PadsExhausted(
            f"pad store {pads}: {ready} unused pad sets, {inputs} needed, one for each input; none "
            f"is used; make more with `cloister pads make`, --count {inputs} or more"
        )
    return store


def _require_place(option: str, path: Path, *suffixes: str) -> None:
    if path.suffix not in suffixes or not path.parent.is_dir():
        what = " or ".join(suffixes)
        raise InputError(f"{option} {path}: name a {what} file in an existing folder")


def _require_rows(option: str, graph: Graph) -> None:
    """Refuse, before anything is computed, a table of outputs without rows for samples."""
    for name in graph.outputs:
        if not is_other(graph, name) and batch_axis(graph, name) is None:
            raise InputError(
                f"{option}: output {name!r} has no value for each input, and a .csv a row for "
                "each; name an .npz"
            )


@options.grouped
def compare(
    model: options.ModelFile,
    inputs: options.InputFiles,
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    engine: hidden_end.Engine = None,
    threads: options.Threads = 1,
    json: options.Json = False,
) -> None:
    """Compare every linear layer under a plan with plain float32, without a worker."""
    options.refuse_given("no query is counted here; leave it out", {"--queries": end.queries})
    graph = given.load(model)
    read = given.read(graph, inputs)
    split = end.split(graph, given.policy)
    with progress("inputs") as update:
        if split is None:
            options.refuse_given("goes with --last or --from", {"--engine": engine})
            made, origin = given.plan(graph, inputs=read)
            found = measure_errors(made, read.arrays, threads=threads, progress=update)
        else:
            compiled = hidden_end.compile_end(split, engine)
            outer = split.named(compiled.manifest.digest)
            made, origin = given.plan(outer, inputs=read, whole=graph)
            with hidden_end.running(made, split, compiled, engine, threads) as hidden:
                found = measure_errors(
                    made, read.arrays, threads=threads, progress=update, hidden=hidden
                )
    if json:
        emit_json({**found.to_dict(), "calibration": origin})
    else:
        _show_comparison(found, origin)


def _show_comparison(found: Comparison, origin: str) -> None:
    console = out()
    if found.layers:
        rows = [tuple(asdict(layer).values()) for layer in found.layers]
        headings = tuple(name.replace("_", " ") for name in asdict(found.layers[0]))
        console.print(table(headings, rows, title=f"against float32, {found.inputs} inputs"))
        console.print()
    if found.hidden is not None:
        console.print(
            f"hidden part {found.hidden.node}, on exact inputs: largest error "
            f"{found.hidden.max_error:.4g}, relative error {found.hidden.relative_error:.4g}"
        )
    console.print(f"largest difference of an output: {found.max_difference:.4g}")
    if found.top1_agreement is not None:
        console.print(f"top-1 agreement: {100 * found.top1_agreement:.2f} %")
    console.print(origin)


@options.grouped
def inspect(
    model: options.ModelOrPlan,
    end: hidden_end.HiddenEnd,
    given: options.ChosenPolicy,
    digest: options.PinnedDigest = None,
    batch: MemoryBatch = 1,
    measure: Measure = False,
    json: options.Json = False,
) -> None:
    """List every node with its protection and costs, the totals and the claims.

    The last line says what goes out, what stays and why, and what the plan is likely to gain.
    """
    hidden: tuple[HiddenCost, ...]
    claims: Claims | None
    if is_plan_file(model):
        end.refuse_any("is decided by the plan; leave it out")
        made = given.inspected(model, digest=digest)
        line = "" if made.split is None else split_line(made.split)
        graph, policy, protections = made.graph, made.policy, made.protections
        problems, claims = unsupported(graph), made.claims(pinned=digest is not None)
        hidden = tuple(HiddenCost.planned(module) for module in made.modules)
        planned = made.split
    else:
        options.refuse_given("goes with a plan; leave it out", {"--digest": digest})
        whole, policy = given.load(model), given.named
        problems, split = unsupported(whole), end.split(whole, policy)
        graph = whole if split is None else split.outer
        policy = policy if split is None else hiding(outer_policy(policy) or policy)
        chosen = given.split.choose(policy, graph, audited=whole)
        protections, line = assign(graph, policy, split=chosen.split), chosen.line
        # What stays inside only because its size is free goes to a worker in every plan.
        claims = None
        if not graph.free_sizes or policy in EVERYWHERE:
            claims = claims_of(policy, protections, queries=end.queries, split=chosen.split)
        hidden = () if split is None else (HiddenCost.of_split(split, end.queries),)
        planned = chosen.split
    cost = estimate(graph, protections, batch=batch)
    placed = _placements(graph, policy, protections, measure=measure)
    opened = OPEN in (protections_of(policy) or ())
    kept = {name: why for name, why in kept_inside(graph).items() if opened}
    gain = taken = None
    if not problems:
        gain = expected_gain(graph, policy, protections, cost, split=planned)
        taken = session_memory(graph, policy, protections, cost, batch=batch, split=planned)
    if json:
        found = _inspection(graph, policy, cost, claims, problems, placed, hidden)
        found |= {"split": line or None, "kept_inside": kept}
        found |= {"session_memory": None if taken is None else taken.to_dict()}
        emit_json({**found, "summary": None if gain is None else gain.to_dict()})
    else:
        if line:
            out().print(line)
        for node, why in kept.items():
            out().print(f"node {node!r} stays inside: {why}", soft_wrap=True)
        _show_inspection(graph, cost, claims, problems, placed, hidden)
        if taken is not None:
            out().print(f"\n{taken}", soft_wrap=True)
        if gain is not None:
            out().print(f"\n{gain}", soft_wrap=True)
    if problems:
        raise typer.Exit(2)


def _placements(
    graph: Graph, policy: str, protections: Mapping[str, Protection], *, measure: bool
) -> tuple[Placement, ...]:
    """Depthwise layers of policies that have a choice."""
    outside = OUTSOURCED.get(outer_policy(policy) or policy)
    if outside is None:
        if measure:
            raise InputError(f"--measure: policy {policy} does not choose where layers run")
        return ()
    costs = measure_costs(outside, rng=SystemRandom()) if measure else default_costs(outside)
    return placements(graph, protections, costs)


def _inspection(
    graph: Graph,
    policy: str,
    cost: PlanCost,
    claims: Claims | None,
    problems: list[tuple[str, str, str]],
    placed: tuple[Placement, ...],
    hidden: tuple[HiddenCost, ...],
) -> dict[str, object]:
    return {
        "model": graph.name,
        "policy": policy,
        "inputs": {name: [_type_text(graph, name), graph.sizes(name)] for name in graph.inputs},
        "free_sizes": list(graph.free_sizes),
        "outputs": list(graph.outputs),
        **cost.to_dict(),
        "hidden": [asdict(part) for part in hidden],
        "claims": None if claims is None else claims.to_dict(),
        "depthwise": [asdict(placement) for placement in placed],
        "unsupported": [
            {"node": node, "reason": reason, "remedy": remedy} for node, reason, remedy in problems
        ],
    }


def _type_text(graph: Graph, name: str) -> str:
    return "no tensor" if is_other(graph, name) else str(element_type(graph, name))


def _show_inspection(
    graph: Graph,
    cost: PlanCost,
    claims: Claims | None,
    problems: list[tuple[str, str, str]],
    placed: tuple[Placement, ...],
    hidden: tuple[HiddenCost, ...],
) -> None:
    console = out()
    rows = [tuple(getattr(node, column) for column in COLUMNS) for node in cost.nodes]
    total = ("total", "", "", "", "", *(cost.total(column) for column in SUMS))
    headings = tuple(column.replace("_", " ") for column in COLUMNS)
    console.print(table(headings, [*rows, total], title=f"{graph.name}, for one input"))
    for name in graph.free_sizes:
        console.print(
            f"free size {name!r}: nodes behind it are listed without their shapes, and as inside; "
            f"a plan has that of its calibration; give --dim {name}=SIZE to see them"
        )
    for part in hidden:
        console.print(str(part), soft_wrap=True)
    console.print()
    if placed:
        rows = [
            (p.node, "inside" if p.inside else "worker", p.inside_us, p.outside_us) for p in placed
        ]
        headings = ("depthwise layer", "runs", "trusted us inside", "trusted us if on the worker")
        console.print(table(headings, rows))
        console.print()
    _show_memory(console, cost.memory)
    console.print()
    if claims is None:
        named = " ".join(f"--dim {name}=SIZE" for name in graph.free_sizes)
        console.print(
            f"who learns what, and can do what: follows from the free sizes; give {named}",
            soft_wrap=True,
        )
    else:
        console.print(str(claims), soft_wrap=True)
    if problems:
        console.print()
        console.print("this model cannot be run:")
        console.print(table(("node", "reason", "remedy"), problems))


def _show_memory(console: Console, memory: MemoryCost) -> None:
    """The phase that needs most, item by item, and the sums of the other phases."""
    peak = memory.peak_phase
    items = sorted(memory.phases[peak].items(), key=lambda item: -item[1])
    rows = [(name, human_bytes(nbytes)) for name, nbytes in items if nbytes]
    console.print(
        f"trusted memory, estimated: {human_bytes(memory.peak_bytes)}, while {peak} "
        "(pads made inline, calibration made beforehand)"
    )
    console.print(table(("item", "bytes"), rows))
    for phase, needed in memory.phases.items():
        if phase != peak:
            console.print(f"while {phase}: {human_bytes(sum(needed.values()))}")
