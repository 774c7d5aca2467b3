"""Schema registries as the tests need them: a real one, and what stands before it."""

from __future__ import annotations

from .front import Front

__all__ = ["Front"]
