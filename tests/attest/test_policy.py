"""Every field of a policy decides: changed alone, it refuses evidence that it accepted before."""

import tomllib
from dataclasses import replace

import pytest

from attest.cases import GENUINE, LENIENT
from cloister.attest.appraisal import appraise
from cloister.attest.policy import COMMON, RULES, Compare, Policy, fields_of, template
from cloister.attest.verified_evidence import Format
from cloister.attest.verify import verify
from cloister.errors import AttestationError, InputError

CASES = {
    Format.SEV_SNP: "snp coco",
    Format.TDX: "tdx, up to date",
    Format.SGX: "sgx",
    Format.NITRO: "nitro at byte 4",
    Format.NVIDIA_GPU: "gpu with manifest",
}
FIELDS = [(kind, rule) for kind in CASES for rule in RULES[kind]]
CODE, LAUNCH = "00" * 32, "00" * 48
TRUE_SOMEWHERE = {
    "debug": "nitro, debug",
    "smt_allowed": "snp coco",
    "relayable": "gpu with manifest",
    "septve_enabled": "tdx of SPR E4",
}


def evidence(name):
    (case,) = [one for one in GENUINE if one.name == name]
    return verify(case.data, case.given(), now=case.at)


@pytest.fixture(scope="module")
def found():
    return {kind: evidence(name) for kind, name in CASES.items()}


def fitting(rule, claims):
    """A value of the field that accepts these claims."""
    value = claims.get(rule.claims[0])
    match rule.compare:
        case Compare.ONE_OF:
            return [value]
        case Compare.SUBSET:
            return list(value)
        case Compare.LEVELS:
            return dict(value)
        case _:
            return value


def unfitting(rule, claims):
    """The same, changed so little that it does not."""
    value = claims.get(rule.claims[0])
    match rule.compare:
        case Compare.ONE_OF if isinstance(value, bytes):
            return [bytes([value[0] ^ 1]) + value[1:]]
        case Compare.ONE_OF if isinstance(value, int):
            return [value + 1]
        case Compare.ONE_OF:
            return [f"not {value}"]
        case Compare.LEVELS:
            name = max(value, key=value.get)
            return {**value, name: value[name] + 1}
        case Compare.AT_LEAST:
            return value + 1
        case Compare.AT_MOST:
            return value - 1
        case Compare.EQUAL:
            return not value
    return None


def with_field(kind, name, value):
    section = {**LENIENT.sections[kind], "insecure_allow_any_code": True, name: value}
    return Policy({kind: section})


@pytest.mark.parametrize(("kind", "rule"), FIELDS, ids=lambda one: getattr(one, "name", str(one)))
def test_each_field_alone_refuses_what_does_not_fit(found, kind, rule):
    claims = found[kind].claims
    if rule.compare is Compare.PERMITS:
        claim = rule.claims[0]
        changed = {**claims, claim: True}
        made = replace(found[kind], claims=changed)
        appraise(made, with_field(kind, rule.name, True), None)
        with pytest.raises(AttestationError, match=f"{claim}: expected false, found True"):
            appraise(made, with_field(kind, rule.name, False), None)
        return
    if rule.claims[0] not in claims:
        with pytest.raises(AttestationError, match="found no such claim"):
            appraise(found[kind], with_field(kind, rule.name, [b"\0"]), None)
        return
    if rule.compare is Compare.SUBSET:
        made = replace(found[kind], claims={**claims, rule.claims[0]: ["one", "two"]})
        appraise(made, with_field(kind, rule.name, ["one", "two", "three"]), None)
        with pytest.raises(AttestationError, match=f"field {rule.name} decides"):
            appraise(made, with_field(kind, rule.name, ["one"]), None)
        return
    appraise(found[kind], with_field(kind, rule.name, fitting(rule, claims)), None)
    wrong = unfitting(rule, claims)
    if wrong == -1:  # at the least that there is: the claim is raised instead
        made = replace(found[kind], claims={**claims, rule.claims[0]: 1})
        with pytest.raises(AttestationError, match=f"field {rule.name} decides"):
            appraise(made, with_field(kind, rule.name, 0), None)
        return
    with pytest.raises(AttestationError, match=f"field {rule.name} decides"):
        appraise(found[kind], with_field(kind, rule.name, wrong), None)


@pytest.mark.parametrize("claim", ["reported_tcb", "committed_tcb", "launch_tcb"])
def test_the_minimum_tcb_holds_for_committed_and_launch_tcb_too(found, claim):
    """A host can report a TCB that it may still fall below."""
    kind = Format.SEV_SNP
    claims = found[kind].claims
    levels = dict(claims["reported_tcb"])
    appraise(found[kind], with_field(kind, "min_tcb", levels), None)
    lower = {**claims[claim], "microcode": levels["microcode"] - 1}
    made = replace(found[kind], claims={**claims, claim: lower})
    with pytest.raises(AttestationError, match=f"{claim}: expected at least"):
        appraise(made, with_field(kind, "min_tcb", levels), None)


def test_real_evidence_has_the_flags_that_policies_refuse():
    for claim, name in TRUE_SOMEWHERE.items():
        assert evidence(name).claims[claim] is True


def test_every_flag_that_weakens_is_reported_and_takes_the_root_away(found):
    for kind, one in found.items():
        appraised = appraise(one, LENIENT, None)
        assert not appraised.hardware_rooted
        set_ = [n for n, v in LENIENT.sections[kind].items() if n.startswith("insecure") and v]
        needless = {"insecure_allow_unknown_revocation"} if kind in ("nitro", "nvidia-gpu") else ()
        assert set(appraised.weakened) == set(set_) - set(needless)


def test_a_strict_policy_is_hardware_rooted(found):
    one = found[Format.TDX]
    strict = Policy.of(
        {"tdx": {"mrtd": [one.claims["mrtd"].hex()], "rtmr1": [one.claims["rtmr1"].hex()]}}
    )
    appraised = appraise(one, strict, one.report_data)
    assert appraised.hardware_rooted
    assert appraised.weakened == ()
    assert appraised.to_json()["hardware_rooted"] is True


def test_half_of_the_report_data_only_where_the_policy_says_so(found):
    one = found[Format.TDX]
    cut = one.report_data[:32] + bytes(32)
    with pytest.raises(AttestationError, match="report data"):
        appraise(one, LENIENT, cut)
    policy = with_field(Format.TDX, "report_data", "insecure-first-32-bytes")
    assert "report_data" in appraise(one, policy, cut).weakened
    with pytest.raises(AttestationError, match="report data"):
        appraise(one, policy, bytes(64))


def test_evidence_of_a_format_that_the_policy_lacks(found):
    policy = Policy({Format.TDX: LENIENT.sections[Format.TDX]})
    with pytest.raises(AttestationError, match=r"has no section \[sgx\]"):
        appraise(found[Format.SGX], policy, None)


def test_the_template_accepts_nothing_and_names_every_field():
    text = template()
    for kind in RULES:
        for name in (*(rule.name for rule in RULES[kind]), *COMMON):
            assert name in text or kind is Format.SIMULATED
    parsed = tomllib.loads(text)
    assert set(parsed) == {kind.value for kind in RULES} - {"insecure-simulated"} | {"runtime"}
    with pytest.raises(InputError, match="names no code"):
        Policy.of(parsed)
    for kind in RULES:
        assert not any(
            value for name, value in fields_of(kind).items()
            if name.startswith("insecure") and name != "insecure_allow_unknown_revocation"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "accepts no format"),
        ({"sgx": {}}, r"\[sgx\]: names no code; set mrenclave or mrsigner"),
        ({"SGX": {"mrenclave": ["00"]}}, "section 'SGX': choose"),
        ({"tpm": {}}, "section 'tpm': choose sev-snp"),
        ({"sgx": 3}, "section 'sgx' cannot be used"),
        ({"sgx": {"mrenclaves": ["00"]}}, r"field 'mrenclaves' .* did you mean 'mrenclave'\?"),
        ({"sgx": {"other": ["00"]}}, "field 'other' is not known; choose mrenclave"),
        ({"sgx": {"mrenclave": "00"}}, "mrenclave: must be a list"),
        ({"sgx": {"mrenclave": []}}, "mrenclave: must be a list that is not empty"),
        ({"sgx": {"mrenclave": ["zz"]}}, "mrenclave: must be hexadecimal"),
        ({"sgx": {"mrenclave": [5]}}, "mrenclave: must be hexadecimal"),
        ({"sgx": {"mrenclave": [CODE], "min_isvsvn": -1}}, "min_isvsvn: -1 is not what it takes"),
        ({"sgx": {"mrenclave": [CODE], "min_isvsvn": True}}, "min_isvsvn: True is not"),
        ({"sgx": {"mrenclave": [CODE], "insecure_allow_debug": 1}}, "insecure_allow_debug: 1 is"),
        ({"sgx": {"mrenclave": [CODE], "report_data": "half"}}, "report_data: choose 'full'"),
        ({"sgx": {"mrenclave": [CODE], "insecure_allow_any_code": "yes"}}, "must be true or false"),
        ({"sgx": {"mrenclave": [CODE], "isvprodids": [True]}}, "neither a text nor a number"),
        (
            {"sev-snp": {"measurements": [LAUNCH], "min_tcb": {"cpu": 1}}},
            "min_tcb: must be a table",
        ),
        (
            {"sev-snp": {"measurements": [LAUNCH], "min_tcb": {"snp": 256}}},
            "min_tcb: .* is not what",
        ),
        ({"sgx": {"mrenclave": ["00"]}}, "mrenclave: a value has 64 hexadecimal digits, not 2"),
        ({"sgx": {"tcb_statuses": ["uptodate"]}}, "tcb_statuses: 'uptodate': choose UpToDate, SW"),
        ({"sev-snp": {"products": ["milan"]}}, "products: 'milan': choose Milan, Genoa, Turin"),
        ({"sev-snp": {"signing_keys": ["vlek"]}}, "signing_keys: 'vlek': choose VCEK, VLEK"),
    ],
)
def test_policies_that_cannot_be_read_are_refused_by_field(section, text):
    with pytest.raises(InputError, match=text):
        Policy.of(section)


def test_the_lengths_and_choices_of_fields_are_those_of_real_evidence(found):
    for kind, rule in FIELDS:
        claim = found[kind].claims.get(rule.claims[0])
        if rule.length and claim is not None:
            assert len(claim) == rule.length
        assert not rule.choices or claim in rule.choices
