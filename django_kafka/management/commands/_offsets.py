"""What `kafka_offsets` says, to people and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...offsets.resetting import Move
from ...offsets.standing import Stand, Standing
from ._moments import ago

COLUMNS = ("topic", "partition", "committed", "log", "behind", "next message", "held by")
MOVE_COLUMNS = ("topic", "partition", "from", "to", "read again", "skipped")


def headings(stand: Stand) -> list[str]:
    """Return what is to be said of a group before its partitions."""
    members = len(stand.group.members)
    state = {
        "none": "which does not exist",
        "unknown": "whose state this cluster does not tell",
    }.get(stand.group.state, f"{stand.group.state}, {members or 'no'} member{'' if members == 1 else 's'}")
    protocol = f", protocol {stand.group.protocol}" if stand.group.protocol else ""
    said = [f"{stand.consumer.name}: group {stand.group_id} on cluster {stand.consumer.cluster}, {state}{protocol}."]
    if stand.partitions and not stand.begun:
        said.append(f'It has committed nothing; it begins as "auto_offset_reset" says: {stand.reset}.')
    return said


def remarks(stand: Stand) -> list[str]:
    """Return what does not fit into the table."""
    said = [f"The cluster has no topic {name}." for name in stand.missing]
    for one in stand.partitions:
        if one.gone and one.claimed is not None:
            said.append(
                f"{one.topic}[{one.partition}]: its claim is at {one.claimed}, which is not in its log; nothing of it "
                "is handled until somebody says where to go on."
            )
        elif one.gone:
            said.append(
                f"{one.topic}[{one.partition}]: offset {one.committed} is not in its log any more; a worker begins as "
                f'"auto_offset_reset" says: {stand.reset}.'
            )
    if idle := [member for member in stand.group.members if not member.places]:
        said.append(f"Without a partition: {', '.join(map(str, idle))}.")
    if stand.unheard:
        said.append(stand.unheard)
    return said


def row(one: Standing) -> tuple[str, ...]:
    """Return the row of a partition."""
    return (
        one.topic,
        str(one.partition),
        _committed(one),
        f"{one.log.low} to {one.log.high}",
        "?" if one.lag is None else f"{one.lag:,}",
        ago(one.next_at) if one.next_at else "-",
        _holder(one),
    )


def _committed(one: Standing) -> str:
    committed = "nothing" if one.committed is None else str(one.committed)
    return committed if one.claimed is None else f"{committed} (claim {one.claimed})"


def _holder(one: Standing) -> str:
    if one.worker is not None:
        return f"{one.worker.host}:{one.worker.pid}"
    return "-" if one.member is None else str(one.member)


def move_row(move: Move) -> tuple[str, ...]:
    """Return the row of a partition that moves."""
    one = move.standing
    start = "nothing" if one.position is None else str(one.position)
    end = " (end)" if move.to == one.log.high else ""
    return (
        one.topic,
        str(one.partition),
        f"{start} (of {ago(one.next_at)})" if one.next_at else start,
        f"{move.to} (of {ago(move.at)})" if move.at else f"{move.to}{end}",
        f"{move.again:,}" if move.again else "-",
        f"{move.skipped:,}" if move.skipped else "-",
    )


def summary(moves: Sequence[Move], verb: str) -> str:
    """Return what moves, in one sentence without its end."""
    changed = [move for move in moves if move.changes]
    count = "1 partition" if len(changed) == 1 else f"{len(changed)} partitions"
    again, skipped = sum(move.again for move in changed), sum(move.skipped for move in changed)
    return f"{verb} {count}: {_messages(again)} read again, {_messages(skipped)} skipped"


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


def stand_as_dict(stand: Stand) -> dict[str, Any]:
    """Return where a group stands, for programs."""
    return {
        **_identity(stand),
        "state": stand.group.state,
        "protocol": stand.group.protocol or None,
        "members": [
            {"id": one.id, "client_id": one.client_id, "host": one.host, "partitions": len(one.places)}
            for one in stand.group.members
        ],
        "workers": [{"host": one.host, "pid": one.pid} for one in stand.workers],
        "missing_topics": list(stand.missing),
        "partitions": [_partition_as_dict(one) for one in stand.partitions],
    }


def _identity(stand: Stand) -> dict[str, Any]:
    return {"consumer": stand.consumer.name, "cluster": stand.consumer.cluster, "group": stand.group_id}


def _partition_as_dict(one: Standing) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "partition": one.partition,
        "retry": one.retry,
        "committed": one.committed,
        "claimed": one.claimed,
        "low": one.log.low,
        "high": one.log.high,
        "lag": one.lag,
        "gone": one.gone,
        "next_at": one.next_at.isoformat() if one.next_at else None,
        "member": one.member.id if one.member else None,
        "worker": {"host": one.worker.host, "pid": one.worker.pid} if one.worker else None,
    }


def moves_as_dict(stand: Stand, moves: Sequence[Move], *, executed: bool) -> dict[str, Any]:
    """Return what moves, or has moved, for programs; `stand` is where the group stands now."""
    now = {one.place: one.position for one in stand.partitions}
    return {
        **_identity(stand),
        "executed": executed,
        "to_be_stopped": stand.users,
        "moves": [
            {
                "topic": move.standing.topic,
                "partition": move.standing.partition,
                "from": move.standing.position,
                "to": move.to,
                "now": now[move.standing.place],
                "read_again": move.again,
                "skipped": move.skipped,
                "at": move.at.isoformat() if move.at else None,
                "note": move.note,
            }
            for move in moves
        ],
    }
