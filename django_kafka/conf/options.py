"""The `options` block: our keys, which are merged over their siblings, and librdkafka's own, which are passed on."""

from __future__ import annotations

from collections.abc import Mapping

from .blocks import GIVEN_TWICE, RESERVED_PROPERTY, WRONG_VALUE, Block, subpath
from .librdkafka import CLUSTER_SAME, our_key, reason_against
from .secrets import Options, shown


def merge_options(block: Block) -> Block:
    """Move our keys from the block's `options` over their siblings and return the rest: what has a dot in its name."""
    options = block.block("options")
    for key in [key for key in options.values if not (isinstance(key, str) and "." in key)]:
        value = options.values.pop(key)
        if key in ("name", "options"):
            block.problem(WRONG_VALUE, f"{options.path} may not hold `{key}`.", path=subpath(options.path, key))
            continue
        block.moved[key] = subpath(options.path, key)
        block.values[key] = value
    return options


def rename(block: Block, alias: str, key: str) -> None:
    """Read `alias` as `key`; to give both is a problem."""
    if alias not in block.values:
        return
    value, path = block.values.pop(alias), block.path_to(alias)
    if key in block.values:
        sentence = f"{path} and {block.path_to(key)} say the same."
        block.problem(GIVEN_TWICE, sentence, f"Keep `{key}`.", path=path)
        return
    block.values[key] = value
    block.moved[key] = path


def refuse_reserved(block: Block) -> None:
    """Report, and drop, the properties that are ours to set."""
    for key in [key for key in block.values if isinstance(key, str)]:
        if key not in block.known and (reason := reason_against(key)):
            path = block.path_to(key)
            block.problem(RESERVED_PROPERTY, f"{path} may not be given.", reason, path=path)
            del block.values[key]


def read_options(options: Block, *given: tuple[Mapping[str, tuple[str, ...]], Mapping[str, str]]) -> Options:
    """Return librdkafka's own properties; `given` are pairs of what says the same as our keys, and where those are."""
    refuse_reserved(options)
    kept: dict[str, object] = {}
    for name, value in options.values.items():
        if isinstance(value, str | bool | int | float):
            kept[name] = value
        else:
            path = options.path_to(name)
            sentence = f"{path} is {shown(value, name)}; allowed: a text, a number, True or False."
            options.problem(WRONG_VALUE, sentence, path=path)
    for same, paths in given:
        _find_twice(options, same, paths)
    return Options(kept)


def _find_twice(options: Block, same: Mapping[str, tuple[str, ...]], paths: Mapping[str, str]) -> None:
    for key, properties in same.items():
        places = [paths[key]] if key in paths else []
        places += [options.path_to(name) for name in properties if name in options.values]
        if len(places) > 1:
            way_out = 'Leave the property out; other logins go into an entry of KAFKA["clusters"].'
            hint = way_out if same is CLUSTER_SAME else f"Keep one of them, `{key}` if you can."
            options.problem(GIVEN_TWICE, f"{' and '.join(places)} say the same.", hint, path=places[-1])


def advice(block: Block, same: Mapping[str, tuple[str, ...]]) -> Mapping[str, str]:
    """Return what to say about keys of this block that are librdkafka's, or nearly."""
    found = {}
    for key in (key for key in block.values if isinstance(key, str)):
        if ours := our_key(key, same):
            found[key] = f'That is "{ours}" here.'
        elif "." in key:
            found[key] = "librdkafka's own properties go into `options`."
    return found


def is_true(value: object) -> bool:
    """Tell whether librdkafka reads this value as true."""
    return str(value).strip().lower() in ("true", "t", "1")
