"""Control as a worker process sees it: every second it looks at what is wanted of its consumers, takes it, and answers.

The thread of heartbeats does, so that polling costs nothing. What touches a client is handed to the poller that has the
partition (`controlling`). Whoever takes a request compares and sets its state: of two that find it one has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from .. import claims, conf, logs
from ..models import Control, Pause, Worker, WorkerPartition
from ..models.controls import EVERY
from ..monitoring import heartbeats
from .controlling import Answer, Seek, Wishes
from .lane import Place

log = logs.of(__name__)


class Controlled(Protocol):
    """A worker, as this sees it."""

    consumer: conf.Consumer
    group_id: str
    wishes: Wishes

    def owns(self, place: Place) -> bool:
        """Tell whether it has a partition."""

    def stop(self) -> None:
        """Ask it to finish what runs, commit and leave its group."""

    def close_circuit(self, episode: int) -> bool:
        """Close its circuit, if this is the episode that it is in; tell whether it was."""

    @property
    def alive(self) -> bool:
        """Whether it still polls."""


@dataclass(frozen=True, slots=True)
class _Mine:
    id: str
    worker: Controlled


class Controls:
    """What is wanted of the workers of this process."""

    def __init__(
        self,
        workers: Sequence[Controlled],
        ids: Sequence[str],
        *,
        beaten: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        """`ids` are those of their rows; `beaten` tells whether they are there, and `wake` has them written at once."""
        self._beaten = beaten
        self._mine = [_Mine(pk, worker) for pk, worker in zip(ids, workers, strict=True)]
        self._database = conf.kafka().dead_letters.database
        self._names = sorted({one.worker.consumer.name for one in self._mine})
        self._handed: dict[int, _Mine] = {}
        """Whom seeks were handed to that have no answer yet."""
        for one in self._mine:
            one.worker.wishes.wake = wake

    def look(self) -> None:
        """Read what is wanted, begin it, and write down what became of it."""
        try:
            # First: what is answered must not be found waiting, and be begun once more.
            for one in self._mine:
                self._answer(one)
            pauses = list(Pause.objects.using(self._database).filter(consumer__in=self._names))
            waiting = list(self._controls().filter(state__in=Control.OUTSTANDING, consumer__in=self._names))
        except Exception:
            for one in self._mine:
                one.worker.wishes.go_on_without()
            raise
        for one in self._mine:
            self._pause(one, pauses)
        if waiting and self._beaten():
            self._go_through(waiting)

    def _go_through(self, waiting: Sequence[Control]) -> None:
        over = self._controls().filter(pk__in=[one.pk for one in waiting], expires_at__lt=Now())
        late = set(over.values_list("pk", flat=True))
        for control in sorted(waiting, key=lambda one: one.pk):
            if control.state == Control.State.REQUESTED and control.pk in late:
                continue
            for one in self._mine:
                if self._concerns(control, one):
                    self._tend(control, one, late=control.pk in late)
        if late:
            expire(self._database)

    def _controls(self) -> QuerySet[Control]:
        return Control.objects.using(self._database)

    def _pause(self, mine: _Mine, pauses: Sequence[Pause]) -> None:
        whole, places = "", {}
        for pause in pauses:
            if not _is_of(pause, mine.worker):
                continue
            if pause.topic:
                places[pause.topic, pause.partition] = pause.sentence
            else:
                whole = pause.sentence
        mine.worker.wishes.pause(whole, places)

    def _concerns(self, control: Control, mine: _Mine) -> bool:
        if not _is_of(control, mine.worker):
            return False
        if control.worker:
            return control.worker == mine.id
        return control.verb != Control.Verb.SEEK or mine.worker.owns((control.topic, control.partition))

    def _tend(self, control: Control, mine: _Mine, *, late: bool) -> None:
        if not self._take(control, mine):
            return
        match control.verb:
            case Control.Verb.PAUSE | Control.Verb.RESUME:
                self._look_whether_all_have(control, mine, late=late)
            case Control.Verb.SEEK:
                if control.pk not in self._handed:
                    self._handed[control.pk] = mine
                    place = control.topic, control.partition
                    mine.worker.wishes.seeks.append(Seek(control=control.pk, place=place, to=control.number or 0))
            case Control.Verb.CLOSE_BREAKER:
                closed = mine.worker.close_circuit(control.number or 0)
                said = "It is closed." if closed else "It had closed, or opened once more, before."
                self._finish(control.pk, mine, Control.State.DONE if closed else Control.State.FAILED, said)
            case Control.Verb.STOP:
                mine.worker.stop()
                if not mine.worker.alive:
                    self._finish(control.pk, mine, Control.State.DONE, "It has finished what ran, and left its group.")

    def _take(self, control: Control, mine: _Mine) -> bool:
        """Tell whether a request is this worker's: it was, nobody has it, or whoever took it is gone."""
        if control.state == Control.State.ACCEPTED:
            if control.taken_by == mine.id:
                return True
            workers = Worker.objects.using(self._database).filter(pk=control.taken_by)
            if heartbeats.living(workers).exists():
                return False
        free = self._controls().filter(pk=control.pk, state=control.state, taken_by=control.taken_by)
        taken = free.update(
            state=Control.State.ACCEPTED,
            taken_by=mine.id,
            taken_by_name=_named(self._database, mine.id),
            accepted_at=Now(),
        )
        if taken:
            log.info("control=%s %s accepted", control.pk, control)
        return bool(taken)

    def _look_whether_all_have(self, control: Control, mine: _Mine, *, late: bool) -> None:
        """Be done with a pause, or its end, when all workers of the group say that they have it.

        When it is `late`, what is left of it is waited for no more: workers obey what is paused, not the request.
        """
        wanted = control.verb == Control.Verb.PAUSE
        of_group = {"cluster": control.cluster, "group_id": control.group_id, "consumer": control.consumer}
        pauses = set(Pause.objects.using(self._database).filter(**of_group).values_list("topic", "partition"))
        place = control.topic, control.partition
        if (bool(pauses & {("", EVERY), place})) != wanted:
            said = "Somebody resumed it meanwhile." if wanted else "Somebody paused it meanwhile."
            self._finish(control.pk, mine, Control.State.EXPIRED, said)
            return
        group = Worker.objects.using(self._database).filter(**of_group)
        workers = list(heartbeats.living(group).values_list("pk", "seen_at"))
        if not late and not all(seen_at > control.requested_at for _pk, seen_at in workers):
            # Their partitions stand there as they were before it was wanted.
            return
        rows = WorkerPartition.objects.using(self._database).filter(worker__in=[pk for pk, _seen_at in workers])
        if control.topic:
            rows = rows.filter(topic=control.topic, partition=control.partition)
        found = list(rows.values_list("topic", "partition", "paused"))
        # Of a consumer that goes on, what somebody has paused since then stays.
        states = [paused for topic, number, paused in found if wanted or (topic, number) not in pauses]
        if ended := _ended(wanted, states, len(found) - len(states), late=late, one=bool(control.topic)):
            self._finish(control.pk, mine, *ended)

    def _answer(self, mine: _Mine) -> None:
        """Write down what became of seeks. What cannot be written is kept."""
        answers = mine.worker.wishes.answers
        while answers:
            answer = answers[0]
            match answer.kind:
                case "left":
                    self._controls().filter(
                        pk=answer.seek.control, state=Control.State.ACCEPTED, taken_by=mine.id
                    ).update(state=Control.State.REQUESTED, taken_by="", taken_by_name="")
                case "done":
                    self._finish(answer.seek.control, mine, Control.State.DONE, _sought(answer), although_expired=True)
                case "out":
                    self._move_claim(answer, mine)
            if answer.kind != "out":
                self._handed.pop(answer.seek.control, None)
            answers.popleft()

    def _move_claim(self, answer: Answer, mine: _Mine) -> None:
        """Move the claim of a partition, and be done with the seek: both, or neither where it was given up."""
        worker, seek = mine.worker, answer.seek
        with transaction.atomic(using=self._database):
            moved = self._finish(seek.control, mine, Control.State.DONE, _sought(answer))
            if moved:
                claims.reset(worker.consumer, worker.group_id, seek.place, seek.to)
            else:
                # Nobody else is done with it: this is the second time, after a COMMIT that was not answered.
                done = self._controls().filter(pk=seek.control, state=Control.State.DONE, taken_by=mine.id)
                moved = done.exists()
        self._handed.pop(seek.control, None)
        (worker.wishes.moved if moved else worker.wishes.given_up).append(seek)

    def _finish(
        self, pk: int, mine: _Mine, state: Control.State, result: str, *, although_expired: bool = False
    ) -> bool:
        # What the group of a partition has is true, also when the worker was taken for dead meanwhile.
        states = (Control.State.ACCEPTED, Control.State.EXPIRED) if although_expired else (Control.State.ACCEPTED,)
        open_ = self._controls().filter(pk=pk, state__in=states, taken_by=mine.id)
        done = bool(open_.update(state=state, finished_at=Now(), result=result))
        if done:
            log.info("control=%s %s: %s", pk, state, result)
        return done


def _is_of(row: Pause | Control, worker: Controlled) -> bool:
    mine = worker.consumer.cluster, worker.consumer.name, worker.group_id
    return (row.cluster, row.consumer, row.group_id) == mine


def _ended(
    wanted: bool, states: Sequence[bool], stay: int, *, late: bool, one: bool
) -> tuple[Control.State, str] | None:
    """Return how a pause (or its end) came out, of partitions that are `states`; None while it is waited for.

    `stay`: how many are paused by somebody else; `one`: whether it is about one partition.
    """
    have, all_ = sum(state == wanted for state in states), len(states)
    stays = (
        f" {_counted(stay)} {'stays' if stay == 1 else 'stay'} paused: somebody paused it meanwhile." if stay else ""
    )
    if states and have == all_:
        said = f"{_counted(all_)} paused; what ran is finished." if wanted else f"{_counted(all_)} going on.{stays}"
        return Control.State.DONE, said
    if stay and not states:
        return Control.State.EXPIRED, "Somebody paused it meanwhile."
    if not late:
        return None
    if not states:
        what = "the partition" if one else "a partition"
        return Control.State.EXPIRED, f"No worker had {what} in time; whoever gets it obeys."
    did, when = ("paused", " when what runs is finished") if wanted else ("going on", "")
    return Control.State.EXPIRED, f"{have} of {_counted(all_)} {did} in time; the others follow{when}.{stays}"


def _counted(count: int) -> str:
    return "1 partition" if count == 1 else f"{count} partitions"


def _named(database: str, pk: str) -> str:
    row = Worker.objects.using(database).filter(pk=pk).first()
    return "" if row is None else row.address[:300]


def _sought(answer: Answer) -> str:
    start, to = answer.start, answer.seek.to
    if start is None:
        return f"It goes on at {to}."
    if start == to:
        return f"It goes on at {to}, where it was."
    count = abs(start - to)
    what = "read again" if to < start else "skipped"
    return f"It goes on at {to}, and was at {start}: {count} message{'s' * (count != 1)} {what}."


def expire(database: str) -> int:
    """Give up requests that nobody took in time, or whose worker is gone; return how many."""
    late = Control.objects.using(database).filter(expires_at__lt=Now())
    nobody = late.filter(state=Control.State.REQUESTED)
    stays = Q(verb=Control.Verb.PAUSE) | Q(verb=Control.Verb.RESUME)
    count = nobody.filter(stays).update(
        state=Control.State.EXPIRED, finished_at=Now(),
        result="No worker of the consumer answered in time; whoever starts next obeys it.",
    )  # fmt: skip
    count += nobody.exclude(stays).update(
        state=Control.State.EXPIRED, finished_at=Now(),
        result="Nobody took it in time: no worker that has it answered. Nothing was done.",
    )  # fmt: skip
    living = heartbeats.living(Worker.objects.using(database)).values("pk")
    gone = late.filter(state=Control.State.ACCEPTED).exclude(taken_by__in=living)
    return count + gone.filter(worker="").update(
        state=Control.State.EXPIRED, finished_at=Now(),
        result="The worker that took it is gone, and nobody took it over in time.",
    ) + gone.exclude(worker="").update(
        state=Control.State.EXPIRED, finished_at=Now(), result="The worker that took it is gone.",
    )  # fmt: skip
