"""An authority in a process of its own, with a data set whose samples do not exist."""

import multiprocessing
import secrets
import time
from pathlib import Path

from cloister.authority import service, tokens
from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.base.rng import SystemRandom
from cloister.data.info import DatasetInfo
from cloister.errors import AuthorityUnavailable


def create(folder: Path, info: DatasetInfo, terms: Terms, *, samples: int) -> str:
    """Make the authority's folder, register the data set and return a training server's token."""
    with Authority.create(folder, rng=SystemRandom()) as authority:
        enrolment = enrol(LocalClient(authority), Agreement(info, terms), rng=SystemRandom())
        part, digest = secrets.token_hex(16), secrets.token_hex(32)
        enrolment.register(part, samples, digest, secrets.token_bytes(32))
    return tokens.issue(folder / FILE, "server", name="load", rng=SystemRandom())


class AuthorityProcess:
    """Serves a folder over HTTPS until it is stopped or killed.

    Raises   AuthorityUnavailable when it does not start
    """

    def __init__(self, folder: Path, *, listen: str = "127.0.0.1:0") -> None:
        spawn = multiprocessing.get_context("spawn")
        (self._pipe, theirs), self._end = spawn.Pipe(), spawn.Event()
        arguments = (folder, listen, theirs, self._end)
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        if not self._pipe.poll(60):
            raise AuthorityUnavailable("the authority did not start")
        self.url = self._pipe.recv()

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.join()

    def stop(self) -> float:
        """End it and return the seconds of processor time that serving took."""
        self._end.set()
        cpu_s = self._pipe.recv()
        self._process.join(30)
        return cpu_s


def _serve(folder: Path, listen: str, pipe: object, end: object) -> None:
    with Authority(folder) as authority:
        server = service.serve(folder, authority, listen=listen)
        pipe.send(server.url)
        before = time.process_time()
        end.wait()
        pipe.send(time.process_time() - before)
        server.close()
