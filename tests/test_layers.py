"""Imports go downwards only, and Kafka's client library stays behind its one door.

Every top-level module of the package has a level. A module may import modules of lower levels; on its own level, only
those that are listed before it; inside its own folder, anything.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "django_kafka"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

LEVELS = (
    (
        "exceptions",
        "legible",
        "logs",
        "signals",
        "tallies",
        "history",
        "reports",
        "alike",
        "deliveries",
        "cloud_events",
        "messages",
        "events",
    ),
    ("conf",),
    ("clients", "serializers", "envelopes", "partitioning", "correlation", "tracing", "models"),
    (
        "gathering",
        "reachability",
        "producer",
        "producers",
        "deadlines",
        "retry_topics",
        "registry",
        "subscriptions",
        "coroutines",
        "signatures",
        "upcasters",
        "conditions",
        "handlers",
        "membership",
        "categories",
        "retries",
        "execution",
    ),
    (
        "records",
        "routing",
        "sending",
        "outbox",
        "producing",
        "batches",
        "bridges",
        "claims",
        "dead_letters",
        "needed_topics",
        "topic_plans",
        "needed_schemas",
        "agreements",
        "deployment",
        "schema_differences",
        "schema_plans",
    ),
    ("monitoring", "consuming", "offsets"),
    (
        "controls",
        "services",
        "testing",
        "health",
        "checks",
        "carriers",
        "tasks",
        "background",
        "admin",
        "diagnosis",
        "management",
        "apps",
    ),
)
WITHOUT_LEVEL = {"__init__", "migrations"}
"""They may import what they need to: nothing of ours."""

CLIENT_LIBRARY = "confluent_kafka"
ONLY_IN = "clients"

LATE_IMPORTS = {
    ("apps.py", "*"): "an application may import its modules only when it is ready",
    ("*", "celery"): "optional extra",
    ("*", "cryptography"): "optional extra",
    ("*", "opentelemetry"): "optional extra",
    ("*", "yaml"): "optional extra",
}
"""(file, imported module or a package of it) → why an import may stand inside a function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement."""

    file: str
    """Path below the package."""
    line: int
    """Where it stands."""
    module: str
    """The absolute name of what is imported."""
    late: bool
    """Whether it stands inside a function."""
    typing: bool
    """Whether it is for the type checker only."""


def imports(root: Path) -> Iterator[Import]:
    """Read every import below a directory that is taken for the package."""
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if file.startswith("migrations/"):
            continue
        yield from _imports_in(ast.parse(path.read_text(), file), file)


def _imports_in(tree: ast.AST, file: str, *, late: bool = False, typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom():
                modules = _named_by(node, file)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from _imports_in(ast.Module([child], []), file, late=late, typing=True)
                for child in node.orelse:
                    yield from _imports_in(ast.Module([child], []), file, late=late, typing=typing)
                continue
            case _:
                inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from _imports_in(node, file, late=inside, typing=typing)
                continue
        for module in modules:
            yield Import(file=file, line=node.lineno, module=module, late=late, typing=typing)


def _named_by(node: ast.ImportFrom, file: str) -> list[str]:
    """What `from … import a, b` names; `from . import a` names a module for each name."""
    here = [PACKAGE, *Path(file).parent.parts]
    base = here[: len(here) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    if module == PACKAGE or not node.module:
        return [f"{module}.{alias.name}" for alias in node.names]
    return [module]


def complaints(root: Path) -> list[str]:
    """Everything that the imports below a directory do against the rules, as sentences."""
    order = {name: (level, place) for level, names in enumerate(LEVELS) for place, name in enumerate(names)}
    found = [
        f"{name} has no level; add it to LEVELS."
        for name in sorted({_top(path.relative_to(root)) for path in root.rglob("*.py")})
        if name not in order and name not in WITHOUT_LEVEL
    ]
    for each in imports(root):
        where = f"{each.file}:{each.line}"
        if each.module.split(".")[0] == CLIENT_LIBRARY and not each.file.startswith(f"{ONLY_IN}/"):
            found.append(f"{where} imports {each.module}; only {ONLY_IN}/ may.")
        if each.late and not _may_be_late(each):
            found.append(f"{where} imports {each.module} inside a function.")
        found += _upward(each, where, order)
    return found


def _upward(each: Import, where: str, order: dict[str, tuple[int, int]]) -> list[str]:
    parts = each.module.split(".")
    if parts[0] != PACKAGE or len(parts) < 2:
        return []
    importer, imported = _top(Path(each.file)), parts[1]
    if importer == imported or imported not in order:
        return []
    if importer in WITHOUT_LEVEL:
        return [f"{where} imports {each.module}; it may import nothing of ours."]
    if importer in order and order[imported] > order[importer]:
        return [f"{where} imports {each.module}, which is above {importer}."]
    return []


def _may_be_late(each: Import) -> bool:
    return any(
        file in ("*", each.file) and (module == "*" or f"{each.module}.".startswith(f"{module}."))
        for file, module in LATE_IMPORTS
    )


def _top(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_imports_go_downwards_and_kafka_stays_behind_its_door() -> None:
    assert not complaints(ROOT)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"conf.py": "from . import producers"}, "conf.py:1 imports django_kafka.producers, which is above conf."),
        ({"conf.py": "from .producers import send"}, "conf.py:1 imports django_kafka.producers, which is above conf."),
        (
            {"conf/parsing.py": "\nfrom ..services import produce"},
            "conf/parsing.py:2 imports django_kafka.services, which is above conf.",
        ),
        (
            {"clients/a.py": "from django_kafka.models.letters import Letter"},
            "clients/a.py:1 imports django_kafka.models.letters, which is above clients.",
        ),
        (
            {"retries.py": "if True:\n    import django_kafka.consuming.worker"},
            "retries.py:2 imports django_kafka.consuming.worker, which is above retries.",
        ),
        (
            {"retries.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .execution import run"},
            "retries.py:3 imports django_kafka.execution, which is above retries.",
        ),
        ({"services.py": "import confluent_kafka"}, "services.py:1 imports confluent_kafka; only clients/ may."),
        (
            {"services.py": "from confluent_kafka.admin import AdminClient"},
            "services.py:1 imports confluent_kafka.admin; only clients/ may.",
        ),
        ({"conf.py": "def read():\n    import json"}, "conf.py:2 imports json inside a function."),
        (
            {"conf.py": "class A:\n    async def read(self):\n        from . import exceptions"},
            "conf.py:3 imports django_kafka.exceptions inside a function.",
        ),
        ({"__init__.py": "from .conf import kafka"}, "__init__.py:1 imports django_kafka.conf; it may import nothing"),
        ({"helpers.py": ""}, "helpers has no level; add it to LEVELS."),
    ],
)
def test_a_violation_is_named(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    lay(tmp_path, files)

    assert [each for each in complaints(tmp_path) if each.startswith(complaint)], complaints(tmp_path)


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "__init__.py": "__version__ = '1'",
            "conf.py": "from . import exceptions\nfrom django.conf import settings",
            "clients/producer.py": "import confluent_kafka\nfrom ..conf import kafka\nfrom .errors import x",
            "clients/errors.py": "from confluent_kafka import KafkaError",
            "models/letters.py": "from ..clients import errors",
            "apps.py": "class A:\n    def ready(self):\n        from . import checks",
            "tracing.py": "def context():\n    from opentelemetry import trace",
            "migrations/0001_initial.py": "from django_kafka.services import x",
        },
    )

    assert not complaints(tmp_path)


def lay(root: Path, files: dict[str, str]) -> None:
    """Write files below a directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


NEEDS_APPS = {"models", "admin"}
"""What Django itself imports only when its applications are ready, and so all that imports these."""


def without_apps() -> set[str]:
    """Every module of the package that needs no models, neither itself nor by what it imports.

    Whatever imports a package is taken to import all of its modules.
    """
    modules = {_dotted(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if "migrations" not in path.parts}
    wanted = {module: {module.rpartition(".")[0]} for module in modules}
    for each in imports(ROOT):
        if not each.late and not each.typing:
            wanted[_dotted(Path(each.file))].add(each.module)
    needs = {module for module in modules if not NEEDS_APPS.isdisjoint(module.split(".")[1:2])}
    while more := {module for module in modules - needs if any(_within(name, needs) for name in wanted[module])}:
        needs |= more
    return modules - needs


def _dotted(path: Path) -> str:
    return ".".join([PACKAGE, *path.with_suffix("").parts]).removesuffix(".__init__")


def _within(name: str, modules: set[str]) -> bool:
    """Tell whether one of `modules` is, is in, or has in it what is called `name`."""
    return name != PACKAGE and any(f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.") for one in modules)


def test_no_module_reads_settings_while_it_is_imported() -> None:
    modules = sorted(without_apps())
    assert {"django_kafka.conf", "django_kafka.producing", "django_kafka.execution"} <= set(modules)
    code = """
import importlib, sys
from django.conf import settings
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(name, "needs settings:", error)
assert not settings.configured
"""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(
        command, env=environment, cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
