"""Delete old payloads of claim checks: `python manage.py kafka_payloads prune --older-than 30d`."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ...dead_letters import payloads
from ...exceptions import ConfigurationError, StorageUnavailable
from ._selection import duration


class Command(BaseCommand):
    """Delete payloads that messages of Kafka referred to, and that no dead letter needs."""

    help = "Delete payloads that were left in a storage long ago, but for those that a dead letter refers to."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="prune")
        prune = verbs.add_parser("prune", help="delete old payloads")
        prune.add_argument(
            "--older-than",
            type=duration,
            required=True,
            metavar="AGE",
            help="such as 30d: longer than topics keep their messages",
        )
        prune.add_argument("--storage", metavar="ALIAS", help="only in this one; default: all that settings name")
        prune.add_argument("--dry-run", action="store_true", help="only say how many would be deleted")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        """Delete them."""
        try:
            known = payloads.storages()
            aliases = known if options["storage"] is None else [options["storage"]]
            if unknown := [alias for alias in aliases if alias not in known]:
                raise CommandError(f"No claim check of settings leaves payloads in {unknown[0]!r}.")
            before = timezone.now() - timedelta(seconds=options["older_than"])
            for alias in aliases:
                self._prune(alias, before, dry_run=options["dry_run"])
        except (ConfigurationError, StorageUnavailable) as error:
            raise CommandError(str(error)) from error
        if not aliases:
            self.stdout.write("Settings name no storage for payloads.")

    def _prune(self, alias: str, before: Any, *, dry_run: bool) -> None:
        done = payloads.prune(alias, before, dry_run=dry_run)
        word = "would be deleted" if dry_run else "deleted"
        self.stdout.write(f"{alias}: {done.deleted} payloads {word}; {done.needed} are kept for dead letters.")
