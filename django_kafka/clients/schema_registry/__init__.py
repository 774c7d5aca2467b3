"""The schema registry: one client for each cluster in a process, and what turns values into framed bytes with it."""

from __future__ import annotations

from .codecs import Codec, Use, codec
from .contracts import Contract, contract
from .library import as_dict, is_message
from .patience import TooSlow, within
from .prototext import prototext
from .registry import Registry, of
from .sources import TYPES
from .subjects import Subjects, Version

__all__ = [
    "TYPES", "Codec", "Contract", "Registry", "Subjects", "TooSlow", "Use", "Version", "as_dict", "codec", "contract",
    "is_message", "of", "prototext", "within",
]  # fmt: skip
