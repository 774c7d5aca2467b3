"""Moving a group to other offsets: what would change, and the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from .. import logs
from ..clients.groups import GroupInUse
from ..exceptions import ConfigurationError
from ..monitoring.positions import Place
from .standing import Books, Stand, Standing

log = logs.of(__name__)


@dataclass(frozen=True, slots=True)
class Earliest:
    """To the first message that is there."""


@dataclass(frozen=True, slots=True)
class Latest:
    """Past the last message that is there."""


@dataclass(frozen=True, slots=True)
class Offset:
    """To this offset."""

    number: int


@dataclass(frozen=True, slots=True)
class Since:
    """To the first message that was sent then or later."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Shift:
    """So many messages on, or back when negative, from what is committed."""

    by: int


@dataclass(frozen=True, slots=True)
class Offsets:
    """Each partition to an offset of its own; those that are not named stay."""

    numbers: Mapping[Place, int]


Target = Earliest | Latest | Offset | Offsets | Since | Shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What becomes of one partition."""

    standing: Standing
    """Where the group stands in it."""
    to: int
    """The offset that it goes to."""
    note: str = ""
    """What is to be known about it."""
    at: datetime | None = None
    """The time of the message there, if there is one."""

    @property
    def changes(self) -> bool:
        """Whether anything does."""
        # A claim may be of an earlier topic of this name, whatever its offset is: moving it settles that too.
        return self.standing.claimed is not None or self.to != self.standing.committed

    @property
    def again(self) -> int:
        """How many messages are read again."""
        return max(0, self._from - self.to)

    @property
    def skipped(self) -> int:
        """How many messages are never read."""
        return max(0, self.to - self._from)

    @property
    def _from(self) -> int:
        start = self.standing.reads_from
        return self.to if start is None else start


def plan(books: Books, stand: Stand, target: Target) -> list[Move]:
    """Return what would become of each partition; changes nothing.

    Raises `ConfigurationError` for an offset that a partition does not have, and where there is none to shift.
    """
    times = books.since(target.at, stand) if isinstance(target, Since) else {}
    moves: list[Move] = []
    wrong: list[str] = []
    for one in stand.partitions:
        if isinstance(target, Offsets) and one.place not in target.numbers:
            continue
        try:
            moves.append(_move(one, target, times))
        except ConfigurationError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    sent = books.times({move.standing.place: move.to for move in moves if move.to < move.standing.log.high})
    return [replace(move, at=sent.get(move.standing.place)) for move in moves]


def _move(one: Standing, target: Target, times: Mapping[Place, int | None]) -> Move:
    where, log_ = f"{one.topic}[{one.partition}]", one.log
    match target:
        case Earliest():
            return Move(standing=one, to=log_.low)
        case Latest():
            return Move(standing=one, to=log_.high)
        case Offsets(numbers=numbers):
            return _move(one, Offset(numbers[one.place]), times)
        case Offset(number=number):
            if not log_.low <= number <= log_.high:
                raise ConfigurationError(f"{where} has offsets from {log_.low} to {log_.high} (its end), not {number}.")
            return Move(standing=one, to=number)
        case Since():
            return _since(one, times[one.place])
        case Shift(by=by):
            if one.position is None:
                raise ConfigurationError(f"{where} has no committed offset to shift from; say where to: --to-earliest.")
            return _at(one, one.position + by)


def _at(one: Standing, wanted: int) -> Move:
    to = min(max(wanted, one.log.low), one.log.high)
    side = "begins" if to == one.log.low else "ends"
    note = "" if to == wanted else f"{one.topic}[{one.partition}] {side} at {to}: it goes there, not to {wanted}."
    return Move(standing=one, to=to, note=note)


def _since(one: Standing, found: int | None) -> Move:
    where = f"{one.topic}[{one.partition}]"
    if found is None or found > one.log.high:
        return Move(standing=one, to=one.log.high, note=f"{where} has no message since then: it goes to its end.")
    if found <= one.log.low and one.log.low > 0:
        note = f"{where} begins with a message of that time or later; what was before it, and is deleted, is not there."
        return Move(standing=one, to=one.log.low, note=note)
    return Move(standing=one, to=found)


def refuse_while_used(stand: Stand) -> None:
    """Raise `GroupInUse` while anybody is in the group, and name them."""
    if stand.unheard:
        raise ConfigurationError(f"{stand.unheard} Whether the group has workers must be known before it is moved.")
    if stand.users:
        raise GroupInUse(
            f"Group {stand.group_id!r} is in use; stop these first, and try again when they are gone: "
            f"{', '.join(stand.users)}."
        )


def carry_out(books: Books, moves: Sequence[Move], *, user: str) -> Stand:
    """Move the group, read back where it stands now, and return that; `user` is who wants it, for the log.

    Raises `GroupInUse` while the group has members, and `ConfigurationError` when it does not stand there afterwards.
    """
    changed = [move for move in moves if move.changes]
    books.commit({move.standing.place: move.to for move in changed})
    log.info(
        "consumer=%s group=%s user=%s offsets reset: %s",
        books.consumer.name, books.group_id, user, ", ".join(map(_shown, changed)),
    )  # fmt: skip
    stand = books.stand(sorted({move.standing.topic for move in moves}))
    now = {one.place: one for one in stand.partitions}
    if wrong := [move for move in changed if not now[move.standing.place].stands_at(move.to)]:
        found = ", ".join(f"{_shown(move)}, but it is at {now[move.standing.place].position}" for move in wrong)
        raise ConfigurationError(f"Somebody else has moved group {books.group_id!r} meanwhile: {found}.")
    return stand


def _shown(move: Move) -> str:
    one = move.standing
    return f"{one.topic}[{one.partition}] {'nothing' if one.position is None else one.position} -> {move.to}"
