"""Real models on real inputs; the full sets are measured by `python -m benchmarks accuracy`."""

import csv

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import cloister as cl
from cloister.errors import ClipWarning, VerificationError
from cloister.graph.split import split_points
from cloister.plan.protection import INTEGRITY
from cloister.trusted.compare import compare
from trusted.links import DirectLink

pytestmark = pytest.mark.data

PHOTO_MODELS = {
    "mobilenet_v1_0.75_224": (224, lambda x: (x - 127.5) / 127.5),
    "mobilenet_v2_1.0_224": (224, lambda x: (x - 128.0) / 128.0),
    "squeezenet_v1.0_227": (227, lambda x: x[..., ::-1] - np.array([104.0, 117.0, 123.0])),
}
CIFAR_MODELS = ("resnet20_cifar10", "resnet56_cifar10")
CIFAR_MEAN, CIFAR_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pixels(file, size):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((size, size)), np.float64)


def inputs_of(data, name, count):
    if name in CIFAR_MODELS:
        images = np.load(data / "cifar10" / "cifar10_subset.npz")["test_images"][:count]
        scaled = (images / 255.0 - CIFAR_MEAN) / CIFAR_STD
    else:
        size, prepare = PHOTO_MODELS[name]
        with (data / "photos" / "labels.csv").open() as table:
            rows = list(csv.DictReader(table))[:count]
        files = [data / "photos" / row["file"] for row in rows]
        scaled = np.stack([prepare(pixels(file, size)) for file in files])
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


@pytest.mark.parametrize("name", [*PHOTO_MODELS, *CIFAR_MODELS])
def test_private_inference_agrees_with_float32_and_with_the_simulation(data, name):
    path = data / "models" / f"{name}.onnx"
    inputs = inputs_of(data, name, 100 if name in CIFAR_MODELS else 8)
    # No PrecisionWarning: warnings are errors. Nor has any input channel a scale of its own.
    plan = cl.policies.slalom(cl.load(path), calibration=inputs[:32])
    assert all(node.x_factors is None for node in plan.linear_nodes)
    with cl.Session(plan) as session:
        result = session.run(inputs)
    plain = ort.InferenceSession(path)
    feed = plain.get_inputs()[0].name
    expected = np.concatenate([plain.run(None, {feed: x[None]})[0] for x in inputs])
    (output,) = result.outputs.values()
    agreement = (output.argmax(axis=1) == expected.reshape(output.shape).argmax(axis=1)).mean()
    assert agreement >= 0.98 - 1e-9 if len(inputs) >= 50 else agreement >= 1 - 1 / len(inputs)
    simulated = compare(plan, inputs[:2])
    for value, array in simulated.outputs.items():
        np.testing.assert_array_equal(array, result.outputs[value][:2])


@pytest.mark.parametrize("name", [*PHOTO_MODELS, *CIFAR_MODELS])
def test_pictures_that_calibration_has_not_seen_give_no_warning_until_they_are_scaled(data, name):
    inputs = inputs_of(data, name, 24)
    plan = cl.policies.slalom(cl.load(data / "models" / f"{name}.onnx"), calibration=inputs[:8])
    with cl.Session(plan, on_clip="raise") as session:
        assert session.run(inputs[8:]).report.inputs_beyond == ()
    with cl.Session(plan) as session, pytest.warns(ClipWarning):
        report = session.run(2 * inputs[8:]).report
    assert len(report.inputs_beyond) >= 12


@pytest.mark.parametrize("integrity", INTEGRITY)
@pytest.mark.parametrize(("name", "places"), [
    ("resnet20_cifar10", (0, 5, -1)), ("squeezenet_v1.0_227", (3, -1)),
    ("mobilenet_v2_1.0_224", (1, -1)),
])  # fmt: skip
def test_split_models_agree_with_float32(data, name, places, integrity):
    path = data / "models" / f"{name}.onnx"
    inputs = inputs_of(data, name, 50 if name in CIFAR_MODELS else 8)
    model, plain = cl.load(path), ort.InferenceSession(path)
    feed = plain.get_inputs()[0].name
    expected = np.concatenate([plain.run(None, {feed: x[None]})[0] for x in inputs])
    points = split_points(model)
    for place in places:
        until = points[place].until
        plan = cl.policies.origami(model, until=until, integrity=integrity, calibration=inputs)
        with cl.Session(plan) as session:
            (output,) = session.run(inputs).outputs.values()
        wanted = expected.reshape(output.shape).argmax(axis=1)
        assert (output.argmax(axis=1) == wanted).mean() >= 1 - 1 / len(inputs)


@pytest.mark.parametrize("name", ["resnet20_cifar10", "squeezenet_v1.0_227"])
def test_one_wrong_element_anywhere_is_refused(data, name):
    inputs = inputs_of(data, name, 1)
    plan = cl.policies.slalom(cl.load(data / "models" / f"{name}.onnx"), calibration=inputs)
    rng = np.random.default_rng(0)
    for victim in rng.choice(len(plan.linear_nodes), 4, replace=False):

        def lie(target, answer, victim=victim):
            if target == victim:
                at = rng.integers(answer.size)
                answer.flat[at] = (int(answer.flat[at]) + rng.integers(1, 2**32)) % 2**32
            return answer

        session = cl.Session(plan, workers=[DirectLink(lie=lie)])
        with session, pytest.raises(VerificationError):
            session.run(inputs)
