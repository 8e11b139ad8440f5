"""Another verifier of SGX and TDX quotes agrees: on the real ones, and on a thousand mutations."""

import json
import random
from datetime import UTC, datetime, timedelta

import dcap_qvl
import pytest

from attest.cases import GENUINE, VECTORS
from cloister.attest.collateral import Collateral
from cloister.attest.verified_evidence import Revocation
from cloister.attest.verify import verify
from cloister.errors import CloisterError

NOW = datetime(2025, 6, 19, 12, tzinfo=UTC)
PAIRS = [
    ("tdx/tdx_quote", "tdx/tdx_quote_collateral.json"),
    ("sgx/sgx_quote", "sgx/sgx_quote_collateral.json"),
]
QUOTES = [case for case in GENUINE if case.kind in ("tdx", "sgx") and case.form == "bare"]
MUTATIONS = 60
"""Of each pair here; `python -m benchmarks attest` makes a thousand."""


def ours(quote, collateral, now):
    """Status and advisories, or nothing where it is refused."""
    try:
        found = verify(quote, Collateral.load([collateral]), now=now)
    except CloisterError:
        return None
    if found.revocation is not Revocation.GOOD:
        return None
    return found.claims["tcb_status"], sorted(found.claims["advisories"])


def theirs(quote, collateral, now):
    given = dcap_qvl.QuoteCollateralV3.from_json(collateral.read_text())
    try:
        found = dcap_qvl.verify(quote, given, int(now.timestamp()))
    except ValueError:
        return None
    return found.status, sorted(found.advisory_ids)


@pytest.mark.parametrize(("quote", "collateral"), PAIRS)
@pytest.mark.parametrize("days", [-4000, -1, 0, 20, 40, 4000])
def test_both_say_the_same_at_every_time(quote, collateral, days):
    data, given, now = (VECTORS / quote).read_bytes(), VECTORS / collateral, NOW
    now += timedelta(days=days)
    assert ours(data, given, now) == theirs(data, given, now)
    assert (ours(data, given, now) is not None) == (days in (0, 20))


@pytest.mark.parametrize("case", QUOTES, ids=lambda one: one.name)
@pytest.mark.parametrize("collateral", [given for _, given in PAIRS])
def test_both_refuse_collateral_of_other_platforms(case, collateral):
    given = VECTORS / collateral
    assert ours(case.data, given, NOW) == theirs(case.data, given, NOW)


@pytest.mark.parametrize(("quote", "collateral"), PAIRS)
def test_both_say_the_same_of_mutated_quotes(quote, collateral):
    data, given = (VECTORS / quote).read_bytes(), VECTORS / collateral
    draw = random.Random(quote)
    for _ in range(MUTATIONS):
        changed = mutated(data, draw)
        assert ours(changed, given, NOW) == theirs(changed, given, NOW)


@pytest.mark.parametrize(("quote", "collateral"), PAIRS)
def test_both_say_the_same_of_mutated_collateral(quote, collateral, tmp_path):
    data, text = (VECTORS / quote).read_bytes(), (VECTORS / collateral).read_text()
    draw = random.Random(collateral)
    for _ in range(MUTATIONS // 3):
        fields = json.loads(text)
        name = draw.choice([n for n in fields if "chain" not in n])
        place = draw.randrange(len(fields[name]))
        other = "0" if fields[name][place] != "0" else "1"
        fields[name] = fields[name][:place] + other + fields[name][place + 1 :]
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(fields))
        assert (ours(data, changed, NOW) is None) == (theirs(data, changed, NOW) is None), name


def mutated(data, draw):
    """A quote with some bytes changed, cut out, or set to extremes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = draw.randrange(len(changed))
        match draw.randrange(4):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place] = draw.choice((0, 255))
            case 2:
                del changed[place : place + draw.randrange(1, 40)]
            case _:
                changed[place:place] = bytes(draw.randrange(1, 8))
    return bytes(changed)
