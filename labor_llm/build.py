"""From a configuration to objects: the only place where Hydra instantiates."""

import inspect
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from labor_llm.configs import broken_value, home, names, one_line
from labor_llm.errors import ConfigError, LaborLLMError, unknown

USER_MISTAKES = (
    LaborLLMError,
    InstantiationException,
    OmegaConfBaseException,
    ValueError,
    TypeError,
    ImportError,
    OSError,
)


def build(cfg: DictConfig, sections: Iterable[str]) -> dict[str, Any]:
    """Construct the named sections of a configuration, or raise one ConfigError that lists every mistake."""
    problems: list[str] = [
        f"{section}: its file has no _target_. Begin it with the name of one of ours, such as `defaults: [table]`"
        for section in sections
        if isinstance(cfg[section], DictConfig) and "_target_" not in cfg[section]
    ]
    parts = {section: _part(cfg, section, section, problems) for section in sections}
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return parts


def _part(above: Any, name: Any, key: str, problems: list[str]) -> Any:
    """What a value describes; whatever prevents it is added to ``problems``, children before parents."""
    if problem := broken_value(above, name, key):
        problems.append(problem)
        return None
    node, key = above[name], home(above, name, key)
    if not isinstance(node, DictConfig | ListConfig):
        return node
    broken: dict[str, None] = {}
    for child in names(node):
        before = len(problems)
        _part(node, child, f"{key}.{child}", problems)
        if len(problems) > before:
            broken[child] = None
    if broken and "_target_" not in node:
        return None
    if no_numbers := list(_no_numbers(node, key)):
        problems += no_numbers
        return None
    try:
        return instantiate(node, _convert_="all", **broken)
    except (InstantiationException, OmegaConfBaseException) as error:
        problems += _explained(error, node, key, broken)
    return None


def _no_numbers(node: Any, key: str) -> Iterator[str]:
    """A line for each field that takes numbers and is true or false, which Python counts as 1 and 0."""
    try:
        hints = get_type_hints(get_object(node._target_)) if "_target_" in node else {}
    except Exception:  # no such class, or a name that only type checkers know
        hints = {}
    for name, hint in hints.items():
        kinds = set(_kinds(hint))
        if name in node and kinds & {int, float} and not kinds & {bool, Any, object}:
            values = _values(OmegaConf.select(node, name, throw_on_resolution_failure=False))
            wrong = [value for value in values if isinstance(value, bool)]
            if wrong:
                yield f"{home(node, name, f'{key}.{name}')}: must be a number, got {str(wrong[0]).lower()}"


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of; of a literal, those of its values."""
    if get_origin(hint) is Literal:
        yield from map(type, get_args(hint))
    elif parts := get_args(hint):
        for part in parts:
            yield from _kinds(part)
    else:
        yield hint


def _values(node: Any) -> Iterator[Any]:
    """A value, or those of a list or mapping."""
    children = node.values() if isinstance(node, DictConfig) else node if isinstance(node, ListConfig) else None
    if children is None:
        yield node
    else:
        for child in children:
            yield from _values(child)


def _explained(error: Exception, node: Any, key: str, broken: Container[Any]) -> Iterator[str]:
    """One line per mistake in a component itself; its ``broken`` parts have been reported already."""
    cause = error.__cause__ or error
    if isinstance(cause, ValidationError):
        for detail in cause.errors():
            if not broken or (detail["loc"] and detail["loc"][0] not in broken):
                yield _field_line(detail, node, key)
    elif not isinstance(cause, USER_MISTAKES):
        raise cause
    elif not broken:
        yield f"{key}: {one_line(cause)}"


def _field_line(detail: Mapping[str, Any], node: DictConfig, key: str) -> str:
    """A mistake in one field, under the key that mends it."""
    where = _where(detail["loc"], node, key)
    if detail["type"] == "unexpected_keyword_argument" and len(detail["loc"]) == 1:
        fields = inspect.signature(get_object(node._target_)).parameters
        return unknown("key", where, [f"{key}.{name}" for name in fields])
    if detail["type"] == "value_error":
        return f"{where}: {detail['ctx']['error']}"
    text = f"{where}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
    return text if detail["type"] == "missing" else f"{text}, got {detail['input']!r:.100}"


def _where(loc: tuple[int | str, ...], node: Any, key: str) -> str:
    """The dotted key of a field, as deep as the configuration goes; pydantic goes on into types."""
    for name in loc:
        if name not in names(node):
            return f"{key}.{name}" if isinstance(node, DictConfig) else key
        key, node = home(node, name, f"{key}.{name}"), node[name]
    return key
