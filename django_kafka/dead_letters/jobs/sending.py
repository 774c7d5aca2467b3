"""A piece of a job whose letters go to their topics: all are sent, then all acknowledgements are waited for."""

from __future__ import annotations

from collections.abc import Sequence

from ... import retries
from ...deliveries import Delivery
from ...exceptions import ReplayRefused
from ...models import Replay
from ...producer import Route
from ...producing import send_now
from .. import importing
from ..executing import obstacle
from ..failures import Failure
from ..outcomes import verdict
from ..targets import acknowledged, place_of, record_of, route_of
from .pieces import Key
from .settling import Outcomes


class Sending:
    """Sends letters to their topics, and gathers what became of them."""

    def __init__(self) -> None:
        self.known = Outcomes()
        """What became of them."""
        self.outage: Exception | None = None
        """What is down; letters that are not in `known` met it, and wait."""
        self._routes: dict[tuple[str, str], Route | ReplayRefused] = {}
        self._failed: set[Key] = set()
        self._waiting: set[Key] = set()

    def run(self, replays: Sequence[Replay]) -> None:
        """Send these, in their order."""
        sent: list[tuple[Replay, Delivery]] = []
        for replay in replays:
            key = Key.of(replay.letter)
            if (found := obstacle(replay)) is not None:
                self.known.skipped.append((replay, found[1]))
            elif key is None or key not in self._failed:
                try:
                    sent.append((replay, self._send(replay)))
                except Exception as error:  # noqa: BLE001  # it is noted, whatever it is
                    if not self._note(replay, error):
                        break
        for replay, delivery in sent:
            try:
                place = place_of(acknowledged(delivery))
            except Exception as error:  # noqa: BLE001  # as above
                self._note(replay, error)
                continue
            # It overtook one of its key that is sent again: so is this one, behind that.
            if (key := Key.of(replay.letter)) is None or key not in self._waiting:
                self.known.succeeded.append((replay, place))

    def _send(self, replay: Replay) -> Delivery:
        letter = replay.letter
        place = letter.cluster, replay.to_topic or importing.home(letter)
        if (route := self._routes.get(place)) is None:
            try:
                route = route_of(replay)
            except ReplayRefused as refused:
                # Brokers need not be asked for each of them.
                route = refused
            self._routes[place] = route
        if isinstance(route, ReplayRefused):
            raise route
        delivery = send_now(route, record_of(replay))
        if delivery.error is not None:
            # The client refused it: later ones of its key need not even be sent.
            raise delivery.error
        return delivery

    def _note(self, replay: Replay, error: Exception) -> bool:
        """Note that a record could not be sent, and tell whether that is the record's own fault."""
        if retries.stops_worker(error):
            raise error
        if isinstance(error, ReplayRefused):
            self.known.skipped.append((replay, str(error)))
            return True
        key = Key.of(replay.letter)
        match verdict(error, replay, None):
            case retries.DeadLetter(category):
                blamed = retries.blamed(error)
                failure = Failure.of(blamed, category=category, handler=replay.letter.handler)
                self.known.failed.append((replay, failure, f"{failure.error_type}: {failure.error_message}"))
                if key is not None:
                    self._failed.add(key)
                return True
        self.outage = error
        if key is not None:
            self._waiting.add(key)
        return False
