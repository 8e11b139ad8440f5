"""`cloister compare`: where a plan's fixed-point arithmetic loses accuracy."""

from dataclasses import asdict

from cloister.cli import options
from cloister.cli.console import emit_json, out, progress, table
from cloister.cli.images import read_inputs
from cloister.cli.planning import plan_for
from cloister.graph.onnx.load import load
from cloister.plan.compare import Comparison
from cloister.plan.compare import compare as measure


def compare(
    model: options.ModelFile,
    inputs: options.InputFiles,
    policy: options.PolicyName = None,
    mean: options.Mean = "0",
    std: options.Std = "1",
    scale: options.Scale = "1/255",
    layout: options.ModelLayout = None,
    channels: options.ChannelOrder = None,
    resize: options.Resize = None,
    calibration: options.CalibrationFiles = None,
    weight_bits: options.WeightBits = None,
    activation_bits: options.ActivationBits = None,
    threads: options.Threads = 1,
    json: options.Json = False,
) -> None:
    """Compare every linear layer under a plan with plain float32, without a worker."""
    graph = load(model)
    preprocessing = options.preprocessing(
        mean=mean, std=std, scale=scale, layout=layout, channels=channels, resize=resize
    )
    read = read_inputs(graph, inputs, preprocessing)
    plan, origin = plan_for(
        graph,
        policy=policy,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        calibration=calibration,
        inputs=read,
        preprocessing=preprocessing,
    )
    with progress("inputs") as update:
        found = measure(plan, read.arrays, threads=threads, progress=update)
    if json:
        emit_json({**found.to_dict(), "calibration": origin})
    else:
        _show(found, origin)


def _show(found: Comparison, origin: str) -> None:
    console = out()
    rows = [tuple(asdict(layer).values()) for layer in found.layers]
    headings = tuple(name.replace("_", " ") for name in asdict(found.layers[0]))
    console.print(table(headings, rows, title=f"against float32, {found.inputs} inputs"))
    console.print()
    console.print(f"largest difference of an output: {found.max_difference:.4g}")
    if found.top1_agreement is not None:
        console.print(f"top-1 agreement: {100 * found.top1_agreement:.2f} %")
    console.print(origin)
