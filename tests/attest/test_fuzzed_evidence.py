"""Whatever the bytes, verifying and loading collateral raise the library's own errors only."""

from datetime import UTC, datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attest.cases import GENUINE, VECTORS
from cloister.attest.check_tree import Check
from cloister.attest.collateral import Collateral
from cloister.attest.verify import verify
from cloister.errors import CloisterError

NOW = datetime(2025, 6, 19, 12, tzinfo=UTC)
SEEDS = [case.data for case in GENUINE]
SEEDS += [path.read_bytes() for path in sorted((VECTORS / "tpm").glob("*.bin"))]
FILES = sorted(path for path in VECTORS.rglob("*") if path.is_file() and path.name != "ccel.dat")
GIVEN = [case.given() for case in GENUINE]


@st.composite
def changed_bytes(draw, seeds):
    """One of the seeds with pieces changed, cut out and put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        piece = draw(st.binary(max_size=12))
        cut = draw(st.sampled_from([0, len(piece), len(piece) + 3]))
        data[place : place + cut] = piece
    return bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=changed_bytes(SEEDS), given_=st.sampled_from(GIVEN))
def test_evidence(data, given_):
    try:
        verify(data, given_, now=NOW, check=Check("evidence"))
    except CloisterError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=changed_bytes([path.read_bytes() for path in FILES]))
def test_collateral(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "file"
    path.write_bytes(data)
    try:
        Collateral.load([path])
    except CloisterError as error:
        assert "\n" not in str(error)
