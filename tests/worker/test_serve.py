import pytest

from cloister.errors import InputError
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.worker.serve import main, serve
from wire.loopback import ask, blinded, linear, slow


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:0", "--device", "no-such-device"],
        ["--listen", "127.0.0.1:0", "--threads", "0"],
    ],
)
def test_errors_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_serve_says_when_it_is_ready_and_stops_on_interrupt(capsys):
    def use(address):
        link = RpcLink(address)
        link.load_linear(1, linear())
        x = blinded()
        assert (ask(link, 1, x) == slow(linear(), x)).all()
        link.close()
        raise KeyboardInterrupt

    serve("127.0.0.1:0", ready=use)
    assert capsys.readouterr().out == ""


def test_serve_refuses_a_bad_address():
    with pytest.raises(InputError):
        serve("localhost")
