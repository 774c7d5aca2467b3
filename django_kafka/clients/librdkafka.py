"""The C library below `confluent_kafka`, for what its Python face leaves out."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import cimpl

from ..exceptions import ConfigurationError


@functools.cache
def load() -> ctypes.CDLL:
    """Load the librdkafka that `confluent_kafka` itself runs on and return it; once per process.

    Raises `ConfigurationError` when no library with librdkafka's mock cluster can be found.
    """
    tried = []
    for candidate in _candidates():
        tried.append(candidate)
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        if hasattr(library, "rd_kafka_mock_cluster_new"):
            _declare(library)
            return library
    raise ConfigurationError(
        f"librdkafka with its mock cluster was not found; looked in: {', '.join(tried)}. Install confluent-kafka from "
        f"its wheel (pip install --only-binary confluent-kafka confluent-kafka), which brings the library."
    )


@functools.cache
def features() -> frozenset[str]:
    """Return what the loaded librdkafka is built with, such as "sasl_gssapi"."""
    library = load()
    configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
    text, size = ctypes.create_string_buffer(4096), ctypes.c_size_t(4096)
    try:
        library.rd_kafka_conf_get(configuration, b"builtin.features", text, ctypes.byref(size))
    finally:
        library.rd_kafka_conf_destroy(configuration)
    return frozenset(text.value.decode().split(","))


@functools.cache
def version() -> str:
    """Return the version of the library itself."""
    return str(confluent_kafka.libversion()[0])


def property_names() -> tuple[str, ...]:
    """Return the names of all properties that the loaded librdkafka has, those of topics too."""
    try:
        lines = _shown_properties().splitlines()
    except (OSError, TypeError, AttributeError):  # a system whose C library is not at hand, such as Windows
        return ()
    cells = (line.split("|") for line in lines if line.count("|") > 3)
    names = (cell[0].strip() for cell in cells)
    return tuple(dict.fromkeys(name for name in names if name and name != "Property" and not name.startswith("-")))


def _shown_properties() -> str:
    """Return the library's own table of its properties, which it writes into a file of C."""
    library, c = load(), ctypes.CDLL(None)
    c.tmpfile.restype = ctypes.c_void_p
    file = ctypes.c_void_p(c.tmpfile())
    if not file:
        raise OSError
    try:
        library.rd_kafka_conf_properties_show(file)
        c.rewind(file)
        text = ctypes.create_string_buffer(1 << 20)
        c.fread.restype = ctypes.c_size_t
        size = c.fread(text, ctypes.c_size_t(1), ctypes.c_size_t(len(text)), file)
        return text.raw[:size].decode(errors="replace")
    finally:
        c.fclose(file)


def _candidates() -> Iterator[str]:
    # A symbol is looked up in what a library links to as well, so the extension module leads to exactly the
    # librdkafka that the clients use, from a wheel or from the system. Windows does not look that far.
    yield str(cimpl.__file__)
    package = Path(confluent_kafka.__file__).parent
    for folder in (package.with_name("confluent_kafka.libs"), package / ".dylibs"):
        for path in sorted(folder.glob("*rdkafka*")):
            yield str(path)
    if system := ctypes.util.find_library("rdkafka"):
        yield system


def _declare(library: ctypes.CDLL) -> None:
    # Undeclared, ctypes takes every answer for a C int and cuts pointers in half.
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "conf_new": (pointer, []),
        "conf_set": (number, [pointer, text, text, text, size]),
        "conf_get": (number, [pointer, text, text, ctypes.POINTER(size)]),
        "conf_properties_show": (None, [pointer]),
        "conf_dump": (ctypes.POINTER(text), [pointer, ctypes.POINTER(size)]),
        "conf_dump_free": (None, [ctypes.POINTER(text), size]),
        "conf_destroy": (None, [pointer]),
        "new": (pointer, [number, pointer, text, size]),
        "destroy": (None, [pointer]),
        "err2str": (text, [number]),
        "mock_cluster_new": (pointer, [pointer, number]),
        "mock_cluster_destroy": (None, [pointer]),
        "mock_cluster_bootstraps": (text, [pointer]),
        "mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
        "mock_topic_create": (number, [pointer, text, number, number]),
        "mock_push_request_errors_array": (None, [pointer, ctypes.c_int16, size, ctypes.POINTER(number)]),
        "mock_clear_request_errors": (None, [pointer, ctypes.c_int16]),
        "mock_broker_set_down": (number, [pointer, ctypes.c_int32]),
        "mock_broker_set_up": (number, [pointer, ctypes.c_int32]),
        "mock_broker_set_rtt": (number, [pointer, ctypes.c_int32, number]),
        "mock_partition_set_leader": (number, [pointer, text, ctypes.c_int32, ctypes.c_int32]),
    }
    for name, (answer, arguments) in signatures.items():
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = answer, arguments
