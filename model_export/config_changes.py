"""A configuration as users choose it: a named one, a TOML file, and single settings.

A file names the configuration that it starts from, and what differs:

    start = "demo"
    history_length = 50
    [training]
    max_epochs = 20
    [generator]
    type = "tiger"        # another type starts from that type's defaults
"""

import dataclasses
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from model_export.configs import (
    RUNS,
    CompactConfig,
    FamaeConfig,
    FamaePicturesConfig,
    FlattenedConfig,
    GaoqConfig,
    HashedTreeConfig,
    HubEncoderConfig,
    LetterConfig,
    MiniLmConfig,
    OpinionsConfig,
    PpOcrConfig,
    QuantizerConfig,
    ReadableConfig,
    RqKMeansConfig,
    RunConfig,
    SasRecConfig,
    TigerConfig,
    TreeConfig,
    with_ranker,
)
from model_export.picture_configs import CardConfig, JointPicturesConfig, PicturesConfig
from model_export.ranker_config import RankerConfig
from service.core.bundle import MAX_BEAM_LIMIT
from service.errors import GlyphrecError

START, TYPE, NONE = "start", "type", "none"
RANKER = "ranker"  # a setting of every run, although only a RankedRunConfig holds one
TYPES: dict[str, dict[str, Any]] = {
    "generator": {
        "tree": TreeConfig,
        "tree-hashed": HashedTreeConfig,
        "tiger": TigerConfig,
        "sasrec": SasRecConfig,
    },
    "encoder": {
        "compact": CompactConfig,
        "pp-ocr": PpOcrConfig,
        "hub": HubEncoderConfig,
        "minilm": MiniLmConfig,
        "famae": FamaeConfig,
        "famae-pictures": FamaePicturesConfig,
    },
    "quantizer": {
        "rq-vae": QuantizerConfig,
        "rq-kmeans": RqKMeansConfig,
        "letter": LetterConfig,
        "flattened": FlattenedConfig,
        "gaoq": GaoqConfig,
        "readable": ReadableConfig,
    },
    "opinions": {"weighed": OpinionsConfig, NONE: None},
    "pictures": {NONE: None, "photo": PicturesConfig, "joint": JointPicturesConfig, "card": CardConfig},
    RANKER: {NONE: None, "dlrm": RankerConfig},
}
MAY_BE_ZERO = {
    *("seed", "max_steps", "dropout", "hidden_share", "start_scale", "likeness", "recency", "weight_decay"),
    *("warmup_steps", "commitment", "settle_epochs", "alpha", "beta", "consistency", "penalty"),
    "depth",
}
AT_MOST = {
    "seed": 2**32 - 1,
    "dropout": 0.95,
    "hidden_share": 0.95,
    "recency": 1,
    "beam_limit": MAX_BEAM_LIMIT,
}
FIXED = ("name", "render.font_sha256")  # not chosen: the first is the start, the second is computed


def chosen(config: str, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration that `config` names, or that the file ending in .toml holds, with these settings.

    A setting is written as "training.max_epochs=20", with a value as in TOML; words need no quotes. The
    result has the name of the named configuration. Raises GlyphrecError that names the settings there are.
    """
    changes: dict[str, Any] = {}
    start = config
    if config.endswith(".toml"):
        changes = dict(_flat(_read(Path(config))))
        start = changes.pop(START, "base")
    if start not in RUNS:
        raise GlyphrecError(
            f"there is no configuration {start!r}. Choose one of {', '.join(RUNS)}, or give a file that ends "
            "in .toml."
        )
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name.strip():
            raise GlyphrecError(f"--set {setting}: write it as in training.max_epochs=20.")
        changes[name.strip()] = _value(value.strip())
    found: RunConfig = RUNS[start]()
    # A type comes before the settings of that type.
    for name in sorted(changes, key=lambda name: (not name.endswith(f".{TYPE}"), name.count("."))):
        found = _changed(found, name.split("."), changes[name], name)
    if not isinstance(found.generator, TreeConfig):
        found = dataclasses.replace(found, opinions=None)  # they are weighed for `tree` alone
    _check_together(found, changes)
    return found


def differences(config: RunConfig) -> list[str]:
    """What differs from the named configuration that it starts from: "training.max_epochs = 20 (40)"."""
    if config.name not in RUNS:
        return []
    ours, named = dict(flattened(config)), dict(flattened(RUNS[config.name]()))
    lines = [
        f"{name} = {_shown(value)}" + (f" ({_shown(named[name])})" if name in named else "")
        for name, value in ours.items()
        if name not in named or named[name] != value
    ]
    return [line for line in lines if not line.startswith(FIXED)]


def flattened(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Every setting with its value, in the order of the fields: ("training.max_epochs", 40)."""
    return _settings(config, "")


def as_toml(config: RunConfig) -> str:
    """A file that gives this configuration back."""
    lines = [f'{START} = "{config.name}"']
    settings = [(name, value) for name, value in flattened(config) if name not in FIXED]
    # TOML wants the settings without a table first.
    lines += [f"{name} = {_shown(value)}" for name, value in settings if "." not in name]
    tables: dict[str, list[str]] = {}  # a table may stand in the file only once
    for name, value in settings:
        room, _, field = name.rpartition(".")
        if room:
            tables.setdefault(room, []).append(f"{field} = {_shown(value)}")
    for room, fields in tables.items():
        lines += ["", f"[{room}]", *fields]
    return "\n".join(lines)


def _check_together(config: RunConfig, changes: Mapping[str, Any]) -> None:
    """Raise GlyphrecError for settings that do not go together, once all of them are made."""
    for name, value in changes.items():
        room = name.split(".")[0]
        part = _fields(config)[room]
        if isinstance(part, BaseModel):
            try:
                type(part).model_validate(_fields(part))
            except ValidationError as error:
                problem = error.errors()[0]
                if place := problem["loc"]:
                    name, value = f"{room}.{place[0]}", getattr(part, str(place[0]))
                raise _wrong(name, value, problem["msg"]) from None
    generator = config.generator
    if not isinstance(generator, TigerConfig) and generator.width % generator.num_heads:
        raise GlyphrecError(
            f"generator.width = {generator.width}: must be a multiple of generator.num_heads, "
            f"{generator.num_heads}."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise GlyphrecError(f"--config {path}: {error.strerror}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GlyphrecError(f"--config {path}: not TOML ({error}).") from None


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fields(part: Any) -> dict[str, Any]:
    """The fields of a part of a configuration, with their values."""
    if isinstance(part, BaseModel):
        return {name: getattr(part, name) for name in type(part).model_fields}
    found = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if isinstance(part, RunConfig):
        found.setdefault(RANKER, None)
    return found


def _is_part(value: Any) -> bool:
    return isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _settings(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in _fields(part).items():
        if types := _types(part, name):
            yield f"{prefix}{name}.{TYPE}", next(t for t, made in types.items() if _is_type(value, made))
        if _is_part(value):
            yield from _settings(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _is_type(value: Any, made: Any) -> bool:
    return value is None if made is None else type(value) is made


def _changed(part: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    """The part with one setting changed. Raises GlyphrecError."""
    name, rest = path[0], path[1:]
    fields = _fields(part)
    if name not in fields or whole in FIXED:
        raise _unknown(part, whole)
    if rest == [TYPE] and (types := _types(part, name)):
        return _replaced(part, name, _of_type(whole, types, value, fields[name]))
    if rest:
        if fields[name] is None:
            raise GlyphrecError(f"{whole}: {name} has no settings, because {name}.{TYPE} is {NONE}.")
        if not _is_part(fields[name]):
            raise GlyphrecError(f"{whole}: {name} is one setting without parts.")
        return _replaced(part, name, _changed(fields[name], rest, value, whole))
    if _is_part(fields[name]):
        inside = ", ".join(f"{whole}.{field}" for field in _fields(fields[name]))
        raise GlyphrecError(f"{whole} is a group of settings. Set one of {inside}.")
    return _replaced(part, name, _checked(part, name, value, whole))


def _types(part: Any, name: str) -> dict[str, Any]:
    """The types that a field of the part may have, by their names. Empty if it has one type."""
    if name not in TYPES or isinstance(part, BaseModel):
        return {}
    if name == RANKER:
        return TYPES[RANKER]
    may_be = get_args(get_type_hints(type(part))[name])
    return {word: made for word, made in TYPES[name].items() if issubclass(made or type(None), may_be)}


def _of_type(whole: str, types: Mapping[str, Any], wanted: Any, present: Any) -> Any:
    if wanted not in types:
        raise GlyphrecError(f"{whole} = {_shown(wanted)}: choose one of {', '.join(types)}.")
    made = types[wanted]
    if _is_type(present, made):
        return present
    if made is HubEncoderConfig:
        raise GlyphrecError(
            f"{whole} = {_shown(wanted)}: start from donut-base, trocr-base or deepseek-ocr-2-base, "
            "which name a checkpoint."
        )
    return None if made is None else made()


def _checked(part: Any, name: str, value: Any, whole: str) -> Any:
    annotation: Any = (
        type(part).model_fields[name].annotation
        if isinstance(part, BaseModel)
        else get_type_hints(type(part))[name]
    )
    if isinstance(value, list):
        value = tuple(value)
    try:
        checked = TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise _wrong(whole, value, error.errors()[0]["msg"]) from None
    if isinstance(checked, int | float) and (problem := _out_of_bounds(name, checked)):
        raise _wrong(whole, value, problem)
    return checked


def _out_of_bounds(name: str, number: float) -> str | None:
    if not 0 <= number < math.inf:
        return "must be a finite number that is not negative"
    if number == 0 and name not in MAY_BE_ZERO:
        return "must be above 0"
    most = AT_MOST.get(name)
    if most is not None and number > most:
        return f"must be at most {most:g}"
    return None


def _replaced(part: Any, name: str, value: Any) -> Any:
    if isinstance(part, BaseModel):
        return part.model_copy(update={name: value})  # checked in the end, with the part's other changes
    if name == RANKER:
        return with_ranker(part, value)
    return dataclasses.replace(part, **{name: value})


def _wrong(whole: str, value: Any, problem: str) -> GlyphrecError:
    return GlyphrecError(f"{whole} = {_shown(value)}: {problem[0].lower()}{problem[1:]}.")


def _unknown(part: Any, whole: str) -> GlyphrecError:
    room = "" if isinstance(part, RunConfig) else whole.split(".")[0]
    names = [name for name in _fields(part) if name not in FIXED]
    names += [TYPE] if room in TYPES else []
    where = f" of {room}" if room else ""
    return GlyphrecError(f"there is no setting {whole!r}. The settings{where} are {', '.join(names)}.")


def _shown(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)
