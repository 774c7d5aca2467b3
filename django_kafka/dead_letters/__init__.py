"""Dead letters: recorded when handling is given up, replayed when the cause is mended."""

from .erasing import At, Forgotten, forget

__all__ = ["At", "Forgotten", "forget"]
