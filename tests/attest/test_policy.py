"""Every field of a policy decides: changed alone, it refuses evidence that it accepted before."""

import tomllib
from dataclasses import replace

import pytest

from attest.cases import LENIENT
from attest.good_evidence import good_evidence
from cloister.attest.appraisal import appraise
from cloister.attest.policy import (
    ANY_CODE,
    COMMON,
    FIRST_32,
    REPORT_DATA,
    RULES,
    UNKNOWN_REVOCATION,
    Compare,
    Policy,
    fields_of,
    template,
)
from cloister.attest.verified_evidence import Format, Revocation
from cloister.errors import AttestationError, InputError

CASES = {
    Format.SEV_SNP: "snp coco",
    Format.TDX: "tdx, up to date",
    Format.SGX: "sgx",
    Format.NITRO: "nitro at byte 4",
    Format.NVIDIA_GPU: "gpu with manifest",
    Format.TPM: "quote",
    Format.SIMULATED: "simulated, debug False",
}
FIELDS = [(kind, rule) for kind in RULES for rule in RULES[kind]]
CODE, LAUNCH = "00" * 32, "00" * 48
BIT_UNKNOWN = 1 << 40


@pytest.fixture(scope="module")
def good():
    """Verified evidence of every format by name."""
    return good_evidence()


@pytest.fixture(scope="module")
def found(good):
    return {kind: good[name] for kind, name in CASES.items()}


def fitting(rule, claims):
    """The tightest value of a field that accepts these claims; None where they do not say."""
    if not set(rule.claims) <= set(claims):
        return None
    value = claims[rule.claims[0]]
    match rule.compare:
        case Compare.ONE_OF:
            return [value]
        case Compare.SUBSET:
            return list(value)
        case Compare.BITS:
            return value & claims[rule.claims[-1]]
        case Compare.LEVELS:
            others = [claims[name] for name in rule.claims]
            return {level: min(one[level] for one in others) for level in value}
        case _:
            return value


def tight(evidence, **changed):
    """A policy that asks for every field that the evidence has a claim for, and fits it."""
    kind = evidence.format
    section = fields_of(kind)
    for rule in RULES[kind]:
        value = fitting(rule, evidence.claims)
        section[rule.name] = rule.default if value is None else value
    section["insecure_allow_unknown_revocation"] = evidence.revocation is not Revocation.GOOD
    if "tcb_status" not in evidence.claims and "insecure_allow_unknown_tcb" in section:
        section["insecure_allow_unknown_tcb"] = True
    return Policy({kind: {**section, **changed}})


def unfitting(rule, claims):
    """Values of a field, each changed so little that these claims do not fit any more."""
    value = fitting(rule, claims)
    match rule.compare, value:
        case _, None:
            return
        case Compare.ONE_OF, [bytes() as one]:
            for place in (0, len(one) - 1):
                yield [one[:place] + bytes([one[place] ^ 1]) + one[place + 1 :]]
        case Compare.ONE_OF, [int() as one]:
            yield [one + 1]
        case Compare.ONE_OF, [str() as one]:
            yield [f"{one} "]
        case Compare.SUBSET, [_, *_]:
            for one in value:
                yield [other for other in value if other != one]
        case Compare.LEVELS, _:
            for name in value:
                yield {**value, name: value[name] + 1}
        case Compare.AT_LEAST, _:
            yield value + 1
        case Compare.AT_MOST, _ if value > 0:
            yield value - 1
        case Compare.BITS, _:
            yield value | BIT_UNKNOWN
        case Compare.EQUAL, _:
            yield not value
        case Compare.PERMITS, True:
            yield False


@pytest.mark.parametrize(("kind", "rule"), FIELDS, ids=lambda one: getattr(one, "name", str(one)))
def test_each_field_alone_refuses_what_does_not_fit(good, kind, rule):
    """The list is the table's: a field without evidence that it can refuse fails here."""
    refused = 0
    for evidence in good.values():
        if evidence.format is not kind:
            continue
        appraise(evidence, tight(evidence), None)
        for wrong in unfitting(rule, evidence.claims):
            with pytest.raises(AttestationError, match=f"field {rule.name} decides"):
                appraise(evidence, tight(evidence, **{rule.name: wrong}), None)
            refused += 1
    assert refused, f"no good evidence says anything about {rule.name}: add it to good_evidence.py"


@pytest.mark.parametrize(("kind", "rule"), FIELDS, ids=lambda one: getattr(one, "name", str(one)))
def test_a_claim_that_is_missing_is_refused_where_it_is_asked_for(good, kind, rule):
    (evidence, *_) = [
        one for one in good.values() if one.format is kind and set(rule.claims) <= set(one.claims)
    ]
    asked = tight(evidence)
    section = dict(asked.sections[kind])
    section.pop("insecure_allow_unknown_tcb", None)
    for claim in rule.claims:
        without = replace(evidence, claims={n: v for n, v in evidence.claims.items() if n != claim})
        with pytest.raises(AttestationError, match=f"{claim}: expected .*no such claim"):
            appraise(without, Policy({kind: section}), None)


def refuse_any_code(evidence, section):
    with pytest.raises(InputError, match="names no code"):
        Policy.of({evidence.format.value: {}})
    named = {rule.name: None for rule in RULES[evidence.format] if rule.code}
    appraise(evidence, Policy({evidence.format: {**section, **named, ANY_CODE: True}}), None)


def refuse_unknown_revocation(evidence, section):
    unknown = replace(evidence, revocation=Revocation.UNKNOWN)
    appraise(unknown, Policy({evidence.format: {**section, UNKNOWN_REVOCATION: True}}), None)
    with pytest.raises(AttestationError, match="revocation: expected good, found unknown"):
        appraise(unknown, Policy({evidence.format: {**section, UNKNOWN_REVOCATION: False}}), None)
    revoked = replace(evidence, revocation=Revocation.REVOKED)
    with pytest.raises(AttestationError, match="revocation: expected good, found revoked"):
        appraise(revoked, Policy({evidence.format: {**section, UNKNOWN_REVOCATION: True}}), None)


def refuse_half_of_report_data(evidence, section):
    if len(evidence.report_data) <= 32:
        return
    policy = Policy({evidence.format: {**section, REPORT_DATA: FIRST_32}})
    half = evidence.report_data[:32]
    for expected in (half, half + bytes(32), half + b"x"):
        assert REPORT_DATA in appraise(evidence, policy, expected).weakened
        with pytest.raises(AttestationError, match="report data"):
            other = expected if expected != evidence.report_data else half
            appraise(evidence, Policy({evidence.format: section}), other)
    for short in (half[:31], b"", bytes(32)):
        with pytest.raises(AttestationError, match="report data"):
            appraise(evidence, policy, short)


def refuse_unknown_tcb(evidence, section):
    left = {name: v for name, v in evidence.claims.items() if name not in TCB_CLAIMS}
    unknown = replace(evidence, claims=left)
    kind = evidence.format
    appraise(unknown, Policy({kind: {**section, "insecure_allow_unknown_tcb": True}}), None)
    with pytest.raises(AttestationError, match="no such claim; Intel's documents say"):
        appraise(unknown, Policy({kind: {**section, "insecure_allow_unknown_tcb": False}}), None)


def refuse_any_key(evidence, section):
    code = {"pcr4": [evidence.claims["pcr4"].hex()]}
    Policy.of({"tpm": {**code, "insecure_allow_any_key": True}})
    with pytest.raises(InputError, match="names no key"):
        Policy.of({"tpm": {**code, "insecure_allow_any_key": False}})


TCB_CLAIMS = ("tcb_status", "tcb_date", "advisories")
OTHERS = {
    "insecure_allow_any_code": refuse_any_code,
    "insecure_allow_unknown_revocation": refuse_unknown_revocation,
    "report_data": refuse_half_of_report_data,
    "insecure_allow_unknown_tcb": refuse_unknown_tcb,
    "insecure_allow_any_key": refuse_any_key,
}
"""What each field decides that has no claim of its own."""


@pytest.mark.parametrize("kind", RULES)
def test_each_field_without_a_claim_of_its_own_decides_too(good, kind):
    (evidence, *_) = [one for one in good.values() if one.format is kind]
    section = tight(evidence).sections[kind]
    names = set(fields_of(kind)) - {rule.name for rule in RULES[kind]}
    assert names >= set(COMMON)
    for name in names:
        OTHERS[name](evidence, section)


def with_field(kind, name, value):
    return Policy({kind: {**LENIENT.sections[kind], name: value}})


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


def test_every_flag_that_weakens_is_reported_and_takes_the_root_away(found):
    for kind in LENIENT.sections:
        appraised = appraise(found[kind], LENIENT, None)
        assert not appraised.hardware_rooted
        set_ = [n for n, v in LENIENT.sections[kind].items() if n.startswith("insecure") and v]
        needless = {"insecure_allow_unknown_revocation"} if kind in ("nitro", "nvidia-gpu") else ()
        let_through = {"tcb_statuses", "advisories"} if kind in ("tdx", "sgx") else set()
        assert set(set_) - set(needless) <= set(appraised.weakened)
        assert set(appraised.weakened) <= (set(set_) - set(needless)) | let_through


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


def test_every_field_of_the_template_has_a_comment():
    lines = [one for one in template().splitlines() if " = " in one]
    assert len(lines) > 100
    assert not [one for one in lines if not one.removeprefix("# ").partition("  # ")[2]]


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
        ({"sev": {}}, "section 'sev': choose sev-snp"),
        ({"sgx": 3}, "section 'sgx' cannot be used"),
        ({"sgx": {"mrenclaves": ["00"]}}, r"field 'mrenclaves' .* did you mean 'mrenclave'\?"),
        ({"sgx": {"other": ["00"]}}, "field 'other' is not known; choose mrenclave"),
        ({"sgx": {"mrenclave": "00"}}, "mrenclave: must be a list"),
        ({"sgx": {"mrenclave": []}}, "mrenclave: must be a list that is not empty"),
        ({"sgx": {"mrenclave": ["zz"]}}, "mrenclave: must be hexadecimal"),
        ({"sgx": {"mrenclave": [5]}}, "mrenclave: must be hexadecimal"),
        ({"sgx": {"mrenclave": [CODE], "min_isvsvn": -1}}, "min_isvsvn: -1: must be a whole"),
        ({"sgx": {"mrenclave": [CODE], "min_isvsvn": True}}, "min_isvsvn: True: must be"),
        (
            {"sgx": {"mrenclave": [CODE], "insecure_allow_debug": 1}},
            "_debug: 1: must be true",
        ),
        ({"sgx": {"mrenclave": [CODE], "report_data": "half"}}, "report_data: choose 'full'"),
        ({"sgx": {"mrenclave": [CODE], "insecure_allow_any_code": "yes"}}, "must be true or false"),
        ({"sgx": {"mrenclave": [CODE], "isvprodids": [True]}}, "neither a text nor a number"),
        (
            {"sev-snp": {"measurements": [LAUNCH], "min_tcb": {"cpu": 1}}},
            "min_tcb: must be a table",
        ),
        (
            {"sev-snp": {"measurements": [LAUNCH], "min_tcb": {"snp": 256}}},
            "min_tcb: .*: must be levels from 0 to 255",
        ),
        ({"sgx": {"mrenclave": ["00"]}}, "mrenclave: a value has 64 hexadecimal digits, not 2"),
        ({"sgx": {"tcb_statuses": ["Revoked"]}}, "tcb_statuses: 'Revoked': choose UpToDate, SW"),
        ({"sgx": {"tcb_statuses": ["uptodate"]}}, "tcb_statuses: 'uptodate': choose UpToDate, SW"),
        ({"tdx": {"tcb_statuses": ["Revoked"]}}, "tcb_statuses: 'Revoked': choose UpToDate, SW"),
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
