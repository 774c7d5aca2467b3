"""Events that a Django model declares: some of its fields, with their types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field as having
from dataclasses import make_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

from django.core.exceptions import FieldDoesNotExist
from django.db import models

from ..exceptions import ConfigurationError

_TYPES: tuple[tuple[type[models.Field[Any, Any]], Any], ...] = (
    (models.BooleanField, bool),
    (models.IntegerField, int),
    (models.FloatField, float),
    (models.DecimalField, Decimal),
    (models.DateTimeField, datetime),
    (models.DateField, date),
    (models.TimeField, time),
    (models.DurationField, timedelta),
    (models.UUIDField, UUID),
    (models.BinaryField, bytes),
    (models.JSONField, Any),
    (models.CharField, str),
    (models.TextField, str),
    (models.FileField, str),
    (models.GenericIPAddressField, str),
)
"""The first that fits."""


class ModelEvent:
    """What every event of a model has."""

    @classmethod
    def from_instance(cls, instance: models.Model) -> Self:
        """Return the event that tells of an instance as it is now."""
        raise NotImplementedError


def event_of(model: type[models.Model], *, fields: Iterable[str], name: str | None = None) -> type[ModelEvent]:
    """Return a frozen dataclass with these fields of a model; `name` is what it is called (None: as the model).

    A foreign key is the key of the other row, under the name that its column has: `airline_id`. What may be NULL is
    None by default. Raises `ConfigurationError` for a field that the model does not have, or that has no type here.
    """
    found = [_field(model, one) for one in fields]
    if not found:
        raise ConfigurationError(f"An event of {model.__name__} names no fields.")

    def from_instance(cls: type[ModelEvent], instance: models.Model) -> ModelEvent:
        return cls(**{one.attname: _value(one, instance) for one in found})

    members = [(one.attname, _type(one), having(default=None)) if one.null else (one.attname, _type(one))
               for one in found]  # fmt: skip
    return make_dataclass(
        name or model.__name__, members, bases=(ModelEvent,), frozen=True, kw_only=True,
        namespace={
            "from_instance": classmethod(from_instance),
            "__doc__": f"An event of {model._meta.label}.",
            "__module__": model.__module__,
        },
    )  # fmt: skip


def _field(model: type[models.Model], name: str) -> models.Field[Any, Any]:
    try:
        found = model._meta.get_field(name)
    except FieldDoesNotExist as error:
        raise ConfigurationError(f"An event of {model.__name__}: {error}.") from None
    if not isinstance(found, models.Field) or found.many_to_many:
        raise ConfigurationError(f"An event of {model.__name__}: {name!r} is no column of its table.")
    return found


def _python(field: models.Field[Any, Any]) -> models.Field[Any, Any]:
    """Return the field that knows the values: of a foreign key that of the other model."""
    while isinstance(field, models.ForeignKey):
        field = field.target_field
    return field


def _value(field: models.Field[Any, Any], instance: models.Model) -> Any:
    """Return what a field holds, as it is read: an instance that was not read again may have it as it was given."""
    value = getattr(instance, field.attname)
    if isinstance(field, models.FileField):
        return str(value)
    return bytes(value) if isinstance(value, memoryview) else _python(field).to_python(value)


def _type(field: models.Field[Any, Any]) -> Any:
    column = _python(field)
    for kind, found in _TYPES:
        if isinstance(column, kind):
            return found | None if field.null and found is not Any else found
    raise ConfigurationError(
        f"An event of {field.model.__name__}: {field.name!r} is a {type(column).__name__}, which has no type here."
    )
