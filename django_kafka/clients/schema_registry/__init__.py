"""The schema registry: one client for each cluster in a process, and what turns values into framed bytes with it."""

from __future__ import annotations

from .codecs import Codec, Use, codec
from .library import as_dict, is_message
from .patience import TooSlow, within
from .registry import Registry, of

__all__ = ["Codec", "Registry", "TooSlow", "Use", "as_dict", "codec", "is_message", "of", "within"]
