"""A web application that sends a record with each request, and one before it is forked."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

application = get_wsgi_application()


def send(request: HttpRequest, number: int) -> HttpResponse:
    """Send one record, which is not waited for, and tell which process did."""
    from django_kafka import services

    services.produce(os.environ["JOURNEY_TOPIC"], f"key-{number % 10}", {"n": number})
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("send/<int:number>/", send)]

if "JOURNEY_TOPIC" in os.environ:
    from django_kafka import services

    services.produce(os.environ["JOURNEY_TOPIC"], "before", {"n": 0}).result(30)
