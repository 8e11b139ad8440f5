"""A changed byte of what is signed is refused, wherever it stands; a sample here, all in a
benchmark.
"""

import random
import re

import pytest

from attest.cases import GENUINE
from cloister.attest.verify import verify
from cloister.errors import CloisterError

CASES = [case for case in GENUINE if case.signed != (0, 0)]
GPUS = [case for case in GENUINE if case.evidence.startswith("gpu/hopper")]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_flipped_bits_of_the_signed_part_are_refused(case):
    given, data = case.given(), case.data
    begin, end = case.signed
    draw = random.Random(case.name)
    places = sorted({begin, end - 1, *draw.sample(range(begin, end), 40)})
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises(CloisterError):
            verify(bytes(changed), given, now=case.at)
            pytest.fail(f"byte {place} of {len(data)} was flipped, and nobody noticed")


@pytest.mark.parametrize("case", GPUS, ids=lambda one: one.name)
def test_flipped_digits_of_gpu_reports_are_refused(case):
    given, text = case.given(), case.data.strip().decode()
    draw = random.Random(case.name)
    for place in draw.sample(range(len(text) - 2), 40):
        digit = f"{int(text[place], 16) ^ (1 << draw.randrange(4)):x}"
        changed = text[:place] + digit + text[place + 1 :]
        with pytest.raises(CloisterError):
            verify(changed.encode(), given, now=case.at)
            pytest.fail(f"digit {place} was changed, and nobody noticed")


def test_a_changed_certificate_or_document_is_refused():
    (case,) = [one for one in GENUINE if one.name == "tdx, up to date"]
    text = (case.given().documents["tcb_info"][0].data).decode()
    assert re.search('"tcbStatus":"UpToDate"', text)
    given = case.given()
    (document,) = given.documents["tcb_info"]
    for old, new in (("UpToDate", "upToDate"), ("2025-07", "2035-07"), ('"svn":5', '"svn":4')):
        assert old in text
        documents = dict(given.documents)
        changed = text.replace(old, new).encode()
        documents["tcb_info"] = (type(document)(changed, document.signature),)
        other = type(given)(given.certificates, given.revocation_lists, documents)
        with pytest.raises(CloisterError, match="signature is wrong"):
            verify(case.data, other, now=case.at)
