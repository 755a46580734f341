"""A Chromium with real tabs: those in the background are hidden and throttled, and left pages are kept to go back to.

Playwright's own Chromium has neither: it switches both off, and emulates that each page is the one in front.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import BrowserContext, BrowserType

from tests.support.patience import until

_FLAGS = [
    "--headless=new", "--remote-debugging-port=0", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def tabs(chromium: BrowserType, path: str) -> Iterator[BrowserContext]:
    """Start Chromium, whose program is at ``path``. Yield its window, in which each page is a tab."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        flags = [*_FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        process = subprocess.Popen(
            [path, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = Path(profile) / "DevToolsActivePort"
            until(lambda: port.exists() and port.read_text().count("\n"), "Chromium has started")
            number, name = port.read_text().split()
            browser = chromium.connect_over_cdp(f"ws://127.0.0.1:{number}{name}", no_defaults=True)
            yield browser.contexts[0]
            browser.close()
        finally:
            process.terminate()
            process.wait()
