"""Dead letters for tests, as a worker would have left them."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from django.utils import timezone

from django_kafka.dead_letters import searching
from django_kafka.envelopes import claim_check
from django_kafka.models import DeadLetter, DeadLetterAttempt, LetterWords
from django_kafka.models.dead_letters import encode_headers, key_hash


def dead_letter(value: Any = None, **fields: Any) -> DeadLetter:
    """Store a letter of consumer "ops" and topic "flights"; `value` is sent as JSON, unless it is bytes."""
    now = timezone.now()
    unique = uuid.uuid4()
    key = fields.get("key", b"UA 1545")
    stored: DeadLetter = DeadLetter.objects.create(
        **{
            "consumer": "ops",
            "group_id": "ops",
            "topic": "flights",
            "partition": 0,
            "offset": unique.int >> 66,
            "fingerprint": hashlib.sha256(unique.bytes).hexdigest(),
            "timestamp_ms": 1_700_000_000_000,
            "key": key,
            "key_hash": key_hash(key),
            "value": value if isinstance(value, bytes) or value is None else json.dumps(value).encode(),
            "payload_name": claim_check.name_in(value if isinstance(value, bytes) else None),
            "stored_headers": encode_headers(fields.pop("headers", ())),
            "category": "handler",
            "error_type": "ValueError",
            "error_message": "bad value",
            "attempts": 1,
            "first_failed_at": now,
            "last_failed_at": now,
            **fields,
        }
    )
    DeadLetterAttempt.objects.create(
        letter=stored,
        number=1,
        at=now,
        origin="worker",
        error_type=stored.error_type,
        error_message=stored.error_message,
    )
    LetterWords.objects.create(letter=stored, rules=searching.rules(), words=searching.of(stored))
    return stored
