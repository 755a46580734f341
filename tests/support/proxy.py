"""A TCP proxy in front of PostgreSQL that can cut connections, swallow bytes, and refuse connections."""

import contextlib
import selectors
import socket
import threading


class Proxy:
    """Forwards 127.0.0.1:``port`` to a Unix socket, in a separate thread."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._swallow = False
        self._swallow_answers = False
        self._refuse = False
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def black_hole(self) -> None:
        """Swallow every byte in both directions. Connections stay open, new ones are accepted."""
        self._swallow = True

    def swallow_answers(self) -> None:
        """Swallow what the target sends: what clients send still arrives."""
        self._swallow_answers = True

    def refuse(self) -> None:
        """Cut all connections, and each new one immediately."""
        self._refuse = True
        self.cut()

    def cut(self) -> None:
        """Cut all connections with a reset."""
        with self._lock:
            for one in list(self._pairs):
                self._drop(one)

    def restore(self) -> None:
        """Forward again. Cut connections that lost bytes, because they cannot continue."""
        was_swallowing = self._swallow or self._swallow_answers
        self._swallow = self._swallow_answers = self._refuse = False
        if was_swallowing:
            self.cut()

    def forward_to(self, target: str) -> None:
        """Forward new connections to another Unix socket, and cut the others."""
        self._target = target
        self.cut()

    def close(self) -> None:
        self._closing = True
        self._wake_writer.send(b"x")
        self._thread.join()
        self.cut()
        for one in (self._listener, self._wake_reader, self._wake_writer):
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is not self._wake_reader:
                    with self._lock:
                        assert isinstance(key.fileobj, socket.socket)
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refuse:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:  # PostgreSQL is down
            client.close()
            server.close()
            return
        with self._lock:
            self._pairs[client], self._pairs[server] = server, client
            self._selector.register(client, selectors.EVENT_READ)
            self._selector.register(server, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._pairs.get(source)
        if target is None:
            return
        try:
            data = source.recv(65536)
            if data and not self._swallow and not (self._swallow_answers and source.family == socket.AF_UNIX):
                target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for end in (one, other):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            end.close()
