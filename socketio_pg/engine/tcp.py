"""Reads what the kernel counts of a TCP connection. It costs nothing until somebody asks."""

import socket
import struct
import sys
from typing import Any, NamedTuple

#: `struct tcp_info` of Linux (include/uapi/linux/tcp.h) up to `tcpi_bytes_received`, which Linux 4.1 has added.
_SIZE = 136
#: The offsets of `tcpi_rtt` (microseconds, 4 bytes) and of `tcpi_bytes_acked`, before `tcpi_bytes_received`.
_ROUND_TRIP, _BYTES = 68, 120


class Counts(NamedTuple):
    """Bytes ``received`` from the client, and those ``sent`` that it has acknowledged; ``round_trip`` in seconds."""

    received: int
    sent: int
    round_trip: float


def read(connection: Any) -> Counts | None:
    """Return the counts of an open socket; None where there are none: a Unix socket, or another system than Linux."""
    if sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except OSError:
        return None
    if len(info) < _SIZE:
        return None
    [round_trip] = struct.unpack_from("=I", info, _ROUND_TRIP)
    sent, received = struct.unpack_from("=QQ", info, _BYTES)
    return Counts(received, sent, round_trip / 1_000_000)
