"""A link to HOST:PORT, by a library that is only loaded for it: local workers do without gRPC."""

import importlib

from cloister.wire.link import WorkerLink


def connect(address: str, *, timeout_s: float, certificate: bytes | None = None) -> WorkerLink:
    """A link to the worker at an address; it connects at first use.

    certificate   the worker's own, in PEM, pinned; None: without encryption

    Raises   InputError for what is no address
    """
    grpc_link = importlib.import_module("cloister.wire.grpc.grpc_link")
    link: WorkerLink = grpc_link.RpcLink(address, timeout_s=timeout_s, certificate=certificate)
    return link
