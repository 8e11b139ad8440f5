"""What one party accepts, no other refuses: all take their bounds from one place."""

import math
import re
from pathlib import Path

import pytest

import cloister
from cloister.data.dataset import Header, encode_block, read_block
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import FunctionError, InputError, RangeError
from cloister.ring import bounds
from cloister.ring.linear import Geometry
from cloister.ring.rank import MERSENNE_61, Basis

ENCODING = Encoding(1.0, 0.0, 8)


def info(shape, classes=3, samples=0):
    return DatasetInfo("set", shape, classes, ENCODING, samples, 0)


@pytest.mark.parametrize("shape", [(2048, 2048, 1), (1, bounds.MAX_DIM, 1), (1024, 1024, 4)])
def test_the_largest_sample_is_one_for_everybody(shape, tmp_path):
    described = info(shape)
    assert DatasetInfo.from_json(described.to_json()) == described
    header = Header("set", shape, 3, ENCODING, "f" * 64)
    (tmp_path / "block").write_bytes(encode_block(header))
    with (tmp_path / "block").open("rb") as file:
        assert read_block(tmp_path / "block", file)[0] == header
    assert Basis.empty(described.dim, modulus=MERSENNE_61).rank == 0
    bounds.check_count(described, bounds.MAX_REQUEST_ELEMENTS // described.dim)


@pytest.mark.parametrize("shape", [(2049, 2048, 1), (1, 1, bounds.MAX_DIM + 1), (2**31, 2**31, 1)])
def test_a_larger_one_is_one_for_nobody(shape):
    for make in (info, lambda shape: Header("set", shape, 3, ENCODING, "f" * 64)):
        with pytest.raises(InputError, match=f"at most {bounds.MAX_DIM} are possible"):
            make(shape)
    with pytest.raises(RangeError):
        Basis.empty(math.prod(shape), modulus=MERSENNE_61)


def test_classes_and_samples_have_bounds():
    info((1, 1, 4), classes=bounds.MAX_CLASSES, samples=bounds.MAX_SAMPLES)
    for more in ({"classes": 1}, {"classes": bounds.MAX_CLASSES + 1}):
        with pytest.raises(InputError, match="classes"):
            info((1, 1, 4), **more)
        with pytest.raises(InputError, match="classes"):
            Header("set", (1, 1, 4), more["classes"], ENCODING, "f" * 64)
    for samples in (-1, bounds.MAX_SAMPLES + 1):
        with pytest.raises(InputError, match="samples"):
            info((1, 1, 4), samples=samples)


def test_the_body_of_the_largest_request_is_bounded():
    described = info((1, 1, 64))
    geometry = Geometry((1, 1), 64, (1, 1), bounds.MAX_REQUEST_ELEMENTS // 64)
    bounds.check_size(described, geometry, 1)
    weights = 2 * math.prod(geometry.weight_shape)
    assert weights + 8 * bounds.MAX_REQUEST_SAMPLES < bounds.MAX_BODY_BYTES
    wider = Geometry((1, 1), 64, (1, 1), bounds.MAX_REQUEST_ELEMENTS // 64 + 1)
    with pytest.raises(FunctionError, match="too large"):
        bounds.check_size(described, wider, 1)


def test_no_party_has_bounds_of_its_own():
    """Names of bounds in `ring/bounds.py` are defined nowhere else in four packages."""
    names = re.findall(r"^(MAX_[A-Z_]+) =", Path(bounds.__file__).read_text(), re.MULTILINE)
    assert "MAX_DIM" in names
    root = Path(cloister.__file__).parent
    sources = [
        path
        for folder in ("data", "published", "authority", "training")
        for path in (root / folder).rglob("*.py")
        if path.name != "bounds.py"
    ]
    assert len(sources) > 20
    for path in sources:
        defined = re.findall(r"^_?(MAX_[A-Z_]+) =", path.read_text(), re.MULTILINE)
        assert not set(defined) & set(names), path
