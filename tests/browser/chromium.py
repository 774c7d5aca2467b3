"""Debian's Chromium, driven by Playwright, and axe-core, which looks at pages as people with other needs meet them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.run import CHROMIUM
from tests.servers.kafka import cache
from tests.servers.processes import Unavailable, found

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPTIONS = [
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",  # letters as wide here as elsewhere
]
AXE = "axe-core@4.14.1"


class Chromium:
    """One browser, for all tests of browsers in a test process."""

    def __init__(self) -> None:
        self.browser: Browser | None = None
        self._driver: Any = None

    def start(self) -> None:
        """Start it. Raises `Unavailable`."""
        program = next(filter(None, map(shutil.which, CHROMIUM)), None)
        if program is None:
            raise Unavailable("chromium is not installed (Debian package: chromium).")
        try:
            from playwright.sync_api import sync_playwright
        except ImportError as error:
            raise Unavailable("playwright is not installed (PyPI package: playwright).") from error
        self._driver = sync_playwright().start()
        self.browser = self._driver.chromium.launch(executable_path=program, args=OPTIONS)

    def close(self) -> None:
        """End it."""
        if self.browser is not None:
            self.browser.close()
        if self._driver is not None:
            self._driver.stop()


def axe() -> str:
    """Return the script of axe-core; npm fetches it the first time. Raises `Unavailable`."""
    ready = cache() / f"{AXE.replace('@', '-')}.min.js"
    if not ready.exists():
        ready.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ready.parent) as folder:
            work = Path(folder)
            for command in (
                [found("npm", "npm"), "pack", "--silent", AXE],
                ["tar", "xzf", f"{AXE.replace('@', '-')}.tgz"],
            ):
                done = subprocess.run(
                    command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise Unavailable(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:].strip()}")
            # Moved in whole: an interrupted download leaves nothing that looks like one.
            (work / "package" / "axe.min.js").replace(ready)
    return ready.read_text("utf-8")
