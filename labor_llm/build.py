"""From a configuration to objects: the only place where Hydra instantiates."""

import inspect
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig
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
    try:
        return instantiate(node, _convert_="all", **broken)
    except (InstantiationException, OmegaConfBaseException) as error:
        problems += _explained(error, node, key, broken)
    return None


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
