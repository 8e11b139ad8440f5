"""A worker on this machine ends with the process that started it, whatever it computes."""

import os
import socket
import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper

from cloister.wire.messages import LoadSegment, TensorSpec
from cloister.wire.process import python
from cloister.wire.shm.shm_link import connect_local_worker, start_local_worker

F32 = np.dtype(np.float32)
ENDS_S = 60


def endless():
    """A model that counts to the greatest number there is."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Neg", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [2**63 - 1]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def busy(link):
    link.load(LoadSegment(1, endless()))
    buffer = link.send_buffer(TensorSpec(F32, (1,)))
    buffer[:] = 1
    link.submit(1, 1, (buffer,), expect=(TensorSpec(F32, (1,)),))


def test_in_a_segment_that_never_ends():
    link = start_local_worker()
    try:
        busy(link)
        link._channel.close()  # as the kernel does for a process that was killed
        assert link._process.wait(ENDS_S) == 0
    finally:
        link._process.kill()
        link.close()


def test_once_the_last_of_its_connections_is_closed():
    one, other = connect_local_worker(2)
    try:
        busy(one)
        one._channel.close()
        with pytest.raises(subprocess.TimeoutExpired):
            one._process.wait(1)
        other._channel.close()
        assert one._process.wait(ENDS_S) == 0
    finally:
        one._process.kill()
        one.close()
        other.close()


SOCKETS = """
import os, sys
from cloister.wire.process_end import end_with
first, second = map(int, sys.argv[1:])
end_with([first, second])
os.close(first)
os.write(1, b"closed")
while True:
    pass
"""


def test_a_socket_that_the_process_closes_itself_is_seen_closed_by_its_peer_and_counts():
    (ours, theirs), (ours_too, theirs_too) = socket.socketpair(), socket.socketpair()
    descriptors = [theirs.fileno(), theirs_too.fileno()]
    arguments = python("-c", SOCKETS, *map(str, descriptors))
    with subprocess.Popen(arguments, pass_fds=descriptors, stdout=subprocess.PIPE) as process:
        try:
            theirs.close()
            theirs_too.close()
            ours.settimeout(ENDS_S)
            assert ours.recv(1) == b""
            assert os.read(process.stdout.fileno(), 6) == b"closed"
            ours_too.close()
            assert process.wait(ENDS_S) == 0
        finally:
            process.kill()
            ours.close()
