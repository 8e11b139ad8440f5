"""Someone on the way, who ends the transport's encryption, reads everything and may answer."""

import contextlib
import socket
import ssl
import threading

from cloister.base.identity import create_certificate


class RecordingProxy:
    """Passes bytes between callers and a service under a certificate of its own, and keeps them.

    answer   of a request's bytes: None passes the request on, bytes are sent instead of an answer

    lose     cut the connection in place of the next answer

    `sent` has what callers sent, `answered` what the service answered, both decrypted as far as the
    transport encrypts them.
    """

    def __init__(self, folder, url, *, answer=lambda sent: None):
        folder.mkdir()
        create_certificate(folder, "proxy")
        self.sent, self.answered = bytearray(), bytearray()
        self._answer, self.lose = answer, False
        host, port = url.removeprefix("https://").split(":")
        self._there = (host, int(port))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "certificate.pem", folder / "certificate.key")
        self._outwards = ssl.create_default_context()
        self._outwards.check_hostname, self._outwards.verify_mode = False, ssl.CERT_NONE
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Cut all connections."""
        self._listening.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def passed(self, data, where):
        """What goes on in place of a message; `where` is "sent" or "answered"."""
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw):
        with (
            contextlib.suppress(OSError, ValueError),
            self._context.wrap_socket(raw, server_side=True) as caller,
            self._outwards.wrap_socket(socket.create_connection(self._there)) as there,
        ):
            self._open += [caller, there]
            while request := message(caller):
                self.sent += request
                found = self._answer(request)
                if found is None:
                    there.sendall(self.passed(request, "sent"))
                    found = message(there)
                if self.lose:
                    self.lose = False
                    return
                self.answered += found
                caller.sendall(self.passed(found, "answered"))


def message(sock):
    """One HTTP message: its head, and the body that this one states."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1 << 16)
        if not piece:
            return b""
        data += piece
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        piece = sock.recv(1 << 16)
        if not piece:
            return b""
        body += piece
    return head + b"\r\n\r\n" + body
