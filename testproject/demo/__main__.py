from __future__ import annotations

import os
import sys

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "testproject.settings"
for real in ("KAFKA_BROKERS", "DATABASE_URL"):
    os.environ.pop(real, None)  # the demo starts afresh each time, which nobody wants for a database of their own
django.setup()

from .journey import main  # noqa: E402  # models can be imported now

sys.exit(main())
