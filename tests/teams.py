"""Teams that have their own consumers, as a project might do it: groups of people, and what each may do with what."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.backends import BaseBackend


class TeamsOwnConsumers(BaseBackend):
    """Says yes to a member of a team about rows of its consumers; settings.TEAMS has them by the group's name."""

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        """Tell whether one of the person's teams has the row's consumer, and this permission."""
        if obj is None or not user_obj.is_active:
            return False
        if not hasattr(user_obj, "_teams"):
            user_obj._teams = list(user_obj.groups.values_list("name", flat=True))
        mine = [settings.TEAMS[name] for name in user_obj._teams if name in settings.TEAMS]
        return any(obj.consumer in team["consumers"] and perm in team["may"] for team in mine)


BACKENDS = ["django.contrib.auth.backends.ModelBackend", "tests.teams.TeamsOwnConsumers"]
