"""`cloister run`: a model on inputs, under a policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import cloister
from cloister.base import files
from cloister.cli import options
from cloister.cli.console import emit_json, err, out, progress, table
from cloister.cli.images import Inputs, read_inputs
from cloister.cli.planning import is_plan_file, plan_for, plan_in_file, require_digest
from cloister.cli.results import best, is_classifier, read_labels, summary
from cloister.errors import InputError
from cloister.graph.batch import batch_axis
from cloister.graph.graph import Graph
from cloister.plan.plan import Plan
from cloister.trusted.clips import OnClip, clip_text
from cloister.trusted.pads.store import PadStore
from cloister.trusted.pads.stored_plan import load_plan
from cloister.trusted.report import Result
from cloister.trusted.session import DEFAULT_BATCH, DEFAULT_TIMEOUT_S, Session

Workers = Annotated[
    list[str] | None,
    typer.Option("--worker", metavar="HOST:PORT", help="Repeatable. Default: a local process."),
]


def run(
    model: options.ModelOrPlan,
    inputs: options.InputFiles,
    policy: options.PolicyName = None,
    digest: options.PinnedDigest = None,
    mean: options.Mean = "0",
    std: options.Std = "1",
    scale: options.Scale = "1/255",
    layout: options.ModelLayout = None,
    channels: options.ChannelOrder = None,
    resize: options.Resize = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="Class names, one per line or index,name."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown per input.")] = 5,
    worker: Workers = None,
    pads: Annotated[
        Path | None,
        typer.Option("--pads", metavar="PATH", help="A store filled by `cloister pads make`."),
    ] = None,
    pad_key: Annotated[
        Path | None, typer.Option("--pad-key", metavar="FILE", help="The store's key file.")
    ] = None,
    calibration: options.CalibrationFiles = None,
    weight_bits: options.WeightBits = None,
    activation_bits: options.ActivationBits = None,
    threads: options.Threads = 1,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", min=1, help="Threads of the local worker.")
    ] = 1,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Inputs per message.")
    ] = DEFAULT_BATCH,
    lanes: options.Lanes = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds a worker may take per layer.")
    ] = DEFAULT_TIMEOUT_S,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.npz", help="Write the raw outputs here."),
    ] = None,
    on_clip: options.OnClipChoice = OnClip.WARN,
    json: options.Json = False,
) -> None:
    """Run a model on inputs: private, verified, or both, with an untrusted worker."""
    if (pads is None) != (pad_key is None):
        raise InputError("--pads and --pad-key belong together; give both or neither")
    _require_folder(output)
    names = read_labels(labels) if labels else ()
    preprocessing = options.preprocessing(
        mean=mean, std=std, scale=scale, layout=layout, channels=channels, resize=resize
    )
    if is_plan_file(model):
        options.refuse_planning(calibration, weight_bits, activation_bits)
        # A store's key file vouches for its plan: another one is refused when the store is opened.
        plan, origin = plan_in_file(
            Path(model), policy=policy, digest=digest, vouched=pads is not None
        )
        read = read_inputs(plan.graph, inputs, preprocessing)
    else:
        stored = load_plan(pads, key_file=pad_key) if pads and pad_key and not calibration else None
        graph = cloister.load(model)
        read = read_inputs(graph, inputs, preprocessing)
        plan, origin = plan_for(
            graph,
            policy=policy,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            calibration=calibration,
            inputs=read,
            preprocessing=preprocessing,
            stored=stored,
        )
        require_digest(plan, digest)
        # Only the integers are needed from here on; the model's float32 weights go with the graph.
        plan = plan.without_float_weights()
        del graph, stored
    _check_labels(plan.graph, names, labels)
    with (
        Session(
            plan,
            workers=worker or None,
            pads=_open_store(plan, pads, pad_key),
            threads=threads,
            worker_threads=worker_threads,
            batch=batch,
            lanes=lanes,
            timeout_s=timeout,
            # A warning is printed here, without the place in the code that Python adds.
            on_clip=OnClip.RAISE if on_clip is OnClip.RAISE else OnClip.IGNORE,
        ) as session,
        progress("inputs") as update,
    ):
        result = session.run(read.arrays, progress=update)
    if output is not None:
        # Results tell about inputs, and the worker may be another user of this machine.
        with files.replacing(output, private=True) as file:
            np.savez(file, **result.outputs)  # type: ignore[arg-type]
    beyond = clip_text(result.report) if on_clip is OnClip.WARN else None
    if beyond is not None:
        err().print(f"warning: {beyond}", style="yellow", soft_wrap=True)
    if json:
        document = _document(plan, result, read, top=top, labels=names, origin=origin)
        emit_json({**document, "warning": beyond})
    else:
        _show(plan, result, read, top=top, labels=names, origin=origin)


def _check_labels(graph: Graph, names: Sequence[str], labels: Path | None) -> None:
    known = graph.types.get(graph.outputs[0])
    classes = max((size or 0 for size in known.shape[1:]), default=0) if known else 0
    if names and len(names) < classes:
        raise InputError(f"--labels {labels}: {len(names)} names for {classes} classes")


def _require_folder(output: Path | None) -> None:
    if output is not None and (output.suffix != ".npz" or not output.parent.is_dir()):
        raise InputError(f"--output {output}: name a .npz file in an existing folder")


def _open_store(plan: Plan, pads: Path | None, pad_key: Path | None) -> PadStore | None:
    if pads is None or pad_key is None:
        return None
    if not plan.hidden_nodes:
        raise InputError(f"--pads {pads}: policy {plan.policy!r} blinds nothing; leave out --pads")
    return PadStore.open(pads, plan_digest=plan.digest, key_file=pad_key)


def _document(
    plan: Plan, result: Result, read: Inputs, *, top: int, labels: Sequence[str], origin: str
) -> dict[str, object]:
    by_sample = {key: _by_sample(plan, key, value, read) for key, value in result.outputs.items()}
    scores = next(iter(by_sample.values()))
    guesses = None
    if scores is not None and is_classifier(scores):
        guesses = best(scores, top=top, labels=labels)
    outputs = [
        {
            "input": source,
            "top": [vars(guess) for guess in guesses[i]] if guesses else [],
            "values": {
                key: result.outputs[key] if values is None else values[i]
                for key, values in by_sample.items()
            },
        }
        for i, source in enumerate(read.names)
    ]
    return {
        "outputs": outputs,
        "report": result.report.to_dict(),
        "claims": plan.claims().to_dict(),
        "calibration": origin,
        "plan_digest": plan.digest,
    }


def _by_sample(plan: Plan, name: str, value: np.ndarray, read: Inputs) -> np.ndarray | None:
    """An output with the samples as its first axis; None where it has no such axis."""
    axis = batch_axis(plan.graph, name)
    if axis is None or value.shape[axis] != len(read.names):
        return None
    return np.moveaxis(value, axis, 0)


def _show(
    plan: Plan, result: Result, read: Inputs, *, top: int, labels: Sequence[str], origin: str
) -> None:
    console = out()
    name, scores = next(iter(result.outputs.items()))
    by_sample = _by_sample(plan, name, scores, read)
    if by_sample is not None and is_classifier(by_sample):
        guesses = best(by_sample, top=top, labels=labels)
        rows = [
            (source if rank == 0 else "", guess.label, f"{100 * guess.probability:6.2f} %")
            for source, found in zip(read.names, guesses, strict=True)
            for rank, guess in enumerate(found)
        ]
        console.print(table(("input", "label", "softmax"), rows))
    else:
        console.print(f"output {name!r}: {scores.dtype} {scores.shape}; --output keeps the values")
    console.print()
    for line in (*summary(result.report), origin):
        console.print(line)
    console.print()
    console.print(str(plan.claims()), soft_wrap=True)
