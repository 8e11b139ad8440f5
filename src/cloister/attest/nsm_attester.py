"""Evidence of an AWS Nitro Enclave: documents of its security module, /dev/nsm.

Source   AWS Nitro Enclaves NSM API, nsm-driver (request and response in CBOR); Linux,
         drivers/misc/nsm.c and include/uapi/linux/nsm.h
"""

import ctypes
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import cbor2

from cloister.attest.cbor import only_item
from cloister.attest.report_data import require_report_data
from cloister.attest.verified_evidence import Format
from cloister.base.reading import parsing
from cloister.errors import AttestationError

NSM = Path("dev/nsm")
MAX_RESPONSE_BYTES = 0x3000


class _Vector(ctypes.Structure):
    """Memory and its size (struct iovec)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class NsmMessage(ctypes.Structure):
    """A request, and room for its response (struct nsm_raw)."""

    _fields_ = (("request", _Vector), ("response", _Vector))


_READ_WRITE, _MAGIC, _NUMBER = 3, 0x0A, 0
REQUEST = _READ_WRITE << 30 | ctypes.sizeof(NsmMessage) << 16 | _MAGIC << 8 | _NUMBER
"""The number of the ioctl: _IOWR(0x0A, 0, struct nsm_raw)."""


@dataclass(frozen=True)
class NsmAttester:
    """The security module of an enclave (attester.py: Attester)."""

    path: Path
    format: Format = Format.NITRO

    @property
    def name(self) -> str:
        """See Attester."""
        return f"{self.path}"

    def evidence(self, report_data: bytes) -> bytes:
        """See Attester; the bytes are the document's user data."""
        require_report_data(report_data)
        asked = {"user_data": report_data, "nonce": None, "public_key": None}
        response = self._ask(cbor2.dumps({"Attestation": asked}))
        found = only_item(response, f"{self.path}: its response")
        with parsing(f"{self.path}: its response is damaged", kind=AttestationError):
            if not isinstance(found, dict):
                raise ValueError("it is no map")
            if "Error" in found:
                raise AttestationError(f"{self.path}: refuses to attest: {found['Error']}")
            document = found["Attestation"]["document"]
            if not isinstance(document, bytes):
                raise ValueError("the document is no byte string")
        return document

    def _ask(self, request: bytes) -> bytes:
        """Exchange one message with the module."""
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(MAX_RESPONSE_BYTES)
        message = NsmMessage(
            _Vector(ctypes.addressof(sent), len(request)),
            _Vector(ctypes.addressof(received), MAX_RESPONSE_BYTES),
        )
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(file, REQUEST, message)
            finally:
                os.close(file)
        except OSError as error:
            raise AttestationError(f"{self.path}: {error.strerror}; run as root") from None
        # The kernel has set the length of what it wrote.
        if not 0 < message.response.length <= MAX_RESPONSE_BYTES:
            raise AttestationError(f"{self.path}: states {message.response.length} bytes")
        return received.raw[: message.response.length]
