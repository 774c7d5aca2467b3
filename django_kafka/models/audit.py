"""The audit: who looked at what, and who did what. Rows are added, and never altered."""

from __future__ import annotations

from typing import Any, NoReturn

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..exceptions import AuditIsAppendOnly
from .append_only import AppendOnly


class AuditEntries(models.QuerySet["AuditEntry"]):
    """Entries, to be added and read."""

    def update(self, **_values: Any) -> NoReturn:
        """Raise `AuditIsAppendOnly`."""
        raise AuditIsAppendOnly

    def bulk_update(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Raise `AuditIsAppendOnly`."""
        raise AuditIsAppendOnly

    def delete(self) -> NoReturn:
        """Raise `AuditIsAppendOnly`: `dead_letters.audit.prune` deletes what is kept no longer."""
        raise AuditIsAppendOnly

    def _raw_delete(self, using: str | None) -> NoReturn:
        raise AuditIsAppendOnly

    def bulk_create(self, objs: Any, **options: Any) -> list[AuditEntry]:  # type: ignore[override]
        """Add entries. Raises `AuditIsAppendOnly` when they were to replace others."""
        if options.get("update_conflicts"):
            raise AuditIsAppendOnly
        return super().bulk_create(objs, **options)


class AuditEntry(models.Model):
    """What one person did to one row, or saw of it."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(_("at"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, null=True, db_constraint=False, db_index=False,
        related_name="+", verbose_name=_("person"),
    )  # fmt: skip
    user_name = models.CharField(_("person"), max_length=200, blank=True)
    """What the person was called then; or what did it, where there was none."""
    address = models.CharField(_("address"), max_length=100, blank=True)
    """Where the request came from; "" when there was none."""
    verb = models.CharField(_("verb"), max_length=50)
    consumer = models.CharField(_("consumer"), max_length=200, blank=True)
    topic = models.CharField(_("topic"), max_length=249, blank=True)
    model = models.CharField(_("kind"), max_length=50)
    """What kind of row it was about, as Django calls its model: "deadletter"."""
    row = models.CharField(_("id"), max_length=100)
    """The row's id."""
    title = models.CharField(_("what"), max_length=300, blank=True)
    """What the row was called then, such as topic[partition]@offset."""
    reason = models.TextField(_("reason"), blank=True)
    details = models.JSONField(_("details"), default=dict)
    """More about it. Never anything of a payload."""
    keep_until = models.DateTimeField(null=True, editable=False)
    """When retention may delete it, as the settings said when it was written; None: never."""

    objects = AuditEntries.as_manager()

    class Meta:
        app_label = "lynx_kafka"
        verbose_name = _("audit entry")
        verbose_name_plural = _("audit")
        ordering = ("-id",)
        base_manager_name = "objects"
        default_permissions = ("view",)
        constraints = (AppendOnly(name="lynx_kafka_audit_stays"),)
        indexes = (
            models.Index(fields=["consumer", "-id"], name="lynx_kafka_audit_consumer"),
            models.Index(fields=["user_name", "-id"], name="lynx_kafka_audit_user"),
            models.Index(fields=["verb", "-id"], name="lynx_kafka_audit_verb"),
            models.Index(fields=["model", "row", "-id"], name="lynx_kafka_audit_row"),
            models.Index(
                fields=["keep_until"], condition=models.Q(keep_until__isnull=False), name="lynx_kafka_audit_keep"
            ),
        )

    def __str__(self) -> str:
        return f"{self.verb} {self.title}"

    def save(self, **options: Any) -> None:
        """Add the entry. Raises `AuditIsAppendOnly` when it is there already."""
        if not self._state.adding:
            raise AuditIsAppendOnly
        options["force_insert"] = True
        super().save(**options)

    def delete(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Raise `AuditIsAppendOnly`."""
        raise AuditIsAppendOnly
