"""A browser, the desk that it looks at, and who uses it. Without a browser these tests are skipped, and fail in CI."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from tests.conftest import in_ci
from tests.servers import Unavailable

from . import chromium
from .airline import Airline
from .person import Person, person

PICTURES = "DJANGO_KAFKA_PICTURES"
"""The variable that names the folder for pictures of pages; without it none are taken."""

Window = Callable[..., Person]


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, one for all of these tests: it ends with them, since its driver keeps an event loop in this thread."""
    running = chromium.Chromium()
    # The loop of the driver is not one that a query would hold up.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        try:
            _or_skip(running.start)
            yield running.browser
        finally:
            running.close()


@pytest.fixture(scope="package")
def axe() -> str:
    """The script of axe-core."""
    return str(_or_skip(chromium.axe))


@pytest.fixture
def desk(transactional_db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the admin under a strict policy, and return where."""
    settings.MIDDLEWARE = ["tests.browser.policy.strict", *settings.MIDDLEWARE]
    monkeypatch.setattr(socket, "gethostname", lambda: "ops-1")
    server = LiveServer("localhost")
    yield server.url
    server.stop()


@pytest.fixture
def window(browser: Any, desk: str) -> Iterator[Window]:
    """Open windows: `window(language="de")`; what went wrong in any of them fails the test at its end."""
    pictures = os.environ.get(PICTURES)
    ways: dict[str, Any] = {"pictures": Path(pictures) if pictures else None}
    opening: Callable[..., AbstractContextManager[Person]] = partial(person, browser, desk)
    with ExitStack() as windows:
        yield lambda **wishes: windows.enter_context(opening(**{**ways, **wishes}))


@pytest.fixture
def airline(embedded: Any, transactional_db: None, settings: Settings) -> Iterator[Airline]:
    """The airline: its topic, its consumer, and a worker when it is told to work."""
    with pytest.MonkeyPatch.context() as patch:
        one = Airline(embedded, settings, patch)
        yield one
        one.close()


@pytest.fixture
def ada(transactional_db: None) -> User:
    """Somebody who may do everything."""
    return User.objects.create_superuser("ada", password="engine")


def _or_skip(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Unavailable as error:
        if in_ci():
            pytest.fail(f"A browser is needed here: {error}", pytrace=False)
        pytest.skip(f"The browser is not available: {error}")
