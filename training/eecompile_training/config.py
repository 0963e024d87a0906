"""A YAML file as a validated config: what a key may be called and what it may hold is in the schema, and a fault names
the file, the line, the key and the names that there are."""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from eecompile.errors import UsageError

Config = TypeVar("Config", bound=BaseModel)
Location = tuple[str | int, ...]


def load_config(path: Path, schema: type[Config], recipes: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """The config of a YAML file. recipes: defaults by the name that the file's key `recipe` gives; its own keys win.

    Relative paths in it are relative to the working directory. Raises UsageError for what is not readable, keys that
    `schema` does not have, values out of range, and unknown recipes.
    """
    node = _compose(path)
    given = yaml.SafeLoader.construct_document(yaml.SafeLoader(""), node) if node is not None else {}
    if not isinstance(given, dict):
        raise UsageError("the config is not a mapping", where=str(path), mend="write lines of `key: value`")
    merged = merge(_recipe(path, given.get("recipe"), recipes or {}), given)
    try:
        return schema.model_validate(merged)
    except ValidationError as e:
        raise _fault(path, node, schema, e) from e


def has_key(path: Path, key: str) -> bool:
    """Whether a YAML file has this key at its top. Raises UsageError for what is not readable."""
    node = _compose(path)
    return isinstance(node, yaml.MappingNode) and any(k.value == key for k, _ in node.value)


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` on top of `defaults`: mappings key by key, everything else as a whole."""
    merged = dict(defaults)
    for key, value in given.items():
        known = merged.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(known, value) if both else value  # type: ignore[arg-type]
    return merged


def dump_config(config: BaseModel) -> str:
    """The resolved config, every default written out, as YAML that `load_config` reads."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Each key whose value is another, as "data.length: 128 before, 256 now"."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old} before, {new} now"


def _compose(path: Path) -> yaml.Node | None:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot be read ({e})", where=str(path), mend="give a YAML file") from e
    except (yaml.YAMLError, RecursionError) as e:
        raise UsageError(f"not YAML: {e}", where=str(path)) from e
    if node is not None:
        _refuse_twins(path, node)
    return node


def _refuse_twins(path: Path, node: yaml.Node) -> None:
    """YAML lets a key stand twice and takes the last; here that is a mistake."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise UsageError(f"{key.value} stands twice", where=_place(path, key), mend="leave one of them")
            seen.add(key.value)
            _refuse_twins(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(path, item)


def _recipe(path: Path, name: Any, recipes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in recipes:
        known = ", ".join(sorted(recipes)) or "none here"
        raise UsageError(f"there is no recipe {name!r}", where=str(path), mend=f"recipes: {known}")
    return recipes[name]


def _fault(path: Path, node: yaml.Node | None, schema: type[BaseModel], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    location: Location = first["loc"]
    found, keys = _node_at(node, location)
    name = ".".join(map(str, keys)) or "the config"
    if first["type"] == "extra_forbidden":
        names = ", ".join(sorted(_names_at(schema, location[:-1])))
        return UsageError(f"{name}: there is no such key", where=_place(path, found), mend=f"keys here: {names}")
    if first["type"] == "missing":
        return UsageError(f"{'.'.join(map(str, location))} is missing", where=_place(path, found), mend="add the key")
    return UsageError(f"{name}: {first['msg']}", where=_place(path, found), mend="see docs/TRAINING.md")


def _place(path: Path, node: yaml.Node | None) -> str:
    return str(path) if node is None else f"{path}, line {node.start_mark.line + 1}"


def _node_at(node: yaml.Node | None, location: Location) -> tuple[yaml.Node | None, list[str | int]]:
    """The deepest node of the file on the way to `location`, and the keys that lead there; a union's tag is no key."""
    keys: list[str | int] = []
    for part in location:
        if isinstance(node, yaml.MappingNode):
            value = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if value is None:
                continue
            node = value[1] if isinstance(value[1], yaml.CollectionNode) else value[0]
            keys.append(part)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            keys.append(part)
    return node, keys


def _names_at(schema: type[BaseModel], location: Location) -> set[str]:
    """Names of the fields that the schema has at `location`."""
    here = {schema}
    for part in location:
        inside = {m for model in here if part in model.model_fields for m in _models(model.model_fields[str(part)])}
        tagged = {model for model in here if any(part in _literals(f) for f in model.model_fields.values())}
        here = inside or tagged or here
    return {name for model in here for name in model.model_fields}


def _models(field: Any) -> Iterator[type[BaseModel]]:
    """The schemas in a field's annotation, however deep."""
    annotation = getattr(field, "annotation", field)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _literals(field: Any) -> tuple[Any, ...]:
    annotation = field.annotation
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
