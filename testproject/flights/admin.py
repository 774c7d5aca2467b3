from __future__ import annotations

from django.contrib import admin

from .models import Flight


@admin.register(Flight)
class FlightAdmin(admin.ModelAdmin):
    list_display = ("__str__", "scheduled", "departed", "delay", "tail_number", "cancelled")
    list_filter = ("carrier", "origin", ("departed", admin.EmptyFieldListFilter))
    search_fields = ("=number", "destination", "tail_number")
    date_hierarchy = "scheduled"
    show_full_result_count = False
