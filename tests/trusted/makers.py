"""Makers and workers in the process, at addresses of two parties, which keep what they are sent."""

from collections.abc import Callable

from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Answer, MakePads, Message
from cloister.worker.engine import Engine
from trusted.links import DirectLink

Twist = Callable[[MakePads, Answer], Message | None]


class MakerLink(InProcessLink):
    """A maker elsewhere; `seen` has every message it got, `twist` rewrites its blocks."""

    def __init__(self, name: str = "maker", *, twist: Twist | None = None, host: int = 1) -> None:
        self.seen: list[Message] = []
        self._engine = Engine()
        self._twist = twist
        super().__init__(self._handle, name=name)
        self.address = f"198.51.100.{host}:7000"

    def _handle(self, message: Message) -> Message | None:
        self.seen.append(message)
        reply = self._engine.handle(message)
        if self._twist is None or not isinstance(message, MakePads):
            return reply
        assert isinstance(reply, Answer)
        return self._twist(message, reply)

    @property
    def blocks(self) -> list[MakePads]:
        """The blocks that it was asked for."""
        return [message for message in self.seen if isinstance(message, MakePads)]


def worker(name: str = "worker", **options) -> DirectLink:
    """A worker elsewhere, of another party than any maker."""
    return DirectLink(name, address="203.0.113.9:7000", **options)


def session(plan, *makers, workers=None, **options) -> Session:
    """A session with these makers, and one honest worker unless there are others."""
    return Session(plan, workers=workers or [worker()], makers=makers, **options)
