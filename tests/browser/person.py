"""Somebody who looks at pages with a browser, and notes what a person would not see: errors, refusals, dialogs."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Response

WIDE, NARROW = 1400, 390
"""Widths of a window on a desk and of a telephone, in pixels."""
HEIGHT = 900

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


class Person:
    """A window of its own: with whose login, in which language, in which light, with or without JavaScript."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        user: User | None = None,
        language: str = "en",
        scheme: str = "light",
        javascript: bool = True,
        width: int = WIDE,
        pictures: Path | None = None,
    ) -> None:
        self.url = url
        self.troubles: list[str] = []
        self.loaded: list[Response] = []
        self._pictures = pictures
        self._javascript = javascript
        self._context = browser.new_context(
            base_url=url,
            locale=language,
            color_scheme=scheme,  # type: ignore[arg-type]
            java_script_enabled=javascript,
            viewport={"width": width, "height": HEIGHT},
            reduced_motion="reduce",
        )
        self._context.set_default_timeout(15_000)
        self._context.add_init_script(_REPORT_VIOLATIONS)
        if user is not None:
            self._log_in(user)
        self.page = self._context.new_page()
        self.page.on("console", self._heard)
        self.page.on("dialog", self._asked)
        self.page.on("pageerror", lambda error: self.troubles.append(f"{self.page.url}: {error}"))
        self.page.on("response", lambda response: self.loaded.append(response))

    def open(self, path: str, status: int = 200) -> None:
        """Go to a page."""
        answer = self.page.goto(path)
        assert answer is not None
        assert answer.status == status, (path, answer.status)

    def press(self, name: str, role: str = "button") -> None:
        """Press the button, or follow the link, that is called so."""
        self._named(role, name).click()

    def _named(self, role: str, name: str) -> Any:
        return self.page.get_by_role(role, name=name, exact=True).first  # type: ignore[arg-type]

    def reads(self, *texts: str) -> None:
        """See that the page says all of these."""
        # A click waits for the answer to begin, and not for its end.
        self.page.wait_for_load_state()
        said = self.page.locator("body").inner_text()
        for text in texts:
            assert text.lower() in said.lower(), f"{self.page.url} does not say {text!r}:\n{said}"

    def watches(self, pattern: str, seconds: float = 60) -> None:
        """Wait until the page says by itself what fits the pattern; without JavaScript, look at it again."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, said := self.page.locator("body").inner_text(), re.IGNORECASE):
            assert time.monotonic() < deadline, f"{self.page.url} did not come to say {pattern!r}:\n{said}"
            self.page.wait_for_timeout(200)
            if not self._javascript:
                self.page.goto(self.page.url)

    def until(self, text: str, seconds: float = 30) -> None:
        """Look at the page again until it says something."""
        deadline = seconds * 10
        while text.lower() not in self.page.locator("body").inner_text().lower():
            deadline -= 2
            assert deadline > 0, f"{self.page.url} did not come to say {text!r}"
            self.page.wait_for_timeout(200)
            self.page.goto(self.page.url)  # not `reload`, which would send a form again

    def scrolls_sideways(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def picture(self, name: str, *, height: int = 1100) -> None:
        """Keep a picture of the page in light and in dark, from its top, when pictures are asked for."""
        if self._pictures is None:
            return
        (self._pictures / name).parent.mkdir(parents=True, exist_ok=True)
        whole = int(self.page.evaluate("document.documentElement.scrollHeight"))
        size = self.page.viewport_size or {"width": WIDE}
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(whole, height), "scale": 1}
        devtools = self._context.new_cdp_session(self.page)
        for scheme in ("light", "dark"):
            self.in_light(scheme)
            told = {"format": "webp", "quality": 80, "clip": clip, "captureBeyondViewport": True}
            taken = devtools.send("Page.captureScreenshot", told)
            (self._pictures / f"{name}-{scheme}.webp").write_bytes(base64.b64decode(taken["data"]))
        devtools.detach()
        self.in_light("light")

    def in_light(self, scheme: str) -> None:
        """Look at the page in the light or dark."""
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        # Django's buttons take their time to change colour.
        self.page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished.catch(() => null)))")

    def close(self) -> None:
        """Close the window."""
        self._context.close()

    def _log_in(self, user: User) -> None:
        client = Client()
        client.force_login(user)
        name = settings.SESSION_COOKIE_NAME
        self._context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": self.url}])

    def _heard(self, message: ConsoleMessage) -> None:
        if message.location.get("url", "").endswith("/favicon.ico"):
            return  # which browsers ask for by themselves
        if message.type == "error" or "Content Security Policy" in message.text:
            self.troubles.append(f"{self.page.url}: {message.text}")

    def _asked(self, dialog: Dialog) -> None:
        self.troubles.append(f"{self.page.url}: a dialog says {dialog.message!r}")
        dialog.dismiss()


@contextmanager
def person(browser: Browser, url: str, **wishes: Any) -> Iterator[Person]:
    """Open a window, and see at the end that nothing went wrong in it."""
    one = Person(browser, url, **wishes)
    try:
        yield one
        assert not one.troubles, "\n".join(one.troubles)
    finally:
        one.close()
