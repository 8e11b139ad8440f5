"""kill -9 of the untrusted server of a trusted runtime's training, through the command line."""

import re
from contextlib import contextmanager

from cli import test_train_kills
from cli.test_authority import serving
from cli.test_train_kills import figures, kill, killed_at, process, same_state

site, gates = test_train_kills.site, test_train_kills.gates


@contextmanager
def ciphertexts(place, listen="127.0.0.1:0"):
    """`cloister data serve` as a process of its own; gives its address and the process."""
    arguments = (place.folder / "host", place.folder / "digits.cloister", "--listen")
    with process("data", "serve", *arguments, listen) as running:
        try:
            line = running.stdout.readline()
            found = re.search(r"serving on (https://127\.0\.0\.1:\d+)\n", line)
            assert found, line + running.stderr.read()
            yield found[1], running
        finally:
            running.kill()


def test_kill_9_of_the_ciphertext_server(site, cloister, tmp_path, gates, monkeypatch):
    place = site()
    assert cloister("data", "init", place.folder / "host").code == 0
    control = place.copy(tmp_path / "control")

    def train(of, url, server, *more):
        access = of.folder / "host" / "server.access"
        where = ("--unblind-to", "trusted", "--server", server, "--access", access)
        return of.train(url, *where, *more, role="trusted")

    with serving(place.authority) as (url, _), ciphertexts(control) as (server, _):
        undisturbed = figures(cloister(*train(control, url, server)))
    with serving(place.authority) as (url, _):
        with (
            ciphertexts(place) as (server, running),
            killed_at(gates / "20", running, monkeypatch),
        ):
            ran = cloister(*train(place, url, server, "--patience", 0.2))
        assert ran.code == 2
        assert f"{server}: cannot be reached" in ran.err
        assert f"the run is kept in {place.folder / 'run'}: the same command goes on" in ran.err
        # Step 20 is the fifth of the second epoch; its gradient is made from our own ciphertexts.
        assert place.position() == (1, 5)
        with ciphertexts(place, server.removeprefix("https://")) as (server, running):
            assert figures(cloister(*train(place, url, server))) == undisturbed
            kill(running)
    same_state(place, control)
    assert set(place.spent()[1]["rank"].tolist()) == {0}
