"""Handlers of the tests. An effect says which group it belongs to by the setting EFFECT_GROUP of its process."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import OperationalError

from .models import Effect

if TYPE_CHECKING:
    from django_kafka.messages import Message


def record(message: Message) -> None:
    """Leave one effect."""
    key = message.raw_key
    Effect.objects.create(
        group=getattr(settings, "EFFECT_GROUP", ""),
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=None if key is None else key.decode("utf-8", "backslashreplace"),
        payload=message.value,
    )


def fail_on_bad(message: Message) -> None:
    """Leave one effect, then fail when the value has a true "bad": the effect must not stay."""
    record(message)
    if message.value and message.value.get("bad"):
        raise ValueError(f"bad value at offset {message.offset}")


def slow(message: Message) -> None:
    """Take as many seconds as the value's "seconds" says, then leave one effect."""
    time.sleep(message.value.get("seconds", 0.05))
    record(message)


async def slow_and_awaited(message: Message) -> None:
    """Do the same as a coroutine."""
    await asyncio.sleep(message.value.get("seconds", 0.05))
    await sync_to_async(record)(message)


def ignore(message: Message) -> None:
    """Do nothing at all."""


def meet_an_outage(message: Message) -> None:
    """Fail as Django does when its database is away."""
    raise OperationalError("could not connect to server")
