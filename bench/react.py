"""`python bench/react.py`: a list of React in Chromium that follows a channel with up to 10,000 messages a second.

The page is that of the tests, built for production: `useChannel` with a limit of 10,000 and a list that renders the
visible lines. Chromium renders without a GPU, on the cores that the server and PostgreSQL use, too. So the time of the
page's main thread says more about the library than the frames per second do: it is CPU time. A second page, with a
bare WebSocket that only counts the messages, shows what Chromium itself spends on them. Each page is measured with
batches and without (single messages), over WebSocket.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psycopg2
import websocket

# `python bench/react.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine  # noqa: E402
from tests.support.bundles import Site, bundle  # noqa: E402
from tests.support.server import ROOT, ServerProcess  # noqa: E402

CHANNEL = "flood"
#: Seconds between two transactions of the sender.
TICK = 0.02
#: Seconds before anything is measured.
WARM_SECONDS = 3.0
_RECORD = """{
    window.stamps = [];
    window.recording = true;
    const step = (now) => { stamps.push(now); if (recording) requestAnimationFrame(step); };
    requestAnimationFrame(step);
}"""
_BARE = """<!doctype html><script type="module">
window.bare = true;
window.flood = { total: 0, last: null, status: "" };
const batch = !location.search.includes("batch=0");
const server = new URLSearchParams(location.search).get("server").replace("http", "ws");
const socket = new WebSocket(`${server}/socket.io/?EIO=4&transport=websocket`);
socket.onmessage = ({ data }) => {
  if (data.startsWith('42["event",')) flood.total++;
  else if (data.startsWith('42["events",')) flood.total += JSON.parse(data.slice(2))[1].length;
  else if (data.startsWith("0")) socket.send("40");
  else if (data === "2") socket.send("3");
  else if (data.startsWith("40")) socket.send(`42["subscribe",{"channel":"flood","batch":${batch}}]`);
  else if (data.startsWith('42["subscribed"')) flood.status = "live";
};
</script>"""
#: The page of React. Without batches, it asks for none.
_REACT = """<!doctype html><div id="root"></div><script>
if (location.search.includes("batch=0")) {
  const { send } = WebSocket.prototype;
  WebSocket.prototype.send = function (text) { send.call(this, text.replace('"batch":true', '"batch":false')); };
}
</script><script type="module" src="harness.js"></script>"""
_SEND = {
    "notify": "SELECT pg_notify(%s, json_build_array(n, repeat('x', 50))::text) FROM generate_series(%s, %s) AS n",
    "log": "SELECT socketio_pg.publish(%s, jsonb_build_array(n, repeat('x', 50))) FROM generate_series(%s, %s) AS n",
}


class Sender:
    """Publishes messages at a rate, in a thread."""

    def __init__(self, url: str, tier: str, rate: int) -> None:
        self._url, self._tier, self._rate = url, tier, rate
        self._ended = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            began = time.monotonic()
            while not self._ended.wait(TICK):
                due = int((time.monotonic() - began) * self._rate)
                due = min(due, self.sent + self._rate // 5)  # no more than 200 ms at once
                if due > self.sent:
                    cursor.execute(_SEND[self._tier], [CHANNEL, self.sent + 1, due])
                    self.sent = due

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Page:
    """A page of a Chromium of its own, over the DevTools protocol.

    Playwright would be told of each frame of the WebSocket, which costs the page more than the message itself.
    """

    def __init__(self, chromium: str, profile: Path) -> None:
        flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([chromium, *flags, "about:blank"], **quiet)  # type: ignore[call-overload]
        port = profile / "DevToolsActivePort"
        while not port.exists() or "\n" not in port.read_text():
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            [address] = [one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page"]
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self._calls = 0
        self.call("Performance.enable", timeDomain="threadTicks")  # CPU time

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._calls:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)

    def seconds(self) -> dict[str, float]:
        """Return the seconds that the main thread has spent so far, by kind."""
        return {one["name"]: one["value"] for one in self.call("Performance.getMetrics")["metrics"]}

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()


def measure(page: Page, seconds: float) -> dict[str, Any]:
    """Record the page's frames, messages and main thread for some seconds."""
    total, before = page.evaluate("flood.total"), page.seconds()
    busy, ticks = machine.busy_ticks()
    page.evaluate(_RECORD)
    began = time.monotonic()
    time.sleep(seconds)
    stamps: list[float] = page.evaluate("recording = false, stamps")
    arrived = page.evaluate("flood.total") - total
    lasted = time.monotonic() - began
    after = page.seconds()
    busy_now, ticks_now = machine.busy_ticks()
    gaps = sorted(b - a for a, b in itertools.pairwise(stamps))
    spent = {name: after[name] - before[name] for name in ("TaskDuration", "ScriptDuration", "LayoutDuration")}
    return {
        "messages/s": round(arrived / lasted),
        "fps": round(len(gaps) / (stamps[-1] - stamps[0]) * 1000, 1),
        "frame p50 ms": round(gaps[len(gaps) // 2], 1),
        "frame p99 ms": round(gaps[int(len(gaps) * 0.99)], 1),
        "main thread ms/frame": round(1000 * spent["TaskDuration"] / len(gaps), 2),
        "script ms/frame": round(1000 * spent["ScriptDuration"] / len(gaps), 2),
        "layout ms/frame": round(1000 * spent["LayoutDuration"] / len(gaps), 2),
        "main thread %": round(100 * spent["TaskDuration"] / lasted),
        "us/message": round(1e6 * spent["TaskDuration"] / arrived, 1) if arrived else None,
        "machine busy %": round(100 * (busy_now - busy) / max(1, ticks_now - ticks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="*", default=[0, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tier", choices=tuple(_SEND), default="notify")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--profile", type=Path, help="write a CPU profile of the last rate to this file")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        production = '--define:process.env.NODE_ENV="production"'
        minify = [] if options.profile else ["--minify"]
        bundle(ROOT / "tests/live/react/harness.tsx", folder, "--splitting", production, *minify)
        (folder / "index.html").write_text(_REACT)
        (folder / "bare.html").write_text(_BARE)
        site = stack.enter_context(contextlib.closing(Site(folder)))
        url, version = stack.enter_context(database.running(machine.choose_cores()))
        server = stack.enter_context(
            contextlib.closing(ServerProcess(url, AUTO_INIT="1", CORS_ALLOWED_ORIGINS=site.url))
        )
        profile = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        page = stack.enter_context(contextlib.closing(Page(options.chromium, profile)))
        print(f"PostgreSQL {version}, tier {options.tier}, {options.seconds:g} s each")
        last = options.rates[-1:]
        pages = [("bare.html", "websocket", 0, last), ("bare.html", "websocket", 1, last)]
        pages += [("index.html", "websocket", 0, last), ("index.html", "websocket", 1, options.rates)]
        pages.append(("index.html", "polling", 1, last))
        for path, transport, batch, rates in pages:
            query = urllib.parse.urlencode(
                {"server": server.url, "anonymous": 1, "transport": transport, "batch": batch}
            )
            page.call("Page.navigate", url=f"{site.url}/{path}?{query}")
            page.wait(f"location.href.endsWith('/{path}?{query}') && ('show' in window || 'bare' in window)")
            page.evaluate(f"window.show?.({{flood: '{CHANNEL}'}})")
            page.wait("flood.status === 'live'")
            for rate in rates:
                with contextlib.closing(Sender(url, options.tier, rate)):
                    time.sleep(WARM_SECONDS)
                    found = measure(page, options.seconds)
                how = "batches" if batch else "single "
                print(f"{path:<10} {transport:<9} {how} {rate:>6} sent/s: {json.dumps(found)}", flush=True)
        if options.profile:
            with contextlib.closing(Sender(url, options.tier, options.rates[-1])):
                page.call("Profiler.enable")
                page.call("Profiler.start")
                time.sleep(options.seconds)
                options.profile.write_text(json.dumps(page.call("Profiler.stop")["profile"]))


if __name__ == "__main__":
    main()
