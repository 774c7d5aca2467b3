"""One asking client for each cluster in a process, however many ask: monitoring, health, the admin, commands.

It is made when somebody first asks, and given up at the end of the process and when settings change. Who holds one may
go on with it; the last to let it go closes it. Consumers whose own options lead to brokers in another way share one
apart.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.signals import setting_changed

from .. import conf
from . import properties
from .asking import AskingClient


@dataclass(frozen=True, slots=True)
class _Shared:
    cluster: conf.Cluster
    options: dict[str, Any]
    brokers: str
    """Where they were when it was made: the embedded cluster moves to another port when it is started anew."""
    client: AskingClient


class _Clients:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: list[_Shared] = []


_clients = _Clients()


def asking_client(cluster: conf.Cluster, options: Mapping[str, Any] | None = None) -> AskingClient:
    """Return the client that this process asks `cluster` with; `options` are librdkafka's, over the cluster's own.

    Opens no connection: that does the first question. Raises `ConfigurationError` for what no client can be made of.
    """
    chosen = properties.for_cluster(cluster).with_(options or {})
    own, brokers = dict(options or {}), str(chosen["bootstrap.servers"])
    with _clients.lock:
        for one in list(_clients.made):
            if one.cluster == cluster and one.options == own:
                if one.brokers == brokers:
                    return one.client
                _clients.made.remove(one)
        made = _Shared(cluster, own, brokers, AskingClient(chosen))
        _clients.made.append(made)
    return made.client


def close_all() -> None:
    """Give up all of them; the next question makes a new one."""
    with _clients.lock:
        _clients.made = []


def _forget_after_fork() -> None:
    # The lock may have been held by a thread that does not exist here. The clients themselves see to their own.
    _clients.__init__()  # type: ignore[misc]


def _forget_settings(*, setting: str, **_event: Any) -> None:
    if setting == "KAFKA":
        close_all()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_all)
setting_changed.connect(_forget_settings, dispatch_uid="django_kafka.clients.sharing")
