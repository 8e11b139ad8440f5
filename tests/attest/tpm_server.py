"""TPMs for tests: swtpm where it is installed, and one that repeats what swtpm said once."""

import json
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from attest.cases import VECTORS

RECORDED = VECTORS / "tpm" / "exchange.json"


@pytest.fixture
def swtpm(tmp_path):
    """The socket of a new TPM that a program plays."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    with running(tmp_path / "swtpm") as path:
        yield path


@contextmanager
def running(folder):
    """A TPM that a program plays from a folder; a second start is a reset of the same TPM."""
    folder.mkdir(exist_ok=True)
    path = folder / "socket"
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server",
         f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl",
         "--flags", "not-need-init,startup-clear"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while process.poll() is None and not listens(path):
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        process.wait(10)


def listens(path):
    """Whether a program accepts connections; its socket is there before it does."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(str(path))
        except OSError:
            return False
    return True


class RecordedTpm:
    """Answers the commands of a recorded exchange, in their order, and no others."""

    def __init__(self, path, exchange):
        self.path, self.left, self.any_command = path, list(exchange), False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                while command := connection.recv(4096):
                    expected, answer = self.left[0] if self.left else (None, b"")
                    if not answer or (command != expected and not self.any_command):
                        break
                    self.left.pop(0)
                    connection.sendall(answer)

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)


def recorded(name):
    """Pairs of a command and its answer."""
    return [tuple(map(bytes.fromhex, pair)) for pair in json.loads(RECORDED.read_text())[name]]


@contextmanager
def answering(folder, exchange):
    """The socket of a recorded TPM; afterwards every command was sent."""
    found = RecordedTpm(folder / "recorded", exchange)
    try:
        yield found
    finally:
        found.close()
