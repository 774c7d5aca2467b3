"""The metrics: their names, labels and meanings, and where each value is read. What the docs say of them is from here.

Every label value is a name of settings, a topic, or one of a few words: never anything of a message.
"""

from __future__ import annotations

from .consuming import CONSUMING
from .family import Family, Labels, Scene
from .groups import GROUPS
from .now import LAG, NOW
from .others import OTHERS
from .producing import PRODUCING

__all__ = ["FAMILIES", "OF_GROUPS", "Family", "Labels", "Scene"]

FAMILIES = PRODUCING + CONSUMING + NOW + GROUPS + OTHERS
OF_GROUPS = (LAG, *GROUPS)
"""Those that brokers are asked for."""
