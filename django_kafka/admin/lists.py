"""Lists of tables that may have millions of rows: counted up to a bound, and looked through once for a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import SEARCH_VAR, ChangeList
from django.core.paginator import InvalidPage, Paginator
from django.db import connections
from django.db.models import Field, Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from .. import conf, subscriptions
from ..dead_letters import groups, permits
from . import showing

MOST_COUNTED = 10_000
"""Rows that a list counts, and whose pages it has."""
MOST_FOUND = 1_000
"""Rows that a search counts: what it finds lies anywhere in a table, and each row is read for its words."""
MOST_NAMES = 100
"""Names that a filter offers."""
MOST_LOOKED_THROUGH = 1_000
"""Names that are looked through for a part of them."""


class Many(int):
    """A number that was not counted to its end."""

    def __str__(self) -> str:
        return f"{int(self)}+"


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # generic for the type checker only
    """Pages of the first rows of a query, whose ids are read in one go: they are the count as well."""

    most = 0
    """Rows that are counted."""

    @cached_property
    def ids(self) -> list[Any]:
        """The ids of the rows, in their order, up to one more than are counted."""
        rows: Any = self.object_list
        return list(rows.values_list("pk", flat=True)[: self.most + 1])

    @cached_property
    def count(self) -> int:
        """How many rows there are, as far as they are counted."""
        found = len(self.ids)
        return found if found <= self.most else Many(self.most)

    def rows(self, first: int, after: int) -> QuerySet[Any]:
        """Return these rows in their order: no others are looked at again."""
        rows: Any = self.object_list
        found: QuerySet[Any] = rows.filter(pk__in=self.ids[first:after])
        return found


class BoundedList(ChangeList):
    """A list that takes as long for a million rows as for ten thousand."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the ids of the rows, and the rows of one page by them."""
        paginator: Any = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        count = paginator.count
        shows_all = self.show_all and count <= self.list_max_show_all
        first, after = 0, count
        if not shows_all:
            try:
                page = paginator.page(self.page_num)
            except InvalidPage as error:
                raise IncorrectLookupParameters from error
            first = page.start_index() - 1 if count else 0
            after = page.end_index()
        self.result_count = count
        self.show_full_result_count = False
        self.show_admin_actions = True
        self.full_result_count = None
        self.result_list = paginator.rows(first, after)
        self.can_show_all = count <= self.list_max_show_all
        self.multi_page = count > self.list_per_page
        self.paginator = paginator


class Bounded(admin.ModelAdmin):  # type: ignore[type-arg]  # likewise
    """Whose list is such a one."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50

    def get_changelist(self, request: HttpRequest, **_options: Any) -> type[ChangeList]:
        """Return the kind of list."""
        return BoundedList

    def get_paginator(self, request: HttpRequest, *rows: Any, **options: Any) -> Any:
        """Return pages of a list, or of what was searched for."""
        pages: Any = super().get_paginator(request, *rows, **options)
        pages.most = MOST_FOUND if request.GET.get(SEARCH_VAR, "").strip() else MOST_COUNTED
        return pages


class ValuesFilter(admin.AllValuesFieldListFilter):
    """The values that a column has, harmless; one that is empty can be read, and followed, too."""

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Return the links."""
        for choice in super().choices(changelist):
            yield {**choice, "display": showing.line(str(choice["display"]), 80) or "–"}


class NamesFilter(ValuesFilter):
    """A filter by the names that a column has, which are read from its index without reading its rows."""

    def __init__(
        self, field: Field[Any, Any], request: HttpRequest, params: Any, model: Any, model_admin: Any, field_path: str
    ) -> None:
        super().__init__(field, request, params, model, model_admin, field_path)
        consumers = permits.consumers_of(request.user, permits.Verb.VIEW, model_admin.model)
        self.lookup_choices = self.names(field.model, field.attname, consumers)  # type: ignore[assignment]

    def names(self, model: type[Model], column: str, consumers: frozenset[str] | None) -> list[str]:
        """Return what the column has; for somebody who may look at these consumers only, what it may have of them."""
        using = conf.kafka().dead_letters.database
        match column:
            case _ if consumers is None:
                return names_of(model, column, using)
            case "consumer":
                return sorted(consumers)
            case "topic":
                kafka = conf.kafka()
                theirs = [one for one in consumers if one in kafka.consumers]
                names = {kafka.prefixed(topic) for one in theirs for topic in subscriptions.named(one)}
                if by_pattern := [one for one in theirs if subscriptions.patterns(one)]:
                    there = names_of(model, column, using, MOST_LOOKED_THROUGH)
                    names |= {topic for topic in there if any(subscriptions.ways(one, topic) for one in by_pattern)}
                return sorted(names)
            case "error_type":
                found = groups.groups().filter(consumer__in=consumers).order_by()
                return sorted(found.values_list("error_type", flat=True).distinct())[:MOST_NAMES]
        # Releases are those of the project.
        return names_of(model, column, using)


def names_with(part: str, model: type[Model], column: str, using: str) -> list[str]:
    """Return the values of a text column that has an index, and that hold a part whatever its case."""
    known = names_of(model, column, using, MOST_LOOKED_THROUGH)
    return [name for name in known if part.casefold() in name.casefold()]


def names_of(model: type[Model], column: str, using: str, most: int | None = None) -> list[str]:
    """Return the first values of a text column that has an index, in their order; not "".

    From each value to the next by the index: `SELECT DISTINCT` reads every row.
    """
    quote = connections[using].ops.quote_name
    table, name = quote(model._meta.db_table), quote(column)
    statement = (
        f"WITH RECURSIVE found (name) AS (SELECT MIN({name}) FROM {table} WHERE {name} > '' UNION ALL "
        f"SELECT (SELECT MIN({name}) FROM {table} WHERE {name} > found.name) FROM found WHERE found.name IS NOT NULL) "
        f"SELECT name FROM found WHERE name IS NOT NULL LIMIT {most or MOST_NAMES}"
    )
    with connections[using].cursor() as cursor:
        cursor.execute(statement)
        return [each for (each,) in cursor.fetchall()]
