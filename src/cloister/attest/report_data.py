"""The 64 bytes that a machine is asked to bind to its evidence."""

from cloister.errors import AttestationError

REPORT_DATA_BYTES = 64


def require_report_data(report_data: bytes) -> None:
    """Refuse fewer or more bytes: what a platform would fill or cut nobody has asked for.

    Raises   AttestationError
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise AttestationError(
            f"report data: has {len(report_data)} bytes, of {REPORT_DATA_BYTES}; hash what it "
            "binds with SHA-512"
        )
