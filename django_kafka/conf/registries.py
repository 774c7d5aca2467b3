"""Schema registries and schemas: what they mean, and how to read that from settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .blocks import CONTRADICTION, Block, Problem
from .secrets import Secret
from .security import OAUTH, TLS, OAuth, Tls
from .values import (
    PATH,
    Rule,
    Wrong,
    choice,
    choice_or_path,
    did_you_mean,
    duration,
    flag,
    optional,
    secret,
    text,
    text_or_kept,
    url,
    whole,
)

KINDS = ("avro", "jsonschema", "protobuf")
"""The serializers that need a registry."""
_FILES = (".avsc", ".avro", ".json", ".jsonschema")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A schema that another one names."""

    name: str
    """As the other one calls it."""
    subject: str
    """Where the registry has it."""
    version: int
    """Which of the versions there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Where a schema is found; one of the three is given."""

    text: str = ""
    """The schema itself."""
    file: str = ""
    """The file that has it; one without a beginning slash lies below `BASE_DIR`."""
    path: str = ""
    """The dotted path of a message class, or of a variable that holds a schema."""
    references: tuple[Reference, ...] = ()
    """What it names and does not have itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaOptions:
    """How a producer or consumer uses the registry; None: as the one before it says."""

    subject: str | None = None
    """How subjects are named: topic, record, topic_record, or the dotted path of a function (topic, part, record)."""
    auto_register: bool | None = None
    """Whether a producer registers its schema; None everywhere: with `DEBUG` only."""
    use_latest: bool | None = None
    """Whether the newest schema of the subject is used instead of the one at hand."""
    normalize: bool | None = None
    """Whether the registry brings schemas into one form first, so that order and blanks make no new version."""
    schema_id_in: str | None = None
    """Where a producer writes which schema it is: in the payload or in headers."""

    def over(self, base: SchemaOptions) -> SchemaOptions:
        """Return these, and where they are None what `base` says."""
        mine = {name: getattr(self, name) for name in OPTIONS}
        return SchemaOptions(**{name: getattr(base, name) if value is None else value for name, value in mine.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRegistry:
    """Where schemas are kept."""

    url: str = ""
    """Its address, or several with commas between, without a login; "" for none."""
    username: str | Secret = ""
    """Who the client is there; "" for nobody."""
    password: Secret = field(default_factory=Secret)
    """What proves it."""
    token: Secret = field(default_factory=Secret)
    """A bearer token, instead of both."""
    oauth: OAuth = field(default_factory=OAuth)
    """Where bearer tokens come from, instead of all three."""
    logical_cluster: str = ""
    """What a registry that serves many is told beside a token."""
    identity_pool: str = ""
    """The same."""
    tls: Tls = field(default_factory=Tls)
    """How the connection is encrypted; it is when the address begins with https."""
    timeout: float | None = None
    """How long an answer may take; None: as long as `connection.timeout` of the cluster."""
    latest_for: float = 300.0
    """How long the newest schema of a subject counts as the newest."""
    options: SchemaOptions = field(default_factory=SchemaOptions)
    """How it is used where producers and consumers say nothing."""
    login_in_url: bool = False
    """Whether settings have the login in the address, which Django's page about an error shows."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Return its addresses one by one."""
        return tuple(one for one in self.url.split(",") if one)


def urls(value: object) -> str:
    """Read an http address or several, as a list or with commas between."""
    each = value if isinstance(value, list | tuple) else [part.strip() for part in text(value).split(",")]
    found = [url(one) for one in each]
    if len(found) > 1 and not all(found):
        raise Wrong('addresses such as "https://registry:8081"')
    return ",".join(found)


def schema(value: object) -> Schema:
    """Read where a schema is: its text, a file, a dotted path, or a dict that is the schema itself."""
    match value:
        case {"file": str() | os.PathLike() as path, **more} if not more.keys() - {"references"}:
            return Schema(file=os.fspath(path), references=_references(more.get("references")))
        case {"text": str() as written, **more} if not more.keys() - {"references"}:
            return Schema(text=written, references=_references(more.get("references")))
        case Mapping() | list():
            try:
                return Schema(text=json.dumps(value))
            except (TypeError, ValueError):
                raise Wrong("a schema of what JSON has") from None
        case os.PathLike():
            return Schema(file=os.fspath(value))
        case str() if value.lstrip()[:1] in ("{", "[", '"'):
            return Schema(text=value)
        case str() if PATH.fullmatch(value) and not value.endswith(_FILES):
            return Schema(path=value)
        case str() if value and value.isprintable():
            return Schema(file=value)
    raise Wrong(
        'the path of a file, a dotted path, a schema as a text or a dict, or {"file": …, "references": [{"name": …, '
        '"subject": …, "version": 1}]}'
    )


def _references(value: object) -> tuple[Reference, ...]:
    allowed = 'a list of {"name": …, "subject": …, "version": 1}'
    if not isinstance(value, list | tuple | None):
        raise Wrong(allowed)
    found = []
    for one in value or ():
        match one:
            case {"name": str() as name, "subject": str() as subject, "version": version, **more} if not more:
                found.append(Reference(name=name, subject=subject, version=whole(1)(version)))
            case _:
                raise Wrong(allowed)
    return tuple(found)


WRITING: Mapping[str, Rule] = {
    "subject": optional(choice_or_path("topic", "record", "topic_record")),
    "auto_register": optional(flag),
    "use_latest": optional(flag),
    "normalize": optional(flag),
    "schema_id_in": optional(choice("payload", "headers")),
}
READING: Mapping[str, Rule] = {name: WRITING[name] for name in ("subject", "use_latest")}
OPTIONS = tuple(WRITING)
SCHEMA_REGISTRY: Mapping[str, Rule] = {
    "url": urls,
    "username": text_or_kept,
    "password": secret,
    "token": secret,
    "logical_cluster": text,
    "identity_pool": text,
    "timeout": optional(duration(0.1, 3600.0)),
    "latest_for": duration(1.0),
}
REGISTRY_TLS: Mapping[str, Rule] = {name: rule for name, rule in TLS.items() if name != "enabled"}
REGISTRY_OAUTH: Mapping[str, Rule] = {name: rule for name, rule in OAUTH.items() if name != "extensions"}


def options_rule(rules: Mapping[str, Rule]) -> Rule:
    """Return the rule for a block of options."""

    def rule(value: object) -> SchemaOptions:
        if value is None:
            return SchemaOptions()
        if not isinstance(value, Mapping):
            raise Wrong(f"a dict with some of: {', '.join(rules)}")
        for key in value:
            if key not in rules:
                raise Wrong(f"a dict with some of: {', '.join(rules)}", did_you_mean(key, tuple(rules)))
        try:
            return SchemaOptions(**{key: rules[key](each) for key, each in value.items()})
        except Wrong as wrong:
            raise Wrong(f"options that are right; one may be {wrong.allowed}", wrong.hint) from None

    return rule


def read_registry(block: Block) -> SchemaRegistry:
    """Return the registry that a block describes."""
    found: dict[str, Any] = block.read(SCHEMA_REGISTRY)
    options = SchemaOptions(**block.read(WRITING))
    tls, oauth = block.block("tls"), block.block("oauth")
    found["options"] = options
    found["tls"] = Tls(enabled=found.get("url", "").startswith("https"), **tls.read(REGISTRY_TLS))
    found["oauth"] = OAuth(**oauth.read(REGISTRY_OAUTH))
    registry = _without_login(block, found)
    for inner in (tls, oauth, block):
        inner.close()
    _find_contradictions(registry, block, oauth, tls)
    return registry


def _without_login(block: Block, found: dict[str, Any]) -> SchemaRegistry:
    bare, login = [], ""
    for address in found.get("url", "").split(","):
        scheme, _, rest = address.partition("://")
        place, slash, path = rest.partition("/")
        own, at, host = place.rpartition("@")
        login = login or own
        bare.append(f"{scheme}://{host}{slash}{path}" if at else address)
    if not login:
        return SchemaRegistry(**found)
    if {"username", "password", "token", "oauth"} & block.given.keys():
        sentence = f"{block.path} has a login in `url`, and one beside it."
        block.problem(CONTRADICTION, sentence, "Write it beside the address only.")
    username, _, password = login.partition(":")
    return SchemaRegistry(
        **{
            **found,
            "url": ",".join(bare),
            "username": unquote(username),
            "password": Secret(unquote(password)),
            "login_in_url": True,
        }
    )


def _find_contradictions(registry: SchemaRegistry, block: Block, oauth: Block, tls: Block) -> None:
    ways = [
        what
        for what, there in (
            ("`username`", bool(registry.username)),
            ("`token`", bool(registry.token)),
            ("`oauth`", bool(registry.oauth.function or registry.oauth.token_url)),
        )
        if there
    ]
    if len(ways) > 1:
        sentence = f"{block.path} has {' and '.join(ways)}, which are ways to log in."
        block.problem(CONTRADICTION, sentence, "Choose one.")
    if registry.oauth.function and registry.oauth.token_url:
        sentence = f"{oauth.path} has both `function` and `token_url`."
        block.problem(CONTRADICTION, sentence, "A token comes from your function, or from a provider: choose one.")
    elif registry.oauth.token_url and not (registry.oauth.client_id and registry.oauth.client_secret):
        sentence = f"{oauth.path} has `token_url`, but not both `client_id` and `client_secret`."
        block.problem(CONTRADICTION, sentence, "A provider asks for both.")
    if bool(registry.tls.cert_file) != bool(registry.tls.key_file):
        sentence = f"{tls.path} has one of `cert_file` and `key_file`; a client's certificate needs both."
        block.problem(CONTRADICTION, sentence, "If one file holds both, name it twice.")
    if registry.options.use_latest and registry.options.auto_register:
        _refuse_both(block.path, block.problems)


def _refuse_both(path: str, problems: list[Problem]) -> None:
    problems.append(
        Problem(
            id=CONTRADICTION,
            path=path,
            message=f"{path} has both `use_latest` and `auto_register`.",
            hint="What is registered at once is always the latest: choose one.",
        )
    )


def find_what_schemas_lack(
    clusters: Mapping[str, Any], kind: str, clients: Iterable[Any], problems: list[Problem]
) -> None:
    """Report serializers that need a registry or a schema, and have none."""
    for client in clients:
        registry = clusters[client.cluster].schema_registry if client.cluster in clusters else None
        path = f'KAFKA["{kind}"]["{client.name}"]'
        places = {path: client, **{f'{path}["topics"]["{name}"]': topic for name, topic in client.topics.items()}}
        for place, one in places.items():
            for part, serializer in (("schema", one.serializer), ("key_schema", one.key_serializer)):
                if serializer not in KINDS or registry is None:
                    continue
                where = f'{place}["{"key_" if part == "key_schema" else ""}serializer"] is "{serializer}"'
                if not registry.url:
                    sentence = f"{where}, but cluster {client.cluster!r} has no schema registry."
                    hint = "Give the address as `url` in `schema_registry`."
                    problems.append(Problem(id=CONTRADICTION, path=place, message=sentence, hint=hint))
                elif serializer == "protobuf" and place != path and not (getattr(one, part) or getattr(client, part)):
                    sentence = f"{where}, and there is no `{part}`."
                    hint = f"Name the message class by its dotted path in `{part}`."
                    problems.append(Problem(id=CONTRADICTION, path=place, message=sentence, hint=hint))
            options = one.schema_options.over(client.schema_options)
            if options.use_latest and options.auto_register:
                _refuse_both(f'{place}["schema_options"]', problems)
