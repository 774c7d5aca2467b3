"""Text that must not be seen: passwords, and the words by which settings that hold them are told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from django_kafka.exceptions import ConfigurationError

MASK = "***"

_WORDS = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "private",
    "jaas",
    "key.pem",
    "keystore.pem",
    "user.info",
    "oauthbearer.config",
)
_LOGIN = re.compile(r"(?<=//)\S+@|[^/@\s]+:\S*@")
_DEEPEST = 8


class Secret:
    """A text that shows itself only when asked with `reveal()`.

    It is given as it is, or kept elsewhere: in an environment variable, or in a file, which is read each time anew.
    """

    __slots__ = ("_kept", "_text")

    def __init__(self, text: str = "", *, kept: Literal["env", "file"] | None = None) -> None:
        """With `kept`, `text` is the name of the variable, or the path of the file."""
        self._text = text
        self._kept = kept

    @property
    def changes(self) -> bool:
        """Whether it may be another one the next time it is asked."""
        return self._kept == "file"

    def reveal(self) -> str:
        """Return the text itself. Raises `ConfigurationError` when it is not where it is kept."""
        if self._kept is None:
            return self._text
        text = os.environ.get(self._text, "") if self._kept == "env" else self._read()
        if not text:
            raise ConfigurationError(f"{self._place()} is empty or not there; a secret is kept in it.")
        return text

    def missing(self) -> str | None:
        """Return why it cannot be revealed now; None when it can."""
        try:
            self.reveal()
        except ConfigurationError as error:
            return str(error)
        return None

    def _read(self) -> str:
        try:
            # Editors, and `kubectl create secret`, end a file with a line break, which no secret has at its end.
            return Path(self._text).read_text("utf-8").rstrip("\r\n")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            # Not chained: what cannot be decoded is quoted by its error.
            raise ConfigurationError(f"{self._place()} cannot be read: {reason}.") from None

    def _place(self) -> str:
        return f"The environment variable {self._text}" if self._kept == "env" else f"The file {self._text}"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._kept, self._text) == (other._kept, other._text)

    def __hash__(self) -> int:
        return hash((Secret, self._kept, self._text))

    def __repr__(self) -> str:
        if self._kept is not None:
            return f"Secret({self._text!r}, kept={self._kept!r})"
        return f"Secret({MASK if self._text else ''!r})"

    def __str__(self) -> str:
        return MASK if self._text else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not pickled: it would travel in clear. Read it from settings where it is needed.")


def revealed(value: Any) -> Any:
    """Return what a secret hides; anything else as it is."""
    return value.reveal() if isinstance(value, Secret) else value


def hidden(name: str, value: Any) -> Any:
    """Return a text as a secret when what is called so must not be shown; anything else as it is."""
    return Secret(value) if isinstance(value, str) and value and is_secret(name) else value


class Options(Mapping[str, Any]):
    """A mapping that cannot be changed, whose texts under the names of secrets are secrets."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {name: hidden(name, value) for name, value in (values or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(masked(self._values))


def is_secret(name: object) -> bool:
    """Tell whether a setting or property of this name holds something that must not be shown."""
    dotted = str(name).lower().replace("_", ".").replace("-", ".")
    return any(word in dotted for word in _WORDS)


def without_login(text: str) -> str:
    """Return an address with the user and password in it masked."""
    return _LOGIN.sub(f"{MASK}@", text)


def masked(value: object, depth: int = 0) -> object:
    """Return a copy of the value in which no secret is left; what lies very deep is left out."""
    match value:
        case str():
            return MASK if is_secret(value) else without_login(value)
        case Mapping() | list() | tuple() if depth > _DEEPEST:
            return "..."
        case Mapping():
            return {key: MASK if is_secret(key) else masked(inner, depth + 1) for key, inner in value.items()}
        case list() | tuple():
            return [masked(inner, depth + 1) for inner in value]
        case bool() | int() | float() | None | Secret():
            return value
        case _:
            # Bytes, sets and objects of all kinds: their repr may hold anything.
            return type(value)


def shown(value: object, name: object = "") -> str:
    """Return the value as error texts show it: short, and never a secret."""
    if is_secret(name):
        return f"{MASK} ({type(value).__name__})"
    try:
        text = repr(masked(value))
    except ValueError:  # an int of more digits than Python writes
        return f"too long ({type(value).__name__})"
    return text if len(text) <= 100 else f"{text[:97]}..."
