"""Promise 12: what is meant for the process is no retry and no dead letter; the message is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.project import Project
from tests.journeys.steps import numbered, wait_committed


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "MemoryError"])
def test_the_worker_ends_with_an_error_and_the_next_one_reads_the_message_again(
    project: Project, topic: Callable[..., str], tmp_path: Path, error: str
) -> None:
    name = project.create_topic(topic())
    mended = tmp_path / "mended"
    project.consumer("journey", name, "tests.app.scenes.gated")
    records = numbered(20)
    records[5]["value"] |= {"raise": error, "mended": str(mended)}
    project.produce(records, name)

    worker = project.manage("kafka_consume")
    assert worker.finish() == 1
    assert f"Stopped by {error}: asked for by {name}[0]@5" in worker.output()
    assert "Traceback" not in worker.output()
    assert project.letters() == []
    assert [effect.offset for effect in project.effects(name)] == list(range(5))
    assert project.committed(name) == {0: 5}
    mended.touch()
    project.manage("kafka_consume")

    wait_committed(project, name)
    project.assert_ledger(name, settled=True, once=True)
