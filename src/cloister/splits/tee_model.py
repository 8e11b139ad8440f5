"""What SGX would add to a module: a model from published constants, for machines without SGX.

    transition   one call into the enclave and back for each inference
    memory       a share of the computing time, for memory encryption
    paging       if the module's memory exceeds the enclave page cache (EPC), each page of its
                 weights is evicted before it is read again (they are read in order, once for each
                 inference, and the least recently used page goes first), so that each is paged in

The model knows neither the cost of building the enclave nor side-channel mitigations. Its results
are labelled `modelled` wherever they are shown.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

PAGE_BYTES = 4096
MIB = 1 << 20


@dataclass(frozen=True)
class Constant:
    """A published number and where it was published."""

    value: float
    source: str


CYCLES_PER_MS = Constant(3.0e6, "assumed: a core of 3 GHz")
_HOTCALLS = "Weisse et al., HotCalls, ISCA 2017: calls through the SDK take 8,200 to 17,000 cycles"


@dataclass(frozen=True)
class Tee:
    """A trusted execution environment by its constants.

    call_warm, call_cold   cycles of one call into the enclave and back
    epc_bytes              protected memory that enclaves can use
    page_cycles            to evict a page and load another one
    memory_share           of the computing time, added by memory encryption
    """

    title: str
    call_warm: Constant
    call_cold: Constant
    epc_bytes: Constant
    page_cycles: Constant
    memory_share: Constant


TEES: Mapping[str, Tee] = {
    "sgx1": Tee(
        "SGX on a client processor (Skylake), as the authors of eNNclave had it",
        call_warm=Constant(8_200, _HOTCALLS),
        call_cold=Constant(17_000, _HOTCALLS),
        epc_bytes=Constant(
            93 * MIB,
            "Weichbrodt et al., sgx-perf, Middleware 2018: 93 MiB of the 128 MiB are usable",
        ),
        page_cycles=Constant(
            40_000, "Taassori et al., VAULT, ASPLOS 2018: about 40,000 cycles for each page"
        ),
        memory_share=Constant(
            0.055, "Gueron, ePrint 2016/204: 5.5 % on average over SPECint 2006, at most 14 %"
        ),
    ),
    "sgx2": Tee(
        "SGX on a server processor (Ice Lake and later)",
        call_warm=Constant(8_200, f"{_HOTCALLS}; taken to be the same"),
        call_cold=Constant(17_000, f"{_HOTCALLS}; taken to be the same"),
        epc_bytes=Constant(
            64 * 1024 * MIB, "Lutsch et al., arXiv:2403.11874: 64 GiB for each processor"
        ),
        page_cycles=Constant(40_000, "as sgx1; of no effect below 64 GiB"),
        memory_share=Constant(
            0.03, "Lutsch et al., arXiv:2403.11874: 3 % for sequential reads of whole vectors"
        ),
    ),
}


@dataclass(frozen=True)
class ModelledOverhead:
    """Milliseconds that a TEE adds to one inference, by the model of this file."""

    transition_ms: float
    memory_ms: float
    paging_ms: float

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.transition_ms + self.memory_ms + self.paging_ms


def overhead(
    tee: Tee, *, compute_ms: float, memory_bytes: int, weights_bytes: int, cold: bool = False
) -> ModelledOverhead:
    """What a TEE adds to a module that computes so long, in so much memory.

    cold   the first inference: the call finds its own code and tables outside the caches
    """
    call = tee.call_cold if cold else tee.call_warm
    pages = -(-weights_bytes // PAGE_BYTES) if memory_bytes > tee.epc_bytes.value else 0
    return ModelledOverhead(
        transition_ms=call.value / CYCLES_PER_MS.value,
        memory_ms=compute_ms * tee.memory_share.value,
        paging_ms=pages * tee.page_cycles.value / CYCLES_PER_MS.value,
    )


def constants() -> list[tuple[str, str, float, str]]:
    """Every constant of the model: TEE, name, value and source."""
    rows = [("all", "cycles per ms", CYCLES_PER_MS.value, CYCLES_PER_MS.source)]
    for name, tee in TEES.items():
        for field, constant in asdict(tee).items():
            if field != "title":
                rows.append((name, field, constant["value"], constant["source"]))
    return rows
