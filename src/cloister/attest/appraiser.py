"""A policy, collateral and a clock: all that it takes to judge the evidence of one conversation."""

from dataclasses import dataclass, field

from cloister.attest import cmw
from cloister.attest.appraisal import Appraisal, appraise
from cloister.attest.check_tree import refused, require_equal
from cloister.attest.clock import SYSTEM_CLOCK, Clock
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.attest.verify import verify


@dataclass(frozen=True)
class Appraiser:
    """Judges evidence that answers a question of its own."""

    policy: Policy
    collateral: Collateral = field(default_factory=Collateral)
    clock: Clock = SYSTEM_CLOCK

    @property
    def policy_digest(self) -> bytes:
        """SHA-256 of the policy: it tells the policies of two conversations apart."""
        return self.policy.digest

    def appraise(
        self, evidence: bytes, *, report_data: bytes, manifest: bytes | None = None
    ) -> Appraisal:
        """Verify evidence in a CMW record, and compare it with the policy.

        report_data   64 bytes that the evidence has to bind
        manifest      of the runtime that answers; compared with what was given at its launch

        Raises   AttestationError
        """
        kind, data = cmw.unwrap(evidence)
        found = verify(data, self.collateral, now=self.clock.now())
        require_equal(
            "format", found.format.value, kind.value, remedy="the evidence is not what it says"
        )
        if found.relayable:
            raise refused(
                "relayable", expected="false", found="true",
                remedy=f"evidence of format {kind.value} binds no conversation: any machine can "
                "show it",
            )  # fmt: skip
        return appraise(found, self.policy, report_data, manifest=manifest)
