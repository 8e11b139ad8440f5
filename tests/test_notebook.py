"""Plans, claims, reports and data sets as notebooks show them."""

from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import cloister
from cloister import examples
from cloister.base.notebook import html_table
from cloister.data.dataset import EncryptedDataset, Header, encode_block
from cloister.data.encoding import Encoding

DIGITS = Path(examples.__file__).with_name("digits.onnx")


def read(markup):
    """The texts of the cells; markup that is not well-formed is an error."""
    root = ElementTree.fromstring(f"<div>{markup}</div>")
    return ["".join(cell.itertext()) for cell in root.iter() if cell.tag in ("td", "th", "caption")]


@pytest.fixture(scope="module")
def plan():
    x = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    return cloister.policies.slalom(cloister.load(DIGITS), calibration=x)


def test_claims(plan):
    cells = read(plan.claims()._repr_html_())
    for statement in plan.claims().statements:
        assert {statement.role, statement.text, statement.extent} <= set(cells)


def test_a_plan_shows_its_claims_and_every_node(plan):
    cells = read(plan._repr_html_())
    assert "plan of policy slalom" in cells
    assert {node.name for node in plan.graph.nodes} <= set(cells)
    assert {statement.text for statement in plan.claims().statements} <= set(cells)


def test_a_report(plan):
    with cloister.Session(plan) as session:
        report = session.run(np.zeros((2, 1, 8, 8), np.float32)).report
    cells = read(report._repr_html_())
    assert cells[cells.index("inputs") + 1] == "2"
    assert cells[cells.index("hardware rooted") + 1] == "False"


def test_an_encrypted_data_set(tmp_path):
    path = tmp_path / "set.cloister"
    header = Header("north-and-south", (1, 1, 13), 2, Encoding(1.0, 0.0, 8), "f" * 64)
    path.write_bytes(encode_block(header))
    cells = read(EncryptedDataset.open(path)._repr_html_())
    assert "encrypted data set north-and-south" in cells
    assert "f" * 64 in cells


def test_cells_are_text():
    hostile = "<script>alert('x')</script>&\""
    assert read(html_table(hostile, [(hostile, 1)], header=(hostile, "b"))) == [
        hostile, hostile, "b", hostile, "1",
    ]  # fmt: skip


def test_the_version():
    assert cloister.__version__ == version("cloister")
