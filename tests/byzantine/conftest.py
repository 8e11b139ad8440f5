"""Links to workers that lie, over every transport."""

from contextlib import contextmanager

import pytest

from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.process import python
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.byzantine import ByzantineEngine
from cloister.worker.engine import Engine
from cloister.worker.serve import start_server


@contextmanager
def _lying_link(transport, lie, *, after=0):
    if transport == "in-process":
        liar = ByzantineEngine(Engine(), lie, after=after)
        link = InProcessLink(liar.handle, name=f"liar-{lie}", encode=liar.encode)
        yield link
        link.close()
    elif transport == "shm":
        command = python("-m", "cloister.worker", "--lie", lie, "--lie-after", str(after))
        link = start_local_worker(command=command)
        yield link
        link.close()
    else:
        server = start_server("127.0.0.1:0", insecure_lie=lie, insecure_lie_after=after)
        link = RpcLink(server.address)
        yield link
        link.close()
        server.close()


@pytest.fixture(scope="session")
def lying_link():
    """`with lying_link(transport, lie, after=k) as link`, transport in-process, shm or rpc."""
    return _lying_link
