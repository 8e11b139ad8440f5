"""A changed byte of what is signed is refused, wherever it stands; a sample here, all in a
benchmark.
"""

import random
import re

import pytest

from attest.cases import GENUINE
from cloister.attest.verify import verify
from cloister.errors import CloisterError


@pytest.mark.parametrize("case", GENUINE, ids=lambda one: one.name)
def test_flipped_bits_of_the_signed_part_are_refused(case):
    given, draw = case.given(), random.Random(case.name)
    several = 8 if case.form == "GPUs in JSON" else 1

    def places(begin, end):
        return sorted({begin, end - 1, *draw.sample(range(begin, end), 40 // several)})

    for place, changed in case.flips(places):
        with pytest.raises(CloisterError):
            verify(changed, given, now=case.at)
            pytest.fail(f"byte {place} was flipped, and nobody noticed")


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
