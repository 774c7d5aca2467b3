"""The words of dead letters, by which they are found."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.ddl_references import Statement, Table
from django.db.models import BaseConstraint, Lookup
from django.utils.translation import gettext_lazy as _

from .dead_letters import DeadLetter

PARTS = "|"
"""Stands between the words of different parts, which do not follow each other."""
Chunk = tuple[tuple[str, ...], bool]
"""Words that follow each other, and whether the last one may be the beginning of a longer one."""


_CREATE = "CREATE INDEX %(name)s ON %(table)s USING gin (%(column)s) WHERE %(column)s IS NOT NULL"


class WordsField(models.Field):  # type: ignore[type-arg]  # generic for the type checker only
    """Words in their order, all of them lower case, with `PARTS` in between; of PostgreSQL's type `tsvector` there.

    Words have letters and digits only, as `dead_letters.words` makes them.
    """

    def db_type(self, connection: Any) -> str:
        """Return the type of the column."""
        return "tsvector" if connection.vendor == "postgresql" else str(models.TextField().db_type(connection))

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """Return what the database is given."""
        if value is None or connection.vendor != "postgresql":
            return value if value is None else f" {value} "
        return as_tsvector(value)


def as_tsvector(words: str) -> str:
    """Return words as PostgreSQL reads them, each with its place."""
    return " ".join([f"{word}:{place}" for place, word in enumerate(words.split(), 1) if word != PARTS])


@WordsField.register_lookup
class Has(Lookup):
    """`words__has=[(("gate", "17"), True)]`: all of these are there, each with its words one after another."""

    lookup_name = "has"

    def get_prep_lookup(self) -> list[Chunk]:
        """Return what is looked for."""
        return list(self.rhs)

    def get_db_prep_lookup(self, value: Any, connection: Any) -> Any:
        """Return the parameters."""
        return "%s", [value]

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        """Ask the index."""
        column, parameters = self.process_lhs(compiler, connection)
        query = " & ".join(f"({_phrase(*chunk)})" for chunk in self.rhs)
        return f"{column} @@ %s::tsquery", [*parameters, query]

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """Look into the text, where there is no such index. Words have no wildcards in them."""
        column, parameters = self.process_lhs(compiler, connection)
        found = [f"% {' '.join(words)}{'' if beginning else ' '}%" for words, beginning in self.rhs]
        return " AND ".join(f"{column} LIKE %s" for _one in found), (*(tuple(parameters) * len(found)), *found)


def _phrase(words: tuple[str, ...], beginning: bool) -> str:
    return " <-> ".join(f"'{word}'" for word in words) + (":*" if beginning else "")


class WordsIndex(BaseConstraint):
    """PostgreSQL's index for words. Others have none: there, letters are looked through."""

    def __init__(self, *, name: str, column: str) -> None:
        super().__init__(name=name)
        self.column = column

    def constraint_sql(self, model: Any, schema_editor: Any) -> str:
        """Have the index made when the table is there."""
        if (statement := self.create_sql(model, schema_editor)) is not None:
            schema_editor.deferred_sql.append(statement)
        return ""

    def create_sql(self, model: Any, schema_editor: Any) -> Statement | None:  # type: ignore[override]
        """Return what makes it."""
        return self._statement(_CREATE, model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Statement | None:  # type: ignore[override]
        """Return what takes it away."""
        return self._statement("DROP INDEX %(name)s", model, schema_editor)

    def validate(self, *_arguments: Any, **_options: Any) -> None:
        """Do nothing: it forbids nothing."""

    def deconstruct(self) -> Any:
        """Return how a migration makes it."""
        path, arguments, options = super().deconstruct()
        return path, arguments, {**options, "column": self.column}

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same index."""
        return isinstance(other, WordsIndex) and (self.name, self.column) == (other.name, other.column)

    def __hash__(self) -> int:
        return hash((self.name, self.column))

    def _statement(self, template: str, model: Any, editor: Any) -> Statement | None:
        if editor.connection.vendor != "postgresql":
            return None
        quote = editor.quote_name
        table = Table(model._meta.db_table, quote)
        return Statement(template, table=table, name=quote(self.name), column=quote(self.column))


class LetterWords(models.Model):
    """What one letter is found by: words of its key, headers, error and value, without what is masked.

    Apart from the letter, whose row is written with each change of its state: an index of words is slow to write to.
    """

    letter = models.OneToOneField(
        DeadLetter, models.CASCADE, primary_key=True, db_constraint=False, related_name="words",
        verbose_name=_("dead letter"),
    )  # fmt: skip
    rules = models.BigIntegerField(null=True)
    """Which masking they were taken under, as `dead_letters.searching.rules` tells it; None: as long as they wait."""
    words = WordsField(null=True)
    """None: they are still to be taken from the letter; `dead_letters.searching.catch_up` does that."""

    class Meta:
        app_label = "lynx_kafka"
        default_permissions = ()
        indexes = (
            models.Index(fields=["letter"], condition=models.Q(words__isnull=True), name="lynx_kafka_words_waiting"),
            # Without those that wait: storing a letter writes nothing into it.
            models.Index(fields=["rules"], condition=models.Q(words__isnull=False), name="lynx_kafka_words_rules"),
        )
        constraints = (WordsIndex(name="lynx_kafka_words", column="words"),)

    def __str__(self) -> str:
        return f"{self.letter_id}"
