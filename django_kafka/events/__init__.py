"""Events as Python types: what a handler's annotation makes of a payload, and what is sent for such an object.

Dataclasses are read by msgspec, models of pydantic by pydantic: both are fast, and neither is ours.
"""

from .conversion import Converter, plain, typed
from .faults import Unfit
from .models import event_of
from .schemas import json_schema

__all__ = ["Converter", "Unfit", "event_of", "json_schema", "plain", "typed"]
