"""The types of what settings.KAFKA says of clusters, registries, and the way to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from os import PathLike
from typing import Any, TypeAlias, TypedDict

from .secrets import Secret

Duration: TypeAlias = str | int | float | timedelta
Size: TypeAlias = int | str
Path: TypeAlias = str | PathLike[str]


class FromEnvironment(TypedDict):
    """A secret that an environment variable holds."""

    env: str


class FromFile(TypedDict):
    """A secret that a file holds."""

    file: Path


Kept: TypeAlias = str | Secret | FromEnvironment | FromFile


class KerberosSettings(TypedDict, total=False):
    """KAFKA["security"]["sasl"]["kerberos"]"""

    service_name: str
    principal: str
    keytab: Path


class OAuthSettings(TypedDict, total=False):
    """KAFKA["security"]["sasl"]["oauth"]"""

    token_url: str
    client_id: Kept
    client_secret: Kept
    scope: str
    extensions: Mapping[str, str]
    ca_file: Path
    function: str | None


class SaslSettings(TypedDict, total=False):
    """KAFKA["security"]["sasl"]"""

    enabled: bool
    mechanism: str
    username: Kept
    password: Kept
    kerberos: KerberosSettings
    oauth: OAuthSettings


class TlsSettings(TypedDict, total=False):
    """KAFKA["security"]["tls"]"""

    enabled: bool
    ca_file: Path
    cert_file: Path
    key_file: Path
    key_password: Kept
    insecure_skip_verify: bool


class SecuritySettings(TypedDict, total=False):
    """KAFKA["security"]"""

    sasl: SaslSettings
    tls: TlsSettings


class ConnectionSettings(TypedDict, total=False):
    """KAFKA["connection"]"""

    timeout: Duration
    keep_alive: Duration
    max_connections: int
    options: Mapping[str, Any]


class ReferenceSettings(TypedDict):
    """A schema that another one names."""

    name: str
    subject: str
    version: int


class SchemaFileSettings(TypedDict, total=False):
    """A schema in a file, with what it names."""

    file: Path
    references: Sequence[ReferenceSettings]


class SchemaTextSettings(TypedDict, total=False):
    """A schema as a text, with what it names."""

    text: str
    references: Sequence[ReferenceSettings]


SchemaSource: TypeAlias = Path | SchemaFileSettings | SchemaTextSettings | Mapping[str, Any] | Sequence[Any] | None


class SchemaOptionsSettings(TypedDict, total=False):
    """KAFKA["producers"]["…"]["schema_options"]"""

    subject: str | None
    auto_register: bool | None
    use_latest: bool | None
    normalize: bool | None
    schema_id_in: str | None


class RegistryTlsSettings(TypedDict, total=False):
    """KAFKA["schema_registry"]["tls"]"""

    ca_file: Path
    cert_file: Path
    key_file: Path
    key_password: Kept
    insecure_skip_verify: bool


class RegistryOAuthSettings(TypedDict, total=False):
    """KAFKA["schema_registry"]["oauth"]"""

    token_url: str
    client_id: Kept
    client_secret: Kept
    scope: str
    ca_file: Path
    function: str | None


class SchemaRegistrySettings(SchemaOptionsSettings, total=False):
    """KAFKA["schema_registry"]"""

    url: str | Sequence[str]
    username: Kept
    password: Kept
    token: Kept
    oauth: RegistryOAuthSettings
    logical_cluster: str
    identity_pool: str
    tls: RegistryTlsSettings
    timeout: Duration | None
    latest_for: Duration


class TopicSettings(TypedDict, total=False):
    """KAFKA["topics"]["…"]"""

    partitions: int | None
    replication_factor: int | None
    config: Mapping[str, str | float | bool | None]
    delete: bool


class ClusterSettings(TypedDict, total=False):
    """KAFKA["clusters"]["…"]"""

    brokers: Sequence[str] | str
    security: SecuritySettings
    connection: ConnectionSettings
    schema_registry: SchemaRegistrySettings
    topics: Mapping[str, TopicSettings] | Sequence[str | Mapping[str, Any]]
