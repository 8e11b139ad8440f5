"""One row of a report."""

from dataclasses import dataclass


@dataclass(slots=True)
class LayerRow:
    """One step of the program: CPU time inside, time waited, traffic; sums over all inputs.

    Of a module, `module_ms` is the time until its process answered.

    Of a linear layer, `quantised` counts the activations that became integers, `clipped` those of
    them that lay beyond the calibrated range; `clipped_share` is the largest share of one input.
    """

    name: str
    protection: str
    trusted_ms: float = 0.0
    worker_ms: float = 0.0
    module_ms: float = 0.0
    bytes_to_worker: int = 0
    bytes_from_worker: int = 0
    soundness_bits: float | None = None
    clipped: int = 0
    quantised: int = 0
    clipped_share: float = 0.0

    def enter(self, cpu_ns: int, wait_ns: int, sent_bytes: int, received_bytes: int) -> None:
        """Add what one more step cost."""
        self.trusted_ms += 1e-6 * cpu_ns
        self.worker_ms += 1e-6 * wait_ns
        self.bytes_to_worker += sent_bytes
        self.bytes_from_worker += received_bytes

    def add(self, other: "LayerRow") -> None:
        """Add what the same step cost for other inputs."""
        self.trusted_ms += other.trusted_ms
        self.worker_ms += other.worker_ms
        self.module_ms += other.module_ms
        self.bytes_to_worker += other.bytes_to_worker
        self.bytes_from_worker += other.bytes_from_worker
        self.soundness_bits = other.soundness_bits
        self.clipped += other.clipped
        self.quantised += other.quantised
        self.clipped_share = max(self.clipped_share, other.clipped_share)
