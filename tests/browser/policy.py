"""The strictest policy under which every page has to work, as a project would set it."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
"""No `unsafe-inline`, no nonce, no hash."""

Answering = Callable[[HttpRequest], HttpResponse]


def strict(get_response: Answering) -> Answering:
    """Send the policy with every answer: Django's own middleware for that is there from 6.0 on only."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return answer
