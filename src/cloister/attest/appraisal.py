"""Comparing verified evidence with a policy: the decision whether a machine is trusted."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloister.attest.check_tree import Check, refused, require_equal, shown
from cloister.attest.policy import (
    ANY_CODE,
    FIRST_32,
    NO_LISTS,
    REPORT_DATA,
    RULES,
    UNKNOWN_REVOCATION,
    UNKNOWN_TCB,
    Compare,
    Policy,
    Rule,
    RuntimeRules,
)
from cloister.attest.verified_evidence import Format, Revocation, VerifiedEvidence
from cloister.errors import AttestationError

HALF_BYTES = 32
LAUNCH_FIELDS: Mapping[Format, tuple[str, Callable[..., "hashlib._Hash"]]] = {
    Format.SEV_SNP: ("host_data", hashlib.sha256),
    Format.TDX: ("mrconfigid", hashlib.sha384),
    Format.SGX: ("config_id", hashlib.sha512),
    Format.SIMULATED: ("host_data", hashlib.sha256),
}
"""The claim that holds a digest given at launch, which may be that of a manifest."""


@dataclass(frozen=True)
class Appraisal:
    """Evidence that a policy accepts; there is none of evidence that it does not.

    weakened   the fields of the policy that weaken protection and are set, and those whose strict
               default would have refused this evidence
    checks     those of the evidence, and below them those of the policy
    manifest   SHA-256 of the manifest of the runtime that answers, if one was given
    """

    evidence: VerifiedEvidence
    weakened: tuple[str, ...]
    checks: Check
    manifest: bytes | None = None

    @property
    def hardware_rooted(self) -> bool:
        """Whether hardware vouches for the machine, and the policy asks for all it can say."""
        return self.evidence.hardware_rooted and not self.weakened

    def to_json(self) -> dict[str, object]:
        """All of it in plain values."""
        found = self.evidence.to_json()
        found |= {"hardware_rooted": self.hardware_rooted, "weakened": list(self.weakened)}
        if self.manifest is not None:
            found["manifest"] = self.manifest.hex()
        return {**found, "checks": self.checks.to_json()}


def appraise(
    evidence: VerifiedEvidence,
    policy: Policy,
    expected_report_data: bytes | None,
    *,
    manifest: bytes | None = None,
) -> Appraisal:
    """Compare evidence with a policy, field by field.

    expected_report_data   what the machine was asked to bind; None: nothing was asked, which proves
                           that such a machine exists, and not that it is the one that answers
    manifest               of the runtime that answers, which its launch may have bound

    Raises   AttestationError naming the claim, what was expected and found, and the policy's entry
    """
    section = policy.sections.get(evidence.format, {})
    with evidence.checks.whole(), evidence.checks.step("policy") as check:
        rules = RULES[evidence.format]
        check.expect("format", "report data", *(rule.name for rule in rules))
        with check.step("format"):
            if not section:
                raise refused(
                    "format", expected=[kind.value for kind in policy.sections],
                    found=evidence.format.value,
                    remedy=f"the policy has no section [{evidence.format.value}]",
                )  # fmt: skip
        _compare_report_data(evidence, section, expected_report_data, check)
        for rule in rules:
            _compare(rule, evidence, section, check)
        _judge_revocation(evidence, section, check)
        if UNKNOWN_TCB in section:
            _require_tcb(evidence, section, check)
        _compare_manifest(evidence, section, policy.runtime, manifest, check)
    weakened = [name for name, value in section.items() if name.startswith("insecure") and value]
    weakened += [rule.name for rule in rules if _is_let_through(rule, evidence, section)]
    if section[REPORT_DATA] == FIRST_32:
        weakened.append(REPORT_DATA)
    if evidence.format in NO_LISTS:
        # Nobody could give a list.
        weakened = [name for name in weakened if name != UNKNOWN_REVOCATION]
    digest = None if manifest is None else hashlib.sha256(manifest).digest()
    return Appraisal(evidence, tuple(weakened), evidence.checks, digest)


def _compare_report_data(
    evidence: VerifiedEvidence, section: Mapping[str, object], expected: bytes | None, check: Check
) -> None:
    if expected is None:
        check.leave("report data", "nothing was expected: the evidence may be of any conversation")
        return
    with check.step("report data"):
        found = evidence.report_data
        if section[REPORT_DATA] == FIRST_32:
            found, expected = found[:HALF_BYTES], expected[:HALF_BYTES]
        require_equal(
            "report data: number of bytes", len(found), len(expected),
            remedy="say every byte that the machine was asked to bind, also the zeros",
        )  # fmt: skip
        require_equal(
            "report data", found, expected,
            remedy="the evidence was made for another conversation",
        )  # fmt: skip


def _compare(
    rule: Rule, evidence: VerifiedEvidence, section: Mapping[str, object], check: Check
) -> None:
    wanted = section[rule.name]
    if wanted is None or (rule.code and section[ANY_CODE] and not wanted):
        check.leave(rule.name, "the policy does not ask for it")
        return
    with check.step(rule.name):
        for claim in rule.claims:
            if claim not in evidence.claims:
                remedy = "the evidence does not say"
                if rule.name in ("tcb_statuses", "advisories") and UNKNOWN_TCB in section:
                    if section[UNKNOWN_TCB]:
                        continue
                    remedy = "Intel's documents say; give them in --collateral"
                raise refused(
                    claim, expected=wanted, found="no such claim",
                    remedy=f"{remedy}; the policy asks by {rule.name}",
                )  # fmt: skip
            if not _holds(rule.compare, evidence.claims[claim], wanted):
                raise refused(
                    claim, expected=_expected(rule, wanted), found=evidence.claims[claim],
                    remedy=f"the policy's field {rule.name} decides",
                )  # fmt: skip


def _is_let_through(rule: Rule, evidence: VerifiedEvidence, section: Mapping[str, object]) -> bool:
    """Whether only a policy that asks for less than the strict default accepts evidence."""
    # Who vouches for a chip, its maker or its cloud provider, is not how well it is protected.
    if rule.default is None or rule.name == "signing_keys" or rule.name.startswith("insecure"):
        return False
    found = [evidence.claims[claim] for claim in rule.claims if claim in evidence.claims]
    return any(not _holds(rule.compare, one, rule.default) for one in found)


def _expected(rule: Rule, wanted: object) -> object:
    if rule.compare is Compare.PERMITS:
        return "false"
    if rule.compare is Compare.AT_MOST:
        return f"at most {wanted}"
    if rule.compare is Compare.BITS:
        return f"bits {wanted:#x}"
    least = rule.compare in (Compare.AT_LEAST, Compare.LEVELS)
    return f"at least {shown(wanted)}" if least else wanted


def _holds(compare: Compare, found: object, wanted: object) -> bool:
    match compare, found, wanted:
        case Compare.PERMITS, bool(), bool():
            return wanted or not found
        case Compare.EQUAL, _, _:
            return found is wanted
        case Compare.ONE_OF, _, list():
            return any(type(found) is type(one) and found == one for one in wanted)
        case Compare.SUBSET, list(), list():
            return set(found) <= set(wanted)
        case Compare.AT_LEAST, int(), int():
            return found >= wanted
        case Compare.AT_MOST, int(), int():
            return found <= wanted
        case Compare.BITS, int(), int():
            return found & wanted == wanted
        case Compare.LEVELS, dict(), dict():
            return set(wanted) <= set(found) and all(found[n] >= wanted[n] for n in wanted)
    raise AttestationError("policy: a field cannot be compared with its claim")


def _judge_revocation(
    evidence: VerifiedEvidence, section: Mapping[str, object], check: Check
) -> None:
    if evidence.revocation is Revocation.GOOD:
        return
    if section[UNKNOWN_REVOCATION] and evidence.revocation is Revocation.UNKNOWN:
        check.leave("revocation", "the policy accepts that it is not known")
        return
    with check.step("revocation"):
        raise refused(
            "revocation", expected=Revocation.GOOD.value, found=evidence.revocation.value,
            remedy=f"give the vendor's lists in --collateral, or set {UNKNOWN_REVOCATION}",
        )  # fmt: skip


def _require_tcb(evidence: VerifiedEvidence, section: Mapping[str, object], check: Check) -> None:
    if "tcb_status" in evidence.claims:
        return
    if section[UNKNOWN_TCB]:
        check.leave("TCB", "the policy accepts that it is not known")
        return
    with check.step("TCB"):
        raise refused(
            "TCB status", expected=section["tcb_statuses"], found="unknown",
            remedy=f"give Intel's collateral in --collateral, or set {UNKNOWN_TCB}",
        )  # fmt: skip


def _compare_manifest(
    evidence: VerifiedEvidence,
    section: Mapping[str, object],
    rules: RuntimeRules,
    manifest: bytes | None,
    check: Check,
) -> None:
    """Compare a runtime's manifest with the policy, and with what its launch was given."""
    if manifest is None:
        if rules == RuntimeRules():
            return
        with check.step("manifest"):
            raise refused(
                "manifest", expected="the runtime's manifest", found="none",
                remedy="give it; the policy asks by its section [runtime]",
            )  # fmt: skip
    with check.step("manifest"):
        digest = hashlib.sha256(manifest).digest()
        if rules.manifests is not None and digest not in rules.manifests:
            raise refused(
                "manifest", expected=rules.manifests, found=digest,
                remedy="the policy's field manifests of [runtime] decides",
            )  # fmt: skip
    _compare_launch(evidence, section, rules, manifest, check)


def _compare_launch(
    evidence: VerifiedEvidence,
    section: Mapping[str, object],
    rules: RuntimeRules,
    manifest: bytes,
    check: Check,
) -> None:
    name, digest_of = LAUNCH_FIELDS.get(evidence.format, ("", hashlib.sha256))
    found = evidence.claims.get(name)
    pins = next((one.name for one in RULES[evidence.format] if one.claims == (name,)), "")
    if section.get(pins) is not None:
        check.leave("launch", f"the policy's field {pins} decides")
    elif isinstance(found, bytes) and any(found):
        with check.step("launch"):
            require_equal(
                name, found, digest_of(manifest).digest(),
                remedy="the machine was launched for another manifest than it shows",
            )  # fmt: skip
    elif rules.bound_at_launch:
        with check.step("launch"):
            raise refused(
                name or "launch", expected=digest_of(manifest).digest(), found=found or "none",
                remedy="the policy's field bound_at_launch of [runtime] decides",
            )  # fmt: skip
    else:
        check.leave("launch", "the platform was given no digest of a manifest at launch")
