"""What a registry, or the way to it, says against a request, as errors of ours that name what to look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ... import conf
from ...conf.secrets import revealed
from ...exceptions import (
    ConfigurationError,
    KafkaError,
    RegistryForbidden,
    RegistryLoginRefused,
    RegistryUnavailable,
    SchemaRefused,
    UnknownSchema,
)
from .asked import Failed

_SUBJECT, _VERSION, _SCHEMA = 40401, 40402, 40403
_UNKNOWN = (_SUBJECT, _VERSION, _SCHEMA)
_CERTIFICATE_OF_SERVER = re.compile(r"certificate verify failed|hostname mismatch|not valid for", re.IGNORECASE)
_CERTIFICATE_OF_CLIENT = re.compile(r"alert|bad certificate|certificate required", re.IGNORECASE)
_LONGEST = 500
"""Characters of what a registry says."""


class NotARegistry(RegistryUnavailable):
    """What answers at the address knows nothing of what registries are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a registry is asked, for sentences about it."""

    what: str
    """In words: subject 'flights-value', schema id 7."""
    subject: str = ""
    """The subject that a schema is registered or looked up under; "" when a schema is read."""
    registers: bool = False
    """Whether the schema may be new there."""


class Refusals:
    """Knows one registry by its address, and puts into words what is wrong with it."""

    def __init__(self, cluster: conf.Cluster, scrub: Callable[[str], str]) -> None:
        self._registry = cluster.schema_registry
        self._scrub = scrub
        self.path = f'{cluster.path}["schema_registry"]'

    @property
    def whole(self) -> str:
        """Return what the registry is called in sentences."""
        return f"The schema registry at {self._registry.url}"

    def of(self, error: Exception, question: Question) -> KafkaError | None:
        """Return what an error is that came while a registry was asked; None when that has nothing to do with it."""
        chain = list(_chain(error))
        if (ours := next((one for one in chain if isinstance(one, KafkaError)), None)) is not None:
            return ours
        if not any(isinstance(one, Failed) for one in chain):
            return None
        for one in chain:
            if type(one).__name__ == "SchemaRegistryError":
                return self._answered(one, question)
            if isinstance(one, OSError) or _is_of_transport(one):
                return self._unreached(one, question)
        return RegistryUnavailable(
            f'{self.whole} does not answer as one ({type(chain[-1]).__name__}). Look at {self.path}["url"].'
        )

    def _answered(self, error: BaseException, question: Question) -> KafkaError:
        status, code = getattr(error, "http_status_code", 0), getattr(error, "error_code", None)
        said = self._scrub(str(getattr(error, "error_message", "")))[:_LONGEST].rstrip(".")
        told = f"HTTP {status}{f', {said}' if said else ''}"
        if status in (401, 407):
            return RegistryLoginRefused(
                f"{self.whole} refuses the login of {self.who()} for {question.what}: {told}. Look at {self._login()}."
            )
        if status == 403:
            return RegistryForbidden(
                f"{self.whole} refuses {question.what} to {self.who()}: {told}. Give it the permission, or look at "
                f"{self._login()}."
            )
        if status == 404 and code in _UNKNOWN:
            return self._unknown(question)
        if question.subject and (status in (409, 422) or code == 409):
            why = "it is incompatible with what is there" if 409 in (status, code) else "it is not valid"
            return SchemaRefused(
                f"{self.whole} does not take the schema for subject {question.subject!r}: {why} ({told})."
            )
        if 400 <= status < 500 and status not in (408, 429):
            return NotARegistry(f'{self.whole} does not answer as one: {told}. Look at the path in {self.path}["url"].')
        return RegistryUnavailable(f"{self.whole} cannot answer for {question.what} now: {told}.")

    def _unknown(self, question: Question) -> KafkaError:
        if not question.subject:
            return UnknownSchema(f"the schema registry at {self._registry.url} has no {question.what}")
        if question.registers:
            why = "a schema that it refers to is not there; look at `references`"
        else:
            why = 'register it before, or let producers do so with "auto_register": True'
        return SchemaRefused(
            f"{self.whole} does not have this schema under the subject {question.subject!r}: {why} in {self.path}."
        )

    def _unreached(self, error: BaseException, question: Question) -> KafkaError:
        said = self._scrub(" ".join(dict.fromkeys(str(one) for one in _chain(error) if str(one))))[:_LONGEST]
        said = said.rstrip(".") or type(error).__name__
        if _CERTIFICATE_OF_SERVER.search(said):
            return RegistryLoginRefused(
                f"The certificate of the schema registry at {self._registry.url} is not trusted: {said}. It is signed "
                f'by none that {self.path}["tls"]["ca_file"] holds, is out of date, or is for another host than '
                f'{self.path}["url"] names.'
            )
        if "ssl" in said.lower() and _CERTIFICATE_OF_CLIENT.search(said):
            file = self._registry.tls.cert_file
            whose = f"the certificate {file!r}" if file else "a client without a certificate"
            return RegistryLoginRefused(
                f'{self.whole} refuses {whose}: {said}. Look at {self.path}["tls"]["cert_file"].'
            )
        return RegistryUnavailable(
            f'{self.whole} cannot be reached for {question.what}: {said}. Look at {self.path}["url"], and whether it '
            "runs."
        )

    def who(self) -> str:
        """Return whom the registry sees, as far as settings say it."""
        found = self._registry
        if found.oauth.function:
            return f"the token of {found.oauth.function!r}"
        if found.oauth.token_url:
            return f"the token of {_shown(found.oauth.client_id)}"
        if found.token:
            return "the bearer token"
        return _shown(found.username) if found.username else "a client without login"

    def _login(self) -> str:
        found = self._registry
        if found.oauth.function or found.oauth.token_url:
            return f'{self.path}["oauth"]'
        if found.token:
            return f'{self.path}["token"]'
        return f'{self.path}["username"] and ["password"]' if found.username else self.path


def answer_to(error: BaseException) -> tuple[int, int]:
    """Return the status and the code that a registry answered with; zeros when it did not answer."""
    for one in _chain(error):
        if type(one).__name__ == "SchemaRegistryError":
            return getattr(one, "http_status_code", 0), getattr(one, "error_code", 0) or 0
    return 0, 0


def is_unknown(error: BaseException) -> bool:
    """Tell whether a registry answered that it has no such subject, version or schema."""
    status, code = answer_to(error)
    return status == 404 and code in _UNKNOWN


def _shown(name: object) -> str:
    try:
        return repr(revealed(name))
    except ConfigurationError as error:
        return f"nobody ({error})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _is_of_transport(error: BaseException) -> bool:
    # By name: which of two libraries it is, only the client library knows.
    return any(one.__module__.startswith("httpx") and one.__name__ == "TransportError" for one in type(error).__mro__)
