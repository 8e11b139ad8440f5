"""The demo's model: what examples/train_digits.py promises about the file it wrote."""

from importlib import resources

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits

MODEL = resources.files("cloister.examples") / "digits.onnx"


@pytest.fixture(scope="module")
def session():
    return ort.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def held_out():
    digits = load_digits()
    chosen = np.arange(len(digits.images)) % 5 == 0
    images = (digits.images[chosen, None] / 16).astype(np.float32)
    return images, digits.target[chosen]


def test_held_out_accuracy_is_at_least_98_percent(session, held_out):
    images, labels = held_out
    (logits,) = session.run(None, {"image": images})
    assert len(labels) == 360
    assert (logits.argmax(1) == labels).mean() >= 0.98


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_batch_is_dynamic(session, held_out, batch):
    images = held_out[0][:batch]
    (logits,) = session.run(None, {"image": images})
    alone = [session.run(None, {"image": one[None]})[0][0] for one in images]
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)


def test_file_is_small_valid_and_free_of_build_details():
    data = MODEL.read_bytes()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert len(data) < 200_000
    assert model.opset_import[0].version >= 17
    assert not any(len(node.metadata_props) for node in model.graph.node)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
