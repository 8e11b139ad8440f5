"""A worker that adds errors of its choice to its answers, and keeps all that it is sent.

As a process: `probe.py FOLDER --fd N ...`, where FOLDER has the errors and gets what it is sent.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.link import WorkerLink
from cloister.wire.messages import Answer, Apply, Message
from cloister.wire.process import python
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.engine import Engine
from cloister.worker.grpc_server import Client, Server
from cloister.worker.shm_server import serve_descriptor

ERRORS = "errors.npz"
TRANSPORTS = ("in-process", "shm", "rpc")


class Probe:
    """What serves one connection: an engine whose answers of some targets have an error added."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine()
        with np.load(folder / ERRORS) as file:
            self._errors = {int(name): file[name] for name in file.files}
        self._log = Path(tempfile.mkdtemp(dir=folder))
        self._count = 0

    def handle(self, message: Message) -> Message | None:
        """The engine's answer and the error; the message is on disk before it is answered."""
        if isinstance(message, Apply):
            path = self._log / f"{self._count:04} {message.target_id}.npz"
            np.savez(path, *message.tensors)
            self._count += 1
        reply = self._engine.handle(message)
        if not isinstance(message, Apply) or not isinstance(reply, Answer):
            return reply
        error = self._errors.get(message.target_id)
        if error is None:
            return reply
        tensors = tuple(tensor + error.astype(tensor.dtype) for tensor in reply.tensors)
        return Answer(reply.request_id, tensors)


@dataclass(frozen=True)
class Seen:
    """One message that a probe was sent."""

    target: int
    tensors: tuple[np.ndarray, ...]

    @property
    def blinded(self) -> bool:
        """Whether it is of the type of blinded messages, which no message in the clear has."""
        return all(tensor.dtype == np.uint32 for tensor in self.tensors)


def seen(folder: Path) -> list[list[Seen]]:
    """What each connection was sent, in its order."""
    return [
        [_read(path) for path in sorted(log.iterdir())]
        for log in sorted(folder.iterdir())
        if log.is_dir()
    ]


def _read(path: Path) -> Seen:
    with np.load(path) as file:
        return Seen(int(path.stem.split()[1]), tuple(file[name] for name in file.files))


@contextmanager
def probing_link(
    transport: str, folder: Path, errors: Mapping[int, np.ndarray]
) -> Iterator[WorkerLink]:
    """A link to a worker that adds these errors, by target; what it is sent comes into a folder."""
    folder.mkdir()
    np.savez(folder / ERRORS, **{str(target): error for target, error in errors.items()})
    if transport == "in-process":
        link: WorkerLink = InProcessLink(Probe(folder).handle, name=str(folder))
    elif transport == "shm":
        link = start_local_worker(name=str(folder), command=python(__file__, str(folder)))
    else:
        server = Server(
            "127.0.0.1:0", new_client=lambda: Client(Probe(folder).handle, close=lambda: None)
        )
        link = RpcLink(server.address)
    try:
        yield link
    finally:
        link.close()
        if transport == "rpc":
            server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name in ("--fd", "--threads", "--poll-us"):
        parser.add_argument(name, type=int)
    parser.add_argument("--device")
    options = parser.parse_args()
    serve_descriptor(options.fd, Probe(options.folder).handle)
