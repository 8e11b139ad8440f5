"""Quotes of Intel's that no vector shows: other bodies, enclaves, modules, and what is hidden."""

import pytest

from attest.forge import NOW
from attest.forge_intel import Intel, qe_identity, tcb_info, tcb_level
from cloister.attest import intel
from cloister.attest.check_tree import Check, CheckState
from cloister.attest.verify import verify
from cloister.errors import AttestationError


@pytest.fixture
def vendor(monkeypatch):
    """Makes Intels, whose root is the pinned one from then on."""

    def make(**options):
        made = Intel(**options)
        monkeypatch.setattr(intel, "roots", lambda name: (made.root,))
        return made

    return make


def refuses(text, data, given=None):
    with pytest.raises(AttestationError, match=text):
        verify(data, given, now=NOW)


@pytest.mark.parametrize(
    ("tdx", "version", "td15", "size"),
    [(False, 3, False, 384), (False, 4, False, 384), (False, 5, False, 384),
     (True, 4, False, 584), (True, 5, False, 584), (True, 5, True, 648)],
)  # fmt: skip
def test_every_version_and_body(vendor, tdx, version, td15, size):
    quote = vendor().quote(tdx=tdx, version=version, td15=td15)
    found = verify(quote, now=NOW)
    assert found.format.value == ("tdx" if tdx else "sgx")
    assert found.claims["quote_version"] == version
    assert ("mrservicetd" in found.claims) == (size == 648)
    for place in range(0, 48 + size, 7):
        flipped = bytearray(quote)
        flipped[place] ^= 1
        with pytest.raises(AttestationError):
            verify(bytes(flipped), now=NOW)


@pytest.mark.parametrize("tdx", [True, False])
@pytest.mark.parametrize(
    ("qe", "text"),
    [
        ([(128, b"\1")], "quoting enclave: signer: expected"),
        ([(256, b"\3")], "quoting enclave: product: expected"),
        ([(48, b"\x17")], "quoting enclave: attributes: expected initialised, not debugged"),
        ([(48, b"\x14")], "quoting enclave: attributes: expected initialised, not debugged"),
        ([(20, b"\1")], "bytes 0x14 to 0x20 must be zero"),
        ([(303, b"\1")], "bytes 0x106 to 0x130 must be zero"),
    ],
)
def test_a_quoting_enclave_that_is_not_intels_is_refused_without_its_identity(
    vendor, tdx, qe, text
):
    made = vendor()
    verify(made.quote(tdx=tdx), now=NOW)
    refuses(text, made.quote(tdx=tdx, qe=qe))


def test_quoting_enclaves_of_sgx_and_tdx_are_not_exchanged(vendor):
    made = vendor()
    signer, product = intel._QE_SIGNERS[False]
    swapped = [(128, signer), (256, bytes([product]))]
    refuses("quoting enclave: signer", made.quote(tdx=True, qe=swapped))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([(64, b"\1")], "signer of the TDX module: expected"),
        ([(111, b"\1")], "signer of the TDX module: expected"),
        ([(112, b"\1")], "attributes of the TDX module: expected"),
        ([(119, b"\x80")], "attributes of the TDX module: expected"),
        ([(121, b"\1")], "TD attributes have bits that this version"),
        ([(124, b"\1")], "TD attributes have bits that this version"),
        ([(127, b"\x20")], "TD attributes have bits that this version"),
    ],
)
def test_a_module_or_attributes_that_are_not_known_are_refused(vendor, body, text):
    made = vendor()
    verify(made.quote(), now=NOW)
    refuses(text, made.quote(body=body))


@pytest.mark.parametrize("bit", range(64))
def test_each_attribute_of_a_virtual_machine_is_a_claim_or_refused(vendor, bit):
    made = vendor()
    quote = made.quote(body=[(120, (1 << bit).to_bytes(8, "little"))])
    if bit < 8:
        assert verify(quote, now=NOW).claims["debug"] is True
    elif bit in intel._TD_ATTRIBUTES.values():
        (name,) = [name for name, value in intel._TD_ATTRIBUTES.items() if value == bit]
        claims = verify(quote, now=NOW).claims
        assert claims["debug"] is False
        assert claims["septve_enabled"] is (name != "septve_disabled")
        assert name == "septve_disabled" or claims[name] is True
    else:
        refuses("TD attributes have bits", quote)


@pytest.mark.parametrize("offset", [20, 31, 96, 127, 160, 191, 262, 303])
def test_gaps_of_an_enclaves_report_are_empty(vendor, offset):
    refuses("must be zero", vendor().quote(tdx=False, version=3, body=[(offset, b"\1")]))


def test_bytes_between_the_parts_of_a_quote_are_refused(vendor):
    made = vendor()
    assert verify(made.quote() + bytes(7), now=NOW).claims["trailing_bytes"] == 7
    refuses("bytes of certification data: expected", made.quote(behind=b"\1"))
    refuses("bytes of certification data: expected", made.quote(end=b"\1"))
    refuses("kind of certification data: expected 6, found 5", made.quote(kind=5))
    behind = {"tdx": False, "version": 3, "behind": b"\1"}
    refuses("bytes of certification data: expected", made.quote(**behind))


def test_a_certificate_of_another_name_makes_no_quote(vendor):
    made = vendor(pck_name="Intel SGX TCB Signing")
    refuses("certificate Intel SGX TCB Signing: name: expected SGX PCK", made.quote())
    refuses("lacks Intel's extension", vendor(extension=False).quote())


UP = tcb_level("UpToDate", tdx=(5, 0, 2))
MODULES = [(1, [(5, "UpToDate"), (2, "OutOfDate")])]


def status(made, quote, info, identity=None):
    given = made.collateral(info=info, identity=identity or qe_identity())
    found = verify(quote, given, now=NOW)
    return found.claims["tcb_status"]


def test_a_module_has_an_identity_of_its_version(vendor):
    made = vendor()
    assert status(made, made.quote(), tcb_info(UP, modules=MODULES)) == "UpToDate"
    old = made.quote(body=[(0, b"\4")])
    assert status(made, old, tcb_info(UP, modules=MODULES)) == "OutOfDate"
    with pytest.raises(AttestationError, match="TDX module: expected TDX_01, found TDX_03"):
        status(made, made.quote(body=[(1, b"\3")]), tcb_info(UP, modules=MODULES))
    with pytest.raises(AttestationError, match="TCB information: type: expected 0, found 1"):
        status(made, made.quote(), tcb_info(UP, modules=MODULES, tcbType=1))


@pytest.mark.parametrize(
    ("second", "levels", "expected"),
    [
        # Old when it began, and replaced by the newest module of its version since.
        ((5, 1, 2), (UP,), "TDRelaunchAdvised"),
        ((9, 1, 3), (UP,), "TDRelaunchAdvised"),
        ((4, 1, 2), (UP,), "OutOfDate"),
        ((5, 1, 1), (UP,), "OutOfDate"),
        ((5, 0, 2), (UP,), "TDRelaunchAdvised"),
        ((4, 0, 2), (UP,), "OutOfDate"),
        (
            (5, 1, 2), (tcb_level("ConfigurationNeeded", tdx=(5, 0, 2)),),
            "TDRelaunchAdvisedConfigurationNeeded",
        ),
        # The processor's own microcode is old: a new start would not help.
        ((5, 1, 2), (tcb_level("OutOfDate", tdx=(5, 0, 2)),), "OutOfDate"),
        ((5, 1, 2), (tcb_level("Revoked", tdx=(5, 0, 2)),), "Revoked"),
    ],
)  # fmt: skip
def test_a_module_that_was_replaced_advises_a_new_start(vendor, second, levels, expected):
    made = vendor()
    quote = made.quote(body=[(0, b"\4\1\2"), (584, bytes(second))])
    assert status(made, quote, tcb_info(*levels, modules=MODULES)) == expected
    # A quoting enclave that is old is not made better by that.
    old = qe_identity(status="OutOfDate")
    assert "Relaunch" not in status(made, quote, tcb_info(*levels, modules=MODULES), old)


def test_a_replaced_module_of_no_listed_version_is_refused(vendor):
    made = vendor()
    quote = made.quote(body=[(0, b"\4\1\2"), (584, b"\5\7\2")])
    with pytest.raises(AttestationError, match="TDX module: expected TDX_01, found TDX_07"):
        status(made, quote, tcb_info(UP, modules=MODULES))


@pytest.mark.parametrize("given", ["info", "identity"])
def test_a_document_that_is_there_is_judged_where_the_other_is_missing(vendor, given):
    """A policy that accepts an unknown TCB does not accept another platform, or another enclave."""
    made = vendor()
    right = {"info": tcb_info(UP, modules=MODULES), "identity": qe_identity()}
    wrong = {
        "info": tcb_info(UP, modules=MODULES, fmspc="00" * 6),
        "identity": qe_identity(svn=99),
    }
    tree = Check("evidence")
    found = verify(made.quote(), made.collateral(**{given: right[given]}), now=NOW, check=tree)
    (tcb,) = [one for one in tree.parts if one.name == "TCB"]
    assert tcb.state is CheckState.NOT_CHECKED
    assert "tcb_status" not in found.claims
    text = {"info": "fmspc: expected", "identity": "security version 6 is older"}[given]
    refuses(text, made.quote(), made.collateral(**{given: wrong[given]}))
