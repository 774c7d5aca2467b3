"""A coordinator of groups that is away for longer than it is waited for, and comes back: no process ends of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sending import ROOT

WITHOUT_A_COORDINATOR = """
import sys
import django
from django.conf import settings
from django_kafka.clients.embedded import Cluster

cluster = Cluster(brokers=2).start()
cluster.create_topic("flights", 1)
settings.configure(
    KAFKA={
        "brokers": cluster.bootstrap_servers.split(","),
        "connection": {"timeout": "1s"},
        "consumers": {"ops": {"group_id": "ops"}},
    },
    INSTALLED_APPS=["django_kafka"],
)
django.setup()

from django_kafka import conf
from django_kafka.clients.asking import Unreachable
from django_kafka.clients.groups import GroupAdmin
from django_kafka.clients.inspecting import Inspector


def committed(group):
    GroupAdmin(conf.consumer("ops"), group, 1.0).committed([("flights", 0)])


def described(group):
    (found,) = Inspector(conf.cluster()).groups([group], 1.0).values()
    if isinstance(found, Unreachable):
        raise found


ask = {"committed": committed, "described": described}[sys.argv[1]]
# From now on all groups that the second broker coordinates have no coordinator.
ask("ops")
cluster.broker_down(2)
for number in range(50):
    group = f"group {number}"
    try:
        ask(group)
    except Unreachable as error:
        # A question that is on its way when the connection breaks fails at once, and is none that was given up.
        if " within " in str(error):
            print("away:", error)
            break
cluster.broker_up(2)
answers = 0
while answers < 3:
    try:
        ask(group)
    except Unreachable:
        continue
    answers += 1
print("answered")
cluster.stop()
"""


@pytest.mark.parametrize("question", ["committed", "described"])
def test_a_process_that_gave_up_a_coordinator_lives_on_when_it_comes_back(question: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-c", WITHOUT_A_COORDINATOR, question]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    away, last = done.stdout.splitlines()
    assert (away.split()[0], last) == ("away:", "answered")
    assert "within 1" in away
