"""A table whose rows the database itself refuses to alter, whoever asks."""

from __future__ import annotations

from typing import Any

from django.db.backends.ddl_references import Statement, Table
from django.db.models import BaseConstraint

_SENTENCE = "Rows of this table are added, and never altered or deleted before their time is over."
_CREATE = {
    "postgresql": f"""
CREATE OR REPLACE FUNCTION %(name)s() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.keep_until IS NOT NULL AND OLD.keep_until < now() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '{_SENTENCE}' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER %(name)s BEFORE UPDATE OR DELETE ON %(table)s FOR EACH ROW EXECUTE FUNCTION %(name)s()""",
    # No trigger on DELETE: Django's test cases empty all tables with it.
    "sqlite": f"CREATE TRIGGER %(name)s BEFORE UPDATE ON %(table)s BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END",
}
_DROP = {
    "postgresql": "DROP TRIGGER %(name)s ON %(table)s; DROP FUNCTION %(name)s()",
    "sqlite": "DROP TRIGGER %(name)s",
}


class AppendOnly(BaseConstraint):
    """Refuses UPDATE, and on PostgreSQL DELETE of a row whose `keep_until` is not over; other databases do not."""

    def constraint_sql(self, model: Any, schema_editor: Any) -> str:
        """Have the trigger made when the table is there. Nothing of it stands in the table itself."""
        if (statement := self.create_sql(model, schema_editor)) is not None:
            schema_editor.deferred_sql.append(statement)
        return ""

    def create_sql(self, model: Any, schema_editor: Any) -> Statement | None:  # type: ignore[override]
        """Return what makes the trigger."""
        return self._statement(_CREATE, model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Statement | None:  # type: ignore[override]
        """Return what takes the trigger away."""
        return self._statement(_DROP, model, schema_editor)

    def validate(self, *_arguments: Any, **_options: Any) -> None:
        """Do nothing: what a row says is not what this is about."""

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same constraint."""
        return isinstance(other, AppendOnly) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def _statement(self, templates: dict[str, str], model: Any, editor: Any) -> Statement | None:
        template = templates.get(editor.connection.vendor)
        if template is None:
            return None
        table = Table(model._meta.db_table, editor.quote_name)
        return Statement(template, table=table, name=editor.quote_name(self.name))
