"""Reading consumers from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from . import claims, encryption, events
from .blocks import CONTRADICTION, MISSING, WRONG_VALUE, Block
from .librdkafka import CLASSIC_ONLY, CLUSTER_SAME, CONSUMER_SAME
from .options import advice, merge_options, read_options, refuse_reserved, rename
from .patterns import is_pattern
from .producers import SERIALIZER
from .registries import READING, options_rule, schema
from .schema import CircuitBreaker, Consumer, ConsumerTopic, Dispatch, Place, Retry
from .values import (
    Rule,
    Wrong,
    choice,
    dotted_path,
    duration,
    flag,
    label,
    listed,
    number,
    optional,
    size,
    subscription,
    text,
    topic,
    whole,
)

LONGEST_WAIT = 7 * 86400.0
"""Seconds between two attempts: no message is there for longer by default."""
MOST_RETRY_TOPICS = 50
"""Of one topic."""
RETRY: Mapping[str, Rule] = {
    "max_retries": whole(),
    "backoff": duration(0.0, LONGEST_WAIT),
    "multiplier": number(1.0, 1000.0),
    "max_backoff": duration(0.0, LONGEST_WAIT),
    "jitter": number(0.0, 1.0),
    "mode": choice("blocking", "topics"),
    "retry_on": listed(dotted_path, "dotted paths"),
    "give_up_on": listed(dotted_path, "dotted paths"),
    "decide": optional(dotted_path),
}


def place(value: object) -> Place:
    """Read where messages say something of themselves."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((key, name),) = value.items()
        if key in ("header", "field", "cloud_event") and isinstance(name, str) and name:
            return Place(**{key: name})
    raise Wrong('{"header": "…"}, {"field": "…"}, {"cloud_event": "…"}')


def scalar(value: object) -> str | int | bool:
    """Read what the field of a message has to be."""
    if isinstance(value, str | int):
        return value
    raise Wrong("a text, a whole number, True, False")


DISPATCH: Mapping[str, Rule] = {
    "handler": dotted_path,
    "dry_run": flag,
    "type": label,
    "version": whole(1),
    "when": dotted_path,
}
CIRCUIT_BREAKER: Mapping[str, Rule] = {
    "enabled": flag,
    "failure_ratio": number(0.0, 1.0, above=True),
    "window": whole(1),
    "cooldown": duration(0.1),
}
SCHEMAS: Mapping[str, Rule] = {
    "schema": optional(schema),
    "key_schema": optional(schema),
    "schema_options": options_rule(READING),
}
CONSUMER: Mapping[str, Rule] = {
    "enabled": flag,
    "cluster": label,
    "database": label,
    "handler": optional(dotted_path),
    "serializer": SERIALIZER,
    "key_serializer": SERIALIZER,
    **SCHEMAS,
    **encryption.READING,
    **events.READING,
    **claims.READING,
    "auto_offset_reset": choice("earliest", "latest", "error"),
    "enable_auto_commit": flag,
    "auto_commit_interval": duration(0.001, 86400.0),
    "find_topics_interval": duration(0.1, 86400.0),
    "max_poll_records": whole(1, 1_000_000),
    "ordering": choice("partition", "key", "unordered"),
    "concurrency": whole(1, 10_000),
    "group_id": text,
    "processes": whole(1, 1_000),
    "max_in_flight": whole(1),
    "max_in_flight_bytes": size(),
    "max_payload": optional(size()),
    "transaction": choice("message", "batch", "none"),
    "guarantee": choice("at_most_once", "at_least_once", "effect_once"),
    "timeout": optional(duration(0.001)),
    "outage_patience": duration(),
    "on_dead_letter": choice("continue", "hold_key"),
    "hold_key_limit": whole(1, 10_000_000),
    "type_in": place,
    "version_in": place,
    "deduplicate": optional(text),
    "session_timeout": optional(duration(0.001, 3600.0)),
    "heartbeat_interval": optional(duration(0.001, 3600.0)),
    "fetch_min_bytes": optional(size(1, 100_000_000)),
    "fetch_max_wait": optional(duration(0.0, 300.0)),
}
LONGEST_GROUP = 255
"""Characters of a group's name with its prefix: what rows keep. Kafka itself takes more."""
IMPORTS = ("auto", "lynx", "spring", "connect", "regiohelden", "karafka", "plain")
"""Formats of dead letters that can be imported."""
CONSUMER_TOPIC: Mapping[str, Rule] = {
    "handler": optional(dotted_path),
    "timeout": optional(duration(0.001)),
    "dry_run": flag,
    "serializer": optional(SERIALIZER),
    "key_serializer": optional(SERIALIZER),
    **SCHEMAS,
    **encryption.READING_TOPIC,
    **events.READING_TOPIC,
    "type_in": place,
    "version_in": place,
    **claims.READING_TOPIC,
    "import": optional(choice(*IMPORTS)),
}


def read_consumer(
    name: str, block: Block, *, client_id: str, group_id: str, prefix: str, clusters: Mapping[str, Mapping[str, str]]
) -> Consumer:
    """Return the consumer that a block describes; `clusters` tells where the keys of each cluster were given."""
    options = merge_options(block)
    found = block.read(CONSUMER)
    found["group_id"] = found.get("group_id") or group_id
    retry = found["retry"] = _read_retry(block.block("retry"), Retry())
    breaker = block.block("circuit_breaker")
    found["circuit_breaker"] = CircuitBreaker(**breaker.read(CIRCUIT_BREAKER))
    breaker.close()
    topics = {
        topic_name: _read_topic(topic_name, inner, retry, prefix)
        for topic_name, inner in block.entries("topics", "topic", subscription(prefix))
    }
    refuse_reserved(block)
    block.close(advice(block, CONSUMER_SAME))
    given = clusters.get(found.get("cluster", "default"), {})
    found["options"] = read_options(options, (CONSUMER_SAME, block.given), (CLUSTER_SAME, given))
    consumer = Consumer(name=name, client_id=client_id, topics=MappingProxyType(topics), **found)
    _find_contradictions(consumer, block)
    _find_contradictions_of_holds(consumer, block)
    _find_contradictions_of_groups(consumer, block, options)
    if len(prefix) + len(consumer.group_id) > LONGEST_GROUP:
        sentence = f"{block.path} has a group_id of {len(consumer.group_id)} characters, besides topic_prefix."
        block.problem(WRONG_VALUE, sentence, f"Both together may have {LONGEST_GROUP}.")
    return consumer


def _read_retry(block: Block, base: Retry) -> Retry:
    rename(block, "retries", "max_retries")
    retry = replace(base, **block.read(RETRY))
    block.close()
    if retry.max_backoff < retry.backoff and not {"backoff", "max_backoff"}.isdisjoint(block.given):
        sentence = f"{block.path}: backoff ({retry.backoff:g} s) is longer than max_backoff ({retry.max_backoff:g} s)."
        block.problem(CONTRADICTION, sentence, "Raise max_backoff.")
    return retry


def _read_topic(name: str, block: Block, retry: Retry, prefix: str) -> ConsumerTopic:
    own_retry = block.block("retry")
    found = block.read({**CONSUMER_TOPIC, "original": optional(topic(prefix))})
    found["imports"] = found.pop("import", None)
    found["retry"] = _read_retry(own_retry, retry) if own_retry.values else None
    path = block.path_to("dispatch")
    value = block.take("dispatch")
    if not isinstance(value, list | tuple | None):
        block.problem(WRONG_VALUE, f"{path} is of type {type(value).__name__}; allowed: a list of dicts.", path=path)
        value = None
    read = [_read_dispatch(Block.of(rule, f"{path}[{i}]", block.problems)) for i, rule in enumerate(value or ())]
    block.close()
    _find_contradictions_of_imports(name, found, block)
    return ConsumerTopic(name=name, dispatch=tuple(rule for rule in read if rule), **found)


def _find_contradictions_of_imports(name: str, found: Mapping[str, object], block: Block) -> None:
    if found["imports"]:
        if is_pattern(name):
            path = block.path_to("import")
            sentence = f"{path} stands with a pattern: whatever came to fit it would be stored and not handled."
            block.problem(CONTRADICTION, sentence, "Name the topics that are imported.", path=path)
        for key in ("handler", "dispatch", "retry"):
            if key in block.given:
                sentence = (
                    f"{block.path_to(key)} stands beside `import`, which stores messages instead of handling them."
                )
                block.problem(CONTRADICTION, sentence, "Keep one of the two.", path=block.path_to(key))
    elif "original" in block.given and "import" not in block.given:
        path = block.path_to("original")
        block.problem(CONTRADICTION, f"{path} stands there without `import`.", 'Add "import": "auto".', path=path)


def _read_dispatch(block: Block) -> Dispatch | None:
    before = len(block.problems)
    found = block.read(DISPATCH)
    for key, name, rule in (("header", "header", text), ("field", "fields", scalar)):
        inner = block.block(key)
        pairs = inner.read(dict.fromkeys(inner.values, rule))
        found[name] = MappingProxyType({str(one): value for one, value in pairs.items()})
    wrong = len(block.problems) > before
    some = any(found.get(key) for key in ("header", "fields", "type", "when"))
    block.close()
    needs = "it needs a handler, and one of `header`, `field`, `type` and `when`."
    for key, there in (
        ("condition", some or wrong),
        ("`handler`", "handler" in block.given),
    ):
        if not there:
            sentence = f"{block.path} has no {key}; {needs}"
            block.problem(MISSING, sentence, 'Write {"header": {"type": "cancelled"}, "handler": "…"}.')
    if "version" in block.given and "type" not in block.given:
        block.problem(MISSING, f"{block.path} has a `version`, but no `type`.", "Say of which type it is.")
        wrong = True
    if wrong or "handler" not in found or not some:
        return None
    return Dispatch(**found)


def _find_contradictions(consumer: Consumer, block: Block) -> None:
    _find_contradictions_of_retry_topics(consumer, block)
    if consumer.guarantee == "at_most_once":
        _find_contradictions_of_at_most_once(consumer, block)
    if consumer.guarantee == "effect_once":
        if consumer.transaction == "none":
            sentence = f'{block.path} has guarantee "effect_once" and transaction "none".'
            block.problem(
                CONTRADICTION, sentence, "The offset is committed in the handler's transaction: it needs one."
            )
        for retry in (consumer.retry, *(topic.retry for topic in consumer.topics.values() if topic.retry)):
            if retry.mode == "topics":
                sentence = f'{block.path} has guarantee "effect_once" and retry mode "topics".'
                block.problem(CONTRADICTION, sentence, 'Retry topics leave the transaction: use mode "blocking".')
                break


def _find_contradictions_of_at_most_once(consumer: Consumer, block: Block) -> None:
    if through_topics(consumer):
        sentence = f'{block.path} has guarantee "at_most_once" and retry mode "topics".'
        block.problem(CONTRADICTION, sentence, 'A retry topic may have a message twice: use mode "blocking".')
    if consumer.on_dead_letter == "hold_key":
        sentence = f'{block.path} has guarantee "at_most_once" and on_dead_letter "hold_key".'
        hint = "Who keeps later messages for the one that failed wants none lost: leave one of the two out."
        block.problem(CONTRADICTION, sentence, hint)


def through_topics(consumer: Consumer) -> list[Retry]:
    """Return the retry settings of a consumer and of its topics that use retry topics."""
    own = (topic.retry for topic in consumer.topics.values())
    return [retry for retry in (consumer.retry, *own) if retry is not None and retry.mode == "topics"]


def _find_contradictions_of_holds(consumer: Consumer, block: Block) -> None:
    if consumer.on_dead_letter != "hold_key":
        if "hold_key_limit" in block.given:
            path = block.path_to("hold_key_limit")
            sentence = f'{path} stands there without on_dead_letter "hold_key".'
            block.problem(CONTRADICTION, sentence, 'Add "on_dead_letter": "hold_key", or leave it out.', path=path)
        return
    if consumer.ordering == "unordered":
        sentence = f'{block.path} has on_dead_letter "hold_key" and ordering "unordered".'
        block.problem(CONTRADICTION, sentence, "Where there is no order, none can be kept: leave one of them out.")
    if through_topics(consumer):
        sentence = f'{block.path} has on_dead_letter "hold_key" and retry mode "topics".'
        block.problem(CONTRADICTION, sentence, 'Later messages overtake those in retry topics: use mode "blocking".')


def _find_contradictions_of_retry_topics(consumer: Consumer, block: Block) -> None:
    most = max((retry.max_retries for retry in through_topics(consumer)), default=0)
    if most > MOST_RETRY_TOPICS:
        sentence = f'{block.path} has retry mode "topics" and max_retries {most}: each retry has a topic of its own.'
        block.problem(CONTRADICTION, sentence, f'{MOST_RETRY_TOPICS} at most, or mode "blocking".')


def _find_contradictions_of_groups(consumer: Consumer, block: Block, options: Block) -> None:
    if consumer.processes > 1 and "group.instance.id" in consumer.options:
        path = options.path_to("group.instance.id")
        sentence = f"{path} stands beside processes {consumer.processes}: each would throw the others out of the group."
        block.problem(CONTRADICTION, sentence, "Leave it out, or run one process.", path=path)
    session, heartbeat = consumer.session_timeout, consumer.heartbeat_interval
    if str(consumer.options.get("group.protocol")).lower() == "consumer":
        why = "Under group.protocol=consumer the broker decides it. Leave it out."
        ours = [block.given[key] for key in ("session_timeout", "heartbeat_interval") if getattr(consumer, key)]
        for path in ours + [options.path_to(name) for name in CLASSIC_ONLY if name in consumer.options]:
            block.problem(CONTRADICTION, f"{path} may not be given.", why, path=path)
        return
    if (session or heartbeat) and (heartbeat or 3.0) >= (session or 45.0):
        sentence = f"{block.path}: heartbeat_interval ({heartbeat or 3.0:g} s) is not below session_timeout"
        hint = "A third of session_timeout is usual."
        block.problem(CONTRADICTION, f"{sentence} ({session or 45.0:g} s).", hint)
    longest = str(consumer.options.get("max.poll.interval.ms", 300_000))
    if session and longest.isdecimal() and session * 1000 > int(longest):
        sentence = f"{block.path}: session_timeout ({session:g} s) is above max.poll.interval.ms ({longest})."
        block.problem(CONTRADICTION, sentence, "Lower it, or raise max.poll.interval.ms in `options`.")
