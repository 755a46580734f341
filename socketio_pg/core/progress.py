"""How long the server waits for one client that does not read its response or send its request."""

import errno

#: Seconds without progress after which such a client is disconnected.
STALLED = 20.0
#: Bytes per second that a client must read on average. Otherwise one that reads a byte every few seconds would keep its
#: request, and one of the connections of the WSGI server, for hours.
MIN_SPEED = 2_000
#: Seconds for a client's TLS handshake.
HANDSHAKE = 5.0
#: Reads in a row that find data before other green threads run.
READS_IN_A_ROW = 8
#: accept() fails with these while the machine lacks descriptors or memory, or when the client has gone.
LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)


class Progress:
    """The progress of one accepted connection."""

    __slots__ = ("_in_a_row", "_sent", "_waited")

    def __init__(self) -> None:
        self._in_a_row = 0
        #: Bytes sent, and seconds spent waiting for the client to read them.
        self._sent = 0
        self._waited = 0.0

    def sent(self, size: int) -> None:
        """Count ``size`` bytes that the kernel has accepted."""
        self._sent += size

    def waited(self, seconds: float) -> None:
        """Count ``seconds`` of waiting for the client to read."""
        self._waited += seconds

    def may_wait(self, timeout: float | None, *, write: bool) -> float:
        """Return for how many seconds the next wait may last; ``timeout`` is the caller's own limit."""
        self._in_a_row = 0
        longest = STALLED if timeout is None else timeout
        if write:
            longest = max(0.0, min(longest, STALLED + self._sent / MIN_SPEED - self._waited))
        return longest

    def should_yield(self) -> bool:
        """Count a read. Return whether other green threads must run before it: data may arrive without a pause."""
        self._in_a_row += 1
        if self._in_a_row <= READS_IN_A_ROW:
            return False
        self._in_a_row = 0
        return True
