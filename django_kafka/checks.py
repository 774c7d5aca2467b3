"""System checks: what `manage.py check` says about settings.KAFKA. docs/settings.md explains each id.

Nothing here opens a socket or starts a thread, but `check --deploy --database …`, which asks that database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from django.core import checks
from django.db import DatabaseError, connections
from django.utils.module_loading import import_string

from . import (
    agreements,
    conditions,
    conf,
    coroutines,
    deployment,
    envelopes,
    handlers,
    serializers,
    signatures,
    subscriptions,
    upcasters,
)
from .clients import properties, security
from .conf.secrets import is_secret
from .consuming import forwarding, guarantees
from .consuming.connections import POOL_HINT, SHORTAGE_HINT, ask, of_layout, pool_shortages, shortage
from .consuming.supervisor import layout
from .dead_letters import payloads, publishing
from .exceptions import ConfigurationError

KAFKA = "kafka"
"""The tag of all checks: `manage.py check --tag kafka`."""


@checks.register(KAFKA)
def check_settings(**_asked: Any) -> list[checks.CheckMessage]:
    """Report everything that is wrong in settings.KAFKA itself."""
    return [_message(each.id, each.message, each.hint) for each in conf.problems()]


@checks.register(KAFKA)
def check_databases(**_asked: Any) -> list[checks.CheckMessage]:
    """Report databases that DATABASES does not have."""
    whole = conf.reading().kafka
    named = [(f'KAFKA["consumers"]["{each.name}"]["database"]', each.database) for each in whole.consumers.values()]
    named.append(('KAFKA["dead_letters"]["database"]', whole.dead_letters.database))
    found = []
    for path, alias in named:
        if alias not in connections.settings:
            found.append(_message("E010", f"{path} is {alias!r}; DATABASES has: {', '.join(connections)}."))
        elif not connections.settings[alias].get("AUTOCOMMIT", True):
            sentence = f'{path} is {alias!r}, which has "AUTOCOMMIT": False: nothing written there is committed.'
            found.append(_message("E016", sentence, "Leave AUTOCOMMIT out, or name another database."))
    return found


@checks.register(KAFKA)
def check_pools(**_asked: Any) -> list[checks.CheckMessage]:
    """Warn of connection pools that are smaller than the threads of a worker, which would take turns waiting."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    return [_message("W008", sentence, POOL_HINT) for sentence in pool_shortages(_enabled())]


@checks.register(KAFKA)
def check_threads(**_asked: Any) -> list[checks.CheckMessage]:
    """Warn of more threads than there can be messages for."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    return [
        _message(
            "W050",
            f'KAFKA["consumers"]["{each.name}"] has concurrency {each.concurrency} and max_in_flight '
            f"{each.max_in_flight}: {each.concurrency - each.max_in_flight} threads never have a message.",
            "Raise max_in_flight, or lower concurrency.",
        )
        for each in _enabled()
        if each.concurrency > each.max_in_flight
    ]


@checks.register(checks.Tags.database, deploy=True)
def check_connection_limits(databases: Sequence[str] | None = None, **_asked: Any) -> list[checks.CheckMessage]:
    """Warn of a server with fewer connections than one `kafka_consume` may open. Asks only databases that are named."""
    if not databases or any(not problem.warning for problem in conf.problems()):
        return []
    found: list[checks.CheckMessage] = []
    for alias, needed in of_layout(layout(_enabled())).items():
        if alias not in databases:
            continue
        try:
            room = ask(alias)
        except DatabaseError as error:
            sentence = f"Database {alias!r} cannot be asked how many connections it has: {type(error).__name__}."
            found.append(_message("W052", sentence))
            continue
        if room is not None and (short := shortage(alias, needed, room)):
            found.append(_message("W051", short[:1].upper() + short[1:], SHORTAGE_HINT))
    return found


def _enabled() -> list[conf.Consumer]:
    return [each for each in conf.kafka().consumers.values() if each.enabled]


@checks.register(KAFKA)
def check_paths(**_asked: Any) -> list[checks.CheckMessage]:
    """Report dotted paths that lead nowhere, or to the wrong kind of thing."""
    return [message for place in _paths(conf.reading().kafka) for message in _resolve(*place)]


@checks.register(KAFKA)
def check_options(**_asked: Any) -> list[checks.CheckMessage]:
    """Report librdkafka's own options that it does not have, or does not take."""
    whole = conf.reading().kafka
    clients: tuple[tuple[str, str, Sequence[conf.Producer | conf.Consumer]], ...] = (
        ("producer", "producers", list(whole.producers.values())),
        ("consumer", "consumers", list(whole.consumers.values())),
    )
    found = [
        message
        for kind, key, named in clients
        for each in named
        for message in _option_messages(kind, f'KAFKA["{key}"]["{each.name}"]["options"]', each.options)
    ]
    for cluster in whole.clusters.values():
        found += _option_messages("client", f'{cluster.path}["connection"]["options"]', cluster.connection.options)
    return found


@checks.register(KAFKA)
def check_mechanisms(**_asked: Any) -> list[checks.CheckMessage]:
    """Report logins that the loaded librdkafka is built without."""
    found = []
    for cluster in conf.reading().kafka.clusters.values():
        sasl = cluster.security.sasl
        if sasl.enabled and (why := security.lacks(sasl.mechanism)):
            sentence = f'{cluster.path}["security"]["sasl"]["mechanism"] is {sasl.mechanism!r}; {why}'
            found.append(_message("E060", sentence, "docs/security.md tells how to build one that has it."))
    return found


@checks.register(KAFKA)
def check_handlers(**_asked: Any) -> list[checks.CheckMessage]:
    """Report handlers and topics that do not come together."""
    if any(not problem.warning for problem in conf.problems()):
        # What settings do not say cannot be compared with what is registered.
        return []
    sources = (
        handlers.problems(), coroutines.problems(), signatures.problems(), upcasters.problems(), conditions.problems(),
        agreements.problems(), publishing.problems(), publishing.doubled(), forwarding.problems(),
        guarantees.problems(), subscriptions.problems(), subscriptions.warnings(),
    )  # fmt: skip
    found = [_message(*problem) for problems in sources for problem in problems]
    for consumer in conf.kafka().consumers.values():
        found += _unfinished(consumer)
    return found


@checks.register(KAFKA)
def check_availability(**_asked: Any) -> list[checks.CheckMessage]:
    """Warn of settings whose behaviour this version lacks: starting what needs them is an error."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    whole = conf.kafka()
    clients: list[conf.Producer | conf.Consumer] = [*whole.producers.values(), *whole.consumers.values()]
    sentences = dict.fromkeys(sentence for each in clients if each.enabled for sentence in conf.unavailable(each))
    hint = "What needs it cannot be started with this version."
    return [_message("W004", sentence, hint) for sentence in sentences]


@checks.register(KAFKA)
def check_schemas(**_asked: Any) -> list[checks.CheckMessage]:
    """Report schemas that cannot be read, and classes of messages that cannot be imported. Asks no registry."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    return [_message("E017", sentence, "Mend the schema, or where it is.") for sentence in serializers.unusable()]


@checks.register(KAFKA)
def check_encryption(**_asked: Any) -> list[checks.CheckMessage]:
    """Report keys that are none, and that the extra is missing. What is kept elsewhere is looked at if it is there."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    return [
        _message("E018", sentence, "docs/envelopes.md tells how keys are made.")
        for sentence in envelopes.encryption.unusable()
    ]


@checks.register(KAFKA)
def check_storages(**_asked: Any) -> list[checks.CheckMessage]:
    """Report storages for large payloads that STORAGES does not have, or that cannot be made."""
    if any(not problem.warning for problem in conf.problems()):
        return []
    found = []
    for alias in payloads.storages():
        try:
            envelopes.claim_check.storage_of(alias)
        except ConfigurationError as error:
            sentence = f"KAFKA leaves large payloads in the storage {alias!r}: {error}"
            found.append(_message("E019", sentence, "Mend it there."))
    return found


@checks.register(KAFKA)
def check_neighbour(**_asked: Any) -> list[checks.CheckMessage]:
    """Report the other distribution whose package has our name."""
    try:
        neighbour = metadata.distribution("django-kafka")
    except metadata.PackageNotFoundError:
        return []
    sentence = f"django-kafka {neighbour.version} is installed too; its package is also called django_kafka."
    hint = "Uninstall both, then install django-lynx-kafka again: each has overwritten files of the other."
    return [_message("E012", sentence, hint)]


@checks.register(checks.Tags.security, KAFKA, deploy=True)
def check_deployment(**_asked: Any) -> list[checks.CheckMessage]:
    """Report what must not, or should not, go into production."""
    return [_message(*problem) for problem in deployment.problems()]


def _unfinished(consumer: conf.Consumer) -> Iterator[checks.CheckMessage]:
    """Tell what a consumer needs before it can be started."""
    path = f'KAFKA["consumers"]["{consumer.name}"]'
    if consumer.handler and not consumer.topics:
        sentence = f"{path} has a handler, but no topics: {consumer.handler!r} would never run."
        yield _message("E014", sentence, "Name its topics.")
    if not consumer.enabled:
        return
    handled = {registration.topic for registration in handlers.registrations(consumer.name)}
    handled |= {topic.name for topic in consumer.topics.values() if topic.imports}
    prefixed = conf.kafka().prefixed
    without = [
        topic for topic in handlers.topics(consumer.name)
        if handled.isdisjoint([topic, *subscriptions.ways(consumer.name, prefixed(topic))])
    ]  # fmt: skip
    without += [one.text for one in subscriptions.patterns(consumer.name) if one.text not in handled]
    way_out = "Name one in settings, or register one with @kafka_handler."
    if not handled and not consumer.handler:
        yield _message("W001", f"{path} has no handlers; it cannot be started.", way_out)
    elif without:
        sentence = f"{path} has no handler for {', '.join(without)}; every message there becomes a dead letter."
        yield _message("W002", sentence, way_out)
    if not consumer.group_id:
        sentence = f"{path} has no group_id, and neither has KAFKA; it cannot be started."
        yield _message("W003", sentence)


def _paths(whole: conf.Kafka) -> Iterator[tuple[str, str, str]]:
    """Yield each dotted path in settings with its place, and what it has to lead to."""
    for producer in whole.producers.values():
        place = f'KAFKA["producers"]["{producer.name}"]'
        yield from _named(producer, place, ("serializer", "key_serializer", "routing"))
        for name, override in producer.topics.items():
            yield from _named(override, f'{place}["topics"]["{name}"]', ("serializer", "key_serializer", "routing"))
    for consumer in whole.consumers.values():
        place = f'KAFKA["consumers"]["{consumer.name}"]'
        yield from _named(consumer, place, ("handler", "serializer", "key_serializer", "deduplicate"))
        yield from _retry_paths(consumer.retry, f'{place}["retry"]')
        for name, topic in consumer.topics.items():
            yield from _topic_paths(topic, f'{place}["topics"]["{name}"]')
    yield from _named(whole, "KAFKA", ("tenant",))
    for cluster in whole.clusters.values():
        yield from _named(cluster.security.sasl.oauth, f'{cluster.path}["security"]["sasl"]["oauth"]', ("function",))
    for category, paths in whole.error_categories.items():
        for path in paths:
            yield f'KAFKA["error_categories"]["{category}"]', path, "exception"


def _topic_paths(topic: conf.ConsumerTopic, place: str) -> Iterator[tuple[str, str, str]]:
    yield from _named(topic, place, ("handler", "serializer", "key_serializer"))
    for index, dispatch in enumerate(topic.dispatch):
        yield from _named(dispatch, f'{place}["dispatch"][{index}]', ("handler", "when"))
    if topic.retry:
        yield from _retry_paths(topic.retry, f'{place}["retry"]')


def _retry_paths(retry: conf.Retry, place: str) -> Iterator[tuple[str, str, str]]:
    yield from _named(retry, place, ("decide",))
    for key in ("retry_on", "give_up_on"):
        for path in getattr(retry, key):
            yield f'{place}["{key}"]', path, "exception"


def _named(found: object, place: str, keys: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for key in keys:
        path = getattr(found, key)
        # Words such as "json", and headers named in `deduplicate`, have no dot.
        if path and "." in path:
            yield f'{place}["{key}"]', path, "anything" if "serializer" in key else "callable"


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "anything": (lambda _found: True, ""),
    "callable": (callable, "something that can be called"),
    "exception": (lambda found: isinstance(found, type) and issubclass(found, BaseException), "an exception's class"),
}


def _resolve(place: str, path: str, kind: str) -> list[checks.CheckMessage]:
    try:
        found = import_string(path)
    except Exception as error:  # noqa: BLE001  # a module may fail in any way while it is imported
        sentence = f"{place} is {path!r}, which cannot be imported: {type(error).__name__}: {error}"
        return [_message("E011", sentence, "Mend the path, or the module.")]
    right, allowed = _KINDS[kind]
    if not right(found):
        return [_message("E011", f"{place} is {path!r}, which is of type {type(found).__name__}; allowed: {allowed}.")]
    return []


def _option_messages(kind: str, path: str, options: Mapping[str, Any]) -> list[checks.CheckMessage]:
    try:
        problems = properties.problems(kind, options) if options else []
    except ConfigurationError as error:
        return [_message("E015", f"{path} cannot be checked: {error}")]
    return [
        # librdkafka quotes the value that it refuses.
        _message("E015", f'{path}["{name}"]: {"its value is refused." if is_secret(name) else sentence}')
        for name, sentence in problems
    ]


def _message(check: str, sentence: str, hint: str = "") -> checks.CheckMessage:
    kind = checks.Warning if check.rpartition(".")[2].startswith("W") else checks.Error
    return kind(sentence, hint=hint or None, id=check if "." in check else f"django_kafka.{check}")
