"""A Celery application whose tasks send records, after its parent process has sent one."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery
from celery.signals import worker_init

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
django.setup()


@worker_init.connect
def send_before_the_fork(**_event: Any) -> None:
    """Send one record from the process that is forked later."""
    from django_kafka import services

    services.produce(os.environ["JOURNEY_TOPIC"], "before", {"n": 0}).result(30)


@app.task(name="tests.send", ignore_result=True)
def send(number: int) -> None:
    """Send one record, which is not waited for."""
    from django_kafka import services

    services.produce(os.environ["JOURNEY_TOPIC"], f"key-{number % 10}", {"n": number})
    print(f"Sent {number} in {os.getpid()}.")
