"""Real evidence, and what its README says of it: genuine or to be refused, and for what reason."""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy

VECTORS = Path(__file__).parent / "vectors"
SUMMER = "2025-06-19T12:00:00+00:00"
MILAN = "snp/milan_chain.pem"


@dataclass(frozen=True)
class Case:
    """Evidence with its collateral at a time.

    signed   the part of the evidence that signatures cover: begin and end
    form     how the file holds the evidence
    """

    name: str
    evidence: str
    kind: str
    signed: tuple[int, int] = (0, 0)
    collateral: tuple[str, ...] = ()
    now: str = SUMMER
    expected: dict[str, object] = field(default_factory=dict)
    form: str = "bare"

    def flips(self, places=None):
        """The file with one bit of the signed part flipped, and where: each byte, or some places.

        Of evidence of several GPUs the report and signature of each, alone.
        """
        whole = self.data
        match self.form:
            case "bare":
                packed = [(whole, bytes)]
            case "hex":
                packed = [(bytes.fromhex(whole.decode()), lambda data: data.hex().encode())]
            case "quote in JSON":
                found = json.loads(whole)
                packed = [(
                    bytes.fromhex(found["quote"]),
                    lambda data: json.dumps({**found, "quote": data.hex()}).encode(),
                )]  # fmt: skip
            case "GPUs in JSON":
                found = json.loads(whole)
                packed = [
                    (b64decode(one["evidence"]), partial(_packed_gpu, found, number))
                    for number, one in enumerate(found)
                ]
        begin, end = self.signed
        for data, pack in packed:
            last = end or len(data)
            chosen = range(begin, last) if places is None else places(begin, last)
            for place in chosen:
                changed = bytearray(data)
                changed[place] ^= 1 << place % 8
                yield place, pack(bytes(changed))

    @property
    def data(self) -> bytes:
        return (VECTORS / self.evidence).read_bytes()

    @property
    def at(self) -> datetime:
        return datetime.fromisoformat(self.now)

    def given(self) -> Collateral:
        return Collateral.load([VECTORS / name for name in self.collateral])


def _packed_gpu(found, number, data):
    """The report of one GPU alone, which the file has among others."""
    return json.dumps([{**found[number], "evidence": b64encode(data).decode()}]).encode()


GENUINE = [
    Case(
        "snp google, debug", "snp/snp_milan_attestation.bin", "sev-snp", (0, 0x300),
        ("snp/vcek_google.der", MILAN), expected={"debug": True, "product": "Milan", "version": 2},
    ),
    Case(
        "snp coco", "snp/coco_test-report.bin", "sev-snp", (0, 0x300),
        ("snp/coco_test-vcek.der", MILAN), expected={"debug": False, "migratable": False},
    ),
    Case(
        "snp version 3 at byte 4", "snp/dstack_milan_report_at_4.bin", "sev-snp", (4, 4 + 0x300),
        ("snp/dstack_vcek.pem", "snp/dstack_ask.pem"), "2026-07-01T00:00:00+00:00",
        expected={"debug": False, "version": 3, "vmpl": 0},
    ),
    Case(
        "tdx, up to date", "tdx/tdx_quote", "tdx", (0, 1200), ("tdx/tdx_quote_collateral.json",),
        expected={"debug": False, "tcb_status": "UpToDate", "advisories": []},
    ),
    Case("tdx of SPR E4", "tdx/tdx_prod_quote_SPR_E4.dat", "tdx", (0, 1200),
         expected={"debug": False, "quote_version": 4, "trailing_bytes": 39}),
    Case("tdx v4 coco, debug", "tdx/coco_tdx_quote_4.dat", "tdx", (0, 1200),
         expected={"debug": True}),
    Case("tdx v5 coco", "tdx/coco_tdx_quote_5.dat", "tdx", (0, 1270),
         expected={"debug": False, "quote_version": 5}),
    Case("tdx cos with log", "tdx/cos-113-tdx-quote.dat", "tdx", (0, 1200), ("tdx/ccel.dat",),
         expected={"event_log_events": 43, "trailing_bytes": 3065}),
    Case("tdx dstack with log", "tdx/dstack_quote_report.json", "tdx", (0, 1200),
         now="2026-01-01T00:00:00+00:00", expected={"event_log_events": 28}, form="quote in JSON"),
    Case(
        "sgx", "sgx/sgx_quote", "sgx", (0, 1014), ("sgx/sgx_quote_collateral.json",),
        expected={
            "tcb_status": "ConfigurationAndSWHardeningNeeded",
            "advisories": ["INTEL-SA-00289", "INTEL-SA-00615"], "debug": False,
        },
    ),
    Case("sgx occlum, debug", "sgx/coco_occlum_quote.dat", "sgx", (0, 1014),
         expected={"debug": True}),
    Case("nitro, debug", "nitro/debug_mode.bin", "nitro", (0, 4493),
         now="2024-11-14T22:00:00+00:00", expected={"debug": True}),
    Case("nitro at byte 4", "nitro/dstack_document_at_4.bin", "nitro", (4, 4530),
         now="2025-12-25T17:00:00+00:00", expected={"debug": False, "trailing_bytes": 179}),
    Case("eight GPUs", "gpu/h100_eight_gpus.json", "nvidia-gpu", expected={"gpus": 8},
         form="GPUs in JSON"),
    Case(
        "gpu with manifest", "gpu/hopper_report.hex", "nvidia-gpu", (0, 0),
        ("gpu/hopper_chain.pem", "gpu/hopper_vbios_rim.xml"), expected={"manifest_count": 1},
        form="hex",
    ),
    Case(
        "gpu coco, a byte behind", "gpu/hopper_coco_report1.txt", "nvidia-gpu", (0, 0),
        ("gpu/hopper_coco_certs1.txt",), expected={"trailing_bytes": 1}, form="hex",
    ),
]  # fmt: skip

REFUSED = [
    (Case("new vcek", "snp/coco_test-report.bin", "sev-snp",
          collateral=("snp/coco_test-vcek-invalid-new.der", MILAN)), "is not signed by SEV-Milan"),
    (Case("legacy vcek", "snp/coco_test-report.bin", "sev-snp",
          collateral=("snp/coco_test-vcek-invalid-legacy.der", MILAN)), "is not signed by"),
    (Case("version 4, google's", "snp/gce_v4_report.txt", "sev-snp",
          collateral=("snp/vcek_google.der", MILAN)), "TCB level bootloader: expected 4, found 2"),
    (Case("version 4, coco's", "snp/gce_v4_report.txt", "sev-snp",
          collateral=("snp/coco_test-vcek.der", MILAN)), "TCB level bootloader"),
    (Case("version 4, dstack's", "snp/gce_v4_report.txt", "sev-snp",
          collateral=("snp/dstack_vcek.pem", MILAN), now="2026-07-01T00:00:00+00:00"),
     "TCB level snp"),
    (Case("version 4, turin's", "snp/gce_v4_report.txt", "sev-snp",
          collateral=("snp/vcek_turin.der", "snp/cert_chain_turin.pem")), "processor family"),
    (Case("no vcek", "snp/coco_test-report.bin", "sev-snp", collateral=(MILAN,)),
     "no SEV-VCEK certificate is given"),
    (Case("no ask", "snp/coco_test-report.bin", "sev-snp",
          collateral=("snp/coco_test-vcek.der",)), "put AMD's chain of this product"),
    (Case("nitro, long expired", "nitro/debug_mode.bin", "nitro"), "time: expected"),
    (Case("nitro, not yet", "nitro/dstack_document_at_4.bin", "nitro",
          now="2025-12-25T12:00:00+00:00"), "time: expected"),
    (Case("tdx, before its certificates", "tdx/dstack_quote_report.json", "tdx"), "time: expected"),
    (Case("tdx, old collateral", "tdx/tdx_quote", "tdx",
          collateral=("tdx/tdx_quote_collateral.json",), now="2025-09-01T00:00:00+00:00"),
     "fetch"),
    (Case("tdx, another platform's collateral", "tdx/coco_tdx_quote_5.dat", "tdx",
          collateral=("tdx/tdx_quote_collateral.json",)), "fmspc: expected"),
    (Case("tdx with collateral of sgx", "tdx/tdx_quote", "tdx",
          collateral=("sgx/sgx_quote_collateral.json",)), "kind and version: expected TDX"),
    (Case("tdx, another's log", "tdx/tdx_quote", "tdx", collateral=("tdx/ccel.dat",)),
     "event log: rtmr0"),
    (Case("gpu, signature", "gpu/hopper_report_invalid_signature.hex", "nvidia-gpu",
          collateral=("gpu/hopper_chain.pem",)), "signature is wrong"),
    (Case("gpu, other firmware", "gpu/hopper_report.hex", "nvidia-gpu",
          collateral=("gpu/hopper_chain.pem", "gpu/hopper_vbios_rim_test_no_gpu.xml")),
     "measurements 1, 2, 3, 9 are not"),
    (Case("gpu, one measurement", "gpu/hopper_report.hex", "nvidia-gpu",
          collateral=("gpu/hopper_chain.pem", "gpu/hopper_vbios_rim_mismatch.xml")),
     "measurements 9 are not"),
    *((Case(f"gpu chain {i}", "gpu/hopper_coco_report1.txt", "nvidia-gpu",
            collateral=(f"gpu/hopper_cert_chain_case{i}.txt",)), "certificates: expected 5")
      for i in (2, 3, 4)),
]  # fmt: skip

LENIENT = Policy.of(
    {
        kind: {
            "insecure_allow_any_code": True, **more,
            **({} if kind == "nvidia-gpu" else {"insecure_allow_debug": True}),
        }
        for kind, more in {
            "sev-snp": {"insecure_allow_unknown_revocation": True},
            "tdx": {
                "insecure_allow_unknown_revocation": True, "insecure_allow_unknown_tcb": True,
                "insecure_allow_septve": True,
            },
            "sgx": {
                "insecure_allow_unknown_revocation": True, "insecure_allow_unknown_tcb": True,
                "tcb_statuses": ["ConfigurationAndSWHardeningNeeded"],
                "advisories": ["INTEL-SA-00289", "INTEL-SA-00615"],
            },
            "nitro": {},
            "nvidia-gpu": {"insecure_allow_relayable": True, "min_manifests": 0},
        }.items()
    }
)  # fmt: skip
"""Accepts every genuine vector: what a test changes is then the only reason to refuse."""
