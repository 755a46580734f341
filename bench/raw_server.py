"""The raw limit: a loop that calls `send()` with one frame on each connected socket. No protocol, no event loop.

The first connection is the control connection. A line of JSON (a `Job` and the number of clients) starts a run, and a
line of JSON (a `Sent`) answers at its end. Usage: python raw_server.py PORT
"""

import gc
import json
import socket
import struct
import sys
import time

LIMIT_SECONDS = 300.0


def frame(number: int) -> bytes:
    """Return a frame of exactly the size of the live scenario: an event of the channel `live`, 100 bytes of payload."""
    head = f'{{"n":{number},"t":{time.monotonic_ns()},"m":"^","p":"'
    payload = head + "x" * (100 - len(head) - 2) + '"}'
    text = f'42["event",{{"channel":"live","payload":{payload}}}]'.encode()
    return struct.pack("!BBH", 0x81, 126, len(text)) + text


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
    control, _ = listener.accept()
    commands = control.makefile("r")
    clients: list[socket.socket] = []
    number = 0
    gc.disable()
    for line in commands:
        job = json.loads(line)
        while len(clients) < job["clients"]:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
        if not job["messages"]:
            control.sendall(b"{}\n")
            continue
        sends = [client.send for client in clients]
        started = time.monotonic()
        latest = 0.0
        for index in range(job["messages"]):
            wait = started + index / job["rate"] - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            latest = max(latest, -wait)
            data = frame(number)
            number += 1
            for send in sends:
                send(data)
            if time.monotonic() - started > LIMIT_SECONDS:
                break
        sent = {"messages": index + 1, "started": started, "seconds": time.monotonic() - started, "latest": latest}
        control.sendall(json.dumps(sent).encode() + b"\n")


if __name__ == "__main__":
    main()
