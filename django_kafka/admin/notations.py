"""How bytes stand in a form, and which bytes are meant by what came back from it."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from django.db.models import TextChoices
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import handlers, serializers
from ..dead_letters.stored import StoredMessage
from ..envelopes import Envelope
from ..envelopes.opening import OpeningDecoder
from ..exceptions import KafkaError, shown
from ..messages import Message
from ..models import DeadLetter, Replay
from . import jsontext, showing

_BYTES_IN_LINE = 32


class Notation(TextChoices):
    """What a text means."""

    JSON = "json", gettext_lazy("JSON")
    TEXT = "text", gettext_lazy("text")
    HEX = "hex", gettext_lazy("hexadecimal")
    NONE = "none", gettext_lazy("nothing (null)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Bytes as they stand in a form."""

    notation: str
    """What the text means."""
    text: str
    """The text; nothing in it is invisible but line ends and tabs."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a part of a letter is written in: the serializer of its handler knows.

    A value that is encrypted as a whole is written as what is inside, a whole CloudEvent as the JSON that it is.
    """

    letter: DeadLetter
    """Whose key or value it is."""
    part: str
    """"key" or "value"."""

    def inside(self, data: bytes | None) -> bytes | None:
        """Return what people write: what is encrypted as a whole is decrypted, where that is possible."""
        envelope = self._envelope()
        try:
            return data if data is None or envelope is None else envelope.inside(data)
        except KafkaError:
            return data

    def around(self, data: bytes | None) -> bytes | None:
        """Return the bytes of a message for what people wrote; raise `KafkaError`."""
        envelope = self._envelope()
        return data if data is None or envelope is None else envelope.around(data)

    @property
    def literal(self) -> bool:
        """Whether what reads as a value may stand for it: with encrypted fields, it would be in clear."""
        envelope = self._envelope()
        return envelope is None or not envelope.encryption.fields or envelope.is_event(self.letter.headers)

    def _envelope(self) -> Envelope | None:
        try:
            decoder = handlers.decoder_for(self.letter.consumer, self.letter.topic)
        except KafkaError:
            return None
        return decoder.envelope if self.part == "value" and isinstance(decoder, OpeningDecoder) else None

    def value_of(self, data: bytes) -> Any:
        """Return what the serializer reads; raise what it raises."""
        edited = Replay(edited=True, edited_headers=self.letter.stored_headers, **{f"edited_{self.part}": data})
        message = Message(StoredMessage(self.letter, edited), self._decoder())
        return message.key if self.part == "key" else message.value

    def bytes_of(self, value: Any) -> bytes | None:
        """Return what the serializer writes; raise what it raises."""
        return self._decoder().encode(value, self.letter.topic, self.part)

    def _decoder(self) -> serializers.TopicDecoder:
        decoder = handlers.decoder_for(self.letter.consumer, self.letter.topic)
        return decoder.inside(self.letter.headers) if isinstance(decoder, OpeningDecoder) else decoder


def write(data: bytes | None, language: Language) -> Written:
    """Return bytes as JSON where the serializer has them so, else as text where they are some, else in hexadecimal."""
    data = language.inside(data)
    if data is not None and (text := _as_json(data, language)) is not None:
        return Written(notation=Notation.JSON, text=text)
    return written_plainly(data)


def written_plainly(data: bytes | None) -> Written:
    """Return bytes as text where they are some that can be seen, else in hexadecimal."""
    if data is None:
        return Written(notation=Notation.NONE, text="")
    if (text := _as_text(data)) is not None:
        return Written(notation=Notation.TEXT, text=text)
    lines = (data[start : start + _BYTES_IN_LINE] for start in range(0, len(data), _BYTES_IN_LINE))
    return Written(notation=Notation.HEX, text="\n".join(line.hex(" ", 4) for line in lines))


def _as_json(data: bytes, language: Language) -> str | None:
    try:
        value = language.value_of(data)
        try:
            text = data.decode()
            if _same(jsontext.read(text), value):
                return jsontext.laid_out(text)
        except ValueError:
            pass
        if isinstance(value, str | bytes):
            return None
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        # Only where nothing is lost on the way: what has no counterpart in JSON would come back as something else.
        written = language.bytes_of(jsontext.read(text))
        faithful = written is not None and _same(language.value_of(written), value)
        return jsontext.laid_out(text) if faithful else None
    except Exception:  # noqa: BLE001  # serializers of the project's own, and registries, may raise anything
        return None


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _as_text(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    # Browsers write the end of a line in their own way; what nobody sees nobody can edit.
    visible = all(each in "\n\t" or unicodedata.category(each) not in showing.HARMFUL for each in text)
    return text if visible else None


def read(written: Written, original: bytes | None, language: Language) -> bytes | None:
    """Return the bytes that are meant; the original ones when nothing was altered.

    Raises `ValueError` with a translated sentence.
    """
    text = written.text.replace("\r\n", "\n")
    before = write(original, language)
    if (written.notation, text) == (before.notation, before.text):
        return original
    meant = _from_json(text, language) if written.notation == Notation.JSON else read_plainly(written)
    try:
        return language.around(meant)
    except KafkaError as error:
        raise ValueError(showing.line(str(error), 1000)) from None


def read_plainly(written: Written) -> bytes | None:
    """Return the bytes that are meant by what is not JSON. Raises `ValueError` with a translated sentence."""
    text = written.text.replace("\r\n", "\n")
    match written.notation:
        case Notation.NONE:
            return None
        case Notation.TEXT:
            return text.encode("utf-8", "replace")
        case Notation.HEX:
            try:
                return bytes.fromhex("".join(text.split()))
            except ValueError:
                raise ValueError(_("This is not hexadecimal: it needs two of 0–9 and a–f for each byte.")) from None
    raise ValueError(_("Choose how it is written."))


def _from_json(text: str, language: Language) -> bytes | None:
    value = jsontext.read(text)
    literal = jsontext.compact(text).encode("utf-8", "replace")
    try:
        if language.literal and _same(language.value_of(literal), value):
            return literal
    except Exception:  # noqa: BLE001  # as above
        pass
    try:
        return language.bytes_of(value)
    except KafkaError as error:
        raise ValueError(showing.line(str(error), 1000)) from None
    except Exception as error:  # noqa: BLE001  # as above
        raise ValueError(showing.line(f"{type(error).__name__}: {shown(error)}", 1000)) from None
