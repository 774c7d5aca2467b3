"""What a job is described by: the query of the list that it was made from, with what somebody searched for in it."""

from __future__ import annotations

import re

from django.db.models import Q

SEARCHED = Q(description__startswith="q=") | Q(description__contains="&q=")
"""A condition: somebody searched for the letters of the job by what they say."""


def without_search(description: str) -> str:
    """Return a description without what was searched for: it may be of somebody who is erased one day."""
    return re.sub(r"(^|&)q=[^&]*", r"\1q=…", description)
