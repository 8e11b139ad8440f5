"""The algorithm that finds a platform's TCB level, on levels made up for it."""

from datetime import UTC, datetime

import pytest

from attest.cases import GENUINE
from cloister.attest.intel_quote import parse
from cloister.attest.intel_tcb import (
    IntelDocument,
    PlatformTcb,
    TcbLevel,
    TcbStatus,
    evaluate,
    read_document,
)
from cloister.errors import AttestationError

ENDS = datetime(2030, 1, 1, tzinfo=UTC)
STATUSES = list(TcbStatus)
# Relaunch is advised only where no part is old: with an old quoting enclave, the whole is.
OLD = {"UpToDate", "SWHardeningNeeded", "TDRelaunchAdvised"}
OLD_CONFIGURED = {
    "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvisedConfigurationNeeded",
}  # fmt: skip


def quote(name):
    (case,) = [one for one in GENUINE if one.name == name]
    return parse(case.data)


@pytest.mark.parametrize("platform", STATUSES)
@pytest.mark.parametrize("part", STATUSES)
def test_statuses_are_combined_as_intels_library_does(platform, part):
    both = TcbLevel(platform, "2", ("A",)).with_part(TcbLevel(part, "1", ("A", "B")))
    if "Revoked" in (platform, part):
        expected = "Revoked"
    elif part.startswith("OutOfDate"):
        expected = {
            **dict.fromkeys(OLD, "OutOfDate"),
            **dict.fromkeys(OLD_CONFIGURED, "OutOfDateConfigurationNeeded"),
        }.get(platform, platform)
    else:
        expected = platform
    assert both.status.value == expected
    assert (both.date, both.advisories) == ("1", ("A", "B"))


def info(levels, **changed):
    fields = {
        "id": "SGX", "version": 3, "fmspc": "00A067110000", "pceId": "0000",
        "tcbLevels": levels,
    }  # fmt: skip
    return IntelDocument({**fields, **changed}, ENDS)


def level(svn, pcesvn, status, **more):
    components = [{"svn": one} for one in svn]
    return {
        "tcb": {"sgxtcbcomponents": components, "pcesvn": pcesvn}, "tcbStatus": status,
        "tcbDate": "2024-01-01T00:00:00Z", **more,
    }  # fmt: skip


def identity(svn=0, **changed):
    report = quote("sgx").qe_report
    fields = {
        "id": "QE", "version": 2, "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": report.raw(48, 16).hex(), "attributesMask": "FF" * 16,
        "mrsigner": report.raw(128, 32).hex(), "isvprodid": 1,
        "tcbLevels": [{"tcb": {"isvsvn": svn}, "tcbDate": "2", "tcbStatus": "UpToDate"}],
    }  # fmt: skip
    return IntelDocument({**fields, **changed}, ENDS)


def found(levels, platform=(5,) * 16, pcesvn=10, who=None, **changed):
    tcb = PlatformTcb(bytes(16), platform, pcesvn, bytes(2), bytes.fromhex("00a067110000"))
    return evaluate(quote("sgx"), tcb, info(levels, **changed), who or identity())


def test_the_first_level_that_fits_counts():
    levels = [
        level((6,) * 16, 10, "UpToDate"),
        level((5,) * 16, 11, "SWHardeningNeeded"),
        level((5,) * 16, 10, "ConfigurationNeeded", advisoryIDs=["INTEL-SA-1"]),
        level((1,) * 16, 1, "OutOfDate"),
    ]
    assert found(levels).status is TcbStatus.CONFIGURATION
    assert found(levels).advisories == ("INTEL-SA-1",)
    assert found(levels, pcesvn=11).status is TcbStatus.SW_HARDENING


@pytest.mark.parametrize("place", range(16))
def test_every_component_counts(place):
    own = [5] * 16
    own[place] = 4
    levels = [level((5,) * 16, 10, "UpToDate"), level((4,) * 16, 10, "OutOfDate")]
    assert found(levels).status is TcbStatus.UP_TO_DATE
    assert found(levels, platform=tuple(own)).status is TcbStatus.OUT_OF_DATE


def test_a_platform_below_every_level_is_refused():
    with pytest.raises(AttestationError, match="no level fits this platform"):
        found([level((9,) * 16, 1, "UpToDate")])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"fmspc": "00A067110001"}, "fmspc: expected 00a067110000"),
        ({"pceId": "0001"}, "pceId: expected 0000"),
        ({"id": "TDX"}, "kind and version: expected SGX"),
        ({"version": 4}, "kind and version"),
        ({"tcbLevels": None}, "TCB information: is damaged"),
        ({"tcbLevels": [{"tcb": {"sgxtcbcomponents": [], "pcesvn": 0}}]}, "is damaged"),
    ],
)
def test_tcb_information_of_something_else_is_refused(changed, text):
    with pytest.raises(AttestationError, match=text):
        found([level((1,) * 16, 1, "UpToDate")], **changed)


def test_a_status_that_nobody_knows_is_refused():
    with pytest.raises(AttestationError, match=r"TCB status: expected UpToDate or .* found Fine"):
        found([level((1,) * 16, 1, "Fine")])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"id": "TD_QE"}, "kind: expected TD_QE, found QE|kind: expected QE, found TD_QE"),
        ({"version": 3}, "version of its identity"),
        ({"mrsigner": "00" * 32}, "signer: expected"),
        ({"isvprodid": 2}, "product: expected 2"),
        ({"miscselect": "01000000"}, "miscselect: expected"),
        ({"attributes": "ff" * 16}, "attributes: expected"),
        ({"attributesMask": "ff" * 15}, "is damaged"),
    ],
)
def test_a_quoting_enclave_that_is_not_intels_is_refused(changed, text):
    with pytest.raises(AttestationError, match=text):
        found([level((1,) * 16, 1, "UpToDate")], who=identity(**changed))


def test_a_quoting_enclave_older_than_any_is_refused():
    with pytest.raises(AttestationError, match=r"security version .* is older"):
        found([level((1,) * 16, 1, "UpToDate")], who=identity(svn=200))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"issueDate": 5}', b'{"issueDate":"x"}'])
def test_documents_that_are_damaged_are_refused(text):
    with pytest.raises(AttestationError, match="is damaged"):
        read_document(text, "TCB information", now=ENDS)
