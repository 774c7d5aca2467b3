"""An admin for reading only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for the type checker only
    """No form adds, alters or deletes anything."""

    class Media:
        css = {"all": ["lynx_kafka/admin.css"]}

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: rows come from workers."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: rows are what happened."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: retention deletes."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the person has Django's view or change permission."""
        return super().has_view_permission(request, obj)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, or act on what was chosen in it: without ids that no row can have, which Django trips over."""
        if request.method == "POST" and ACTION_CHECKBOX_NAME in request.POST:
            posted = request.POST.copy()
            possible = [each for each in posted.getlist(ACTION_CHECKBOX_NAME) if self.may_be_id(each)]
            posted.setlist(ACTION_CHECKBOX_NAME, possible)
            request.POST = posted  # type: ignore[assignment]
        return super().changelist_view(request, extra_context)

    def one_of(self, request: HttpRequest, rows: QuerySet[Any], object_id: str) -> Any:
        """Return the row of this id for a page that only shows it. Raises `PermissionDenied` and `Http404`."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        row = rows.filter(pk=object_id).first() if self.may_be_id(object_id) else None
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404
        return row

    def may_be_id(self, text: str) -> bool:
        """Tell whether a row can have this id, so that a database takes it."""
        try:
            self.opts.pk.clean(text, None)
        except ValidationError:
            return False
        return "\0" not in text
