"""Where configurations lie, and everything that is wrong with a command line, said at once."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # only it says what it will run
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from labor_llm.errors import ConfigError, unknown
from labor_llm.paths import from_home

MODEL_PARTS = {"backbone", "adapter", "template", "label", "prompt", "scoring", "trainer"}
"""Sections of a run that matter only as far as its model refers to them."""
LANGUAGE, FITTED = "model.language", "model.fitted"
"""The language model within a model, and the run whose language model takes its place."""


def conf_folder() -> Path:
    """The folder of the shipped configurations: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class UserFolder(SearchPathPlugin):
    """Searches the user's folder before ours; Hydra's own ``--config-dir`` comes last and cannot replace."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the folder first."""
        if self.folder is not None:
            search_path.prepend("user", f"file://{self.folder}")


@contextmanager
def user_folder(folder: str | None) -> Iterator[None]:
    """Within the block, entries of ``folder`` add to ours and replace those of the same name."""
    path = from_home(Path(folder)).resolve() if folder else None
    if path is not None and not path.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {folder!r}")
    Plugins.instance().register(UserFolder)
    before, UserFolder.folder = UserFolder.folder, path
    try:
        yield
    finally:
        UserFolder.folder = before


def quoted(text: str) -> str:
    """``text`` as a value of Hydra's override grammar that OmegaConf reads back as the same text."""
    literal = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)
    return QuotedString(literal, Quote.single).with_quotes()


def is_readable(word: str) -> bool:
    """Whether Hydra's grammar can read an override."""
    try:
        OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return False
    return True


def one_line(error: BaseException) -> str:
    """A message of Hydra or OmegaConf without its cause's type, its search path and its internals."""
    text = str(error) or str(error.__cause__)
    lines: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.lower().endswith("search path:"):
            break
        if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https://")):
            lines.append(line)
    return " ".join(filter(None, lines))


def check_overrides(
    config_name: str,
    overrides: Sequence[str],
    sweep: bool = False,
    check_parts: Callable[[DictConfig], object] = lambda cfg: None,
) -> None:
    """Raise one ConfigError that lists, line by line, every override that cannot be.

    If there is one, ``check_parts`` adds what it has against the configuration of the others: a ConfigError.
    """
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed, problems = _parsed(overrides, loader)
        wrong = {id(override): lines for override in parsed if (lines := _wrong_choices(override, loader))}
        problems += [line for lines in wrong.values() for line in lines]
        sound = [override for override in parsed if id(override) not in wrong]
        for job in _jobs(sound, loader):
            problems += _refused(config_name, job, loader)
        if not problems:
            problems += _empty_sweeps(config_name, sound, loader)
        if not sweep and not problems:
            problems += _sweeps(config_name, sound, loader) or _unread(config_name, sound, loader)
        if problems:
            problems += _further(config_name, _jobs(sound, loader)[0], check_parts)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def jobs_of_sweep(config_name: str, overrides: Sequence[str]) -> list[str]:
    """The overrides of every job of a sweep, in its order; a ConfigError if its sweeper chooses as it goes."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given, _ = _parsed(overrides, loader)
        alone = [str(override.input_line) for override in given if not override.is_sweep_override()]
        sweeper = compose(config_name, alone, return_hydra_config=True).hydra.sweeper
        if not sweeper._target_.endswith(".BasicSweeper"):
            raise ConfigError(f"{sweeper._target_} chooses its jobs as it goes: they cannot be listed")
        swept, _ = _parsed([f"{key}={values}" for key, values in (sweeper.params or {}).items()], loader)
        own = [override for override in given if not override.key_or_group.startswith("hydra")]
        (jobs,) = BasicSweeper.split_arguments([*swept, *own], None)
    return [" ".join(words) for words in jobs]


def groups(config_name: str) -> dict[str, str | None]:
    """The groups that a verb's configuration chooses from, in its order, and the entry of each by default."""
    chosen = compose(config_name, return_hydra_config=True).hydra.runtime.choices
    names = [name for name in reversed(list(chosen)) if not name.startswith("hydra/") and "@" not in name]
    return {name: chosen[name] for name in names}


def _parsed(overrides: Iterable[str], loader: ConfigLoader) -> tuple[list[Override], list[str]]:
    """The overrides that Hydra can read, and what is wrong with the others."""
    parser = OverridesParser.create(loader)
    parsed: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException as error:
            key, equals, _ = text.partition("=")
            hint = f"quote special characters: \"{key}='...'\""
            if re.search(r"""[{,]\s*(['"])[^'"]*\1\s*:""", text):
                hint = "within braces, keys stand without quotes: {1:male,2:female}"
            elif re.search(r"\.-\d+$", key):
                hint = "a negative key stands within braces: {-4:null}"
            reason = f"{str(error).splitlines()[0]}; {hint}"
            problems.append(f"cannot read {text!r}: {reason if equals else 'expected key=value'}")
    return parsed, problems


def _is_group(name: str, loader: ConfigLoader) -> bool:
    return bool(loader.get_group_options(name) or loader.list_groups(name))


def _wrong_choices(override: Override, loader: ConfigLoader) -> list[str]:
    """The entries that a group does not have; deletions and computed names are left to Hydra."""
    group = override.key_or_group
    if override.type is OverrideType.DEL or not _is_group(group, loader):
        return []
    problems = []
    for choice in _choices(override):
        folder, _, name = f"{group}/{choice}".rpartition("/")
        known = loader.get_group_options(folder)
        if re.fullmatch(r"[\w./-]+", choice) and name not in known:
            problems.append(unknown(group, choice, known or loader.get_group_options(group)))
    return problems


def _choices(override: Override) -> list[str]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    value = override.value()
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _jobs(overrides: Sequence[Override], loader: ConfigLoader) -> list[list[str]]:
    """Command lines without sweeps, groups first, that between them try every entry of a swept group."""
    ordered = sorted(overrides, key=lambda override: not _is_group(override.key_or_group, loader))
    columns = [column for override in ordered if (column := _singles(override, loader))]
    return [
        [column[row % len(column)] for column in columns]
        for row in range(max((len(column) for column in columns), default=1))
    ]


def _singles(override: Override, loader: ConfigLoader) -> list[str]:
    """An override as one or several without a sweep; one value suffices to judge a key."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = override.value()
    values = [str(value.start)] if isinstance(value, IntervalSweep) else _choices(override)
    if not _is_group(override.key_or_group, loader):
        values = values[:1]
    return [f"{override.get_key_element()}={value}" for value in values]


def _refused(config_name: str, job: Sequence[str], loader: ConfigLoader) -> list[str]:
    """What Hydra refuses: overrides are added one at a time to those that it takes."""
    if _complaint(config_name, job) is None:
        return []
    problems: list[str] = []
    taken: list[str] = []
    standing = _complaint(config_name, taken)
    for override in job:
        complaint = _complaint(config_name, [*taken, override])
        if complaint is None or standing is not None:  # an override is not blamed for what was wrong before
            taken, standing = [*taken, override], complaint
        else:
            problems.append(_explained(override, complaint, config_name, taken, loader))
    return problems if standing is None else [*problems, one_line(standing)]


def _further(config_name: str, job: Sequence[str], check_parts: Callable[[DictConfig], object]) -> list[str]:
    """What is wrong with the parts that the overrides which can be composed describe."""
    if _complaint(config_name, []) is not None:
        return []
    taken: list[str] = []
    for override in job:
        taken += [override] if _complaint(config_name, [*taken, override]) is None else []
    try:
        check_parts(compose(config_name, taken))
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _complaint(config_name: str, job: Sequence[str]) -> Exception | None:
    """Why a command line does not compose; Hydra raises anything from OSError to ValueError for that."""
    try:
        compose(config_name, list(job))
    except Exception as error:
        return error
    return None


def _explained(
    override: str, complaint: Exception, config_name: str, taken: Sequence[str], loader: ConfigLoader
) -> str:
    key, own = override.partition("=")[0], groups(config_name)
    if _is_group(key, loader) and key not in own and not key.startswith("hydra/"):
        return f"{override}: {config_name} has no {key} to choose; it has {', '.join(own) or 'no groups'}"
    if not isinstance(complaint.__cause__, ConfigAttributeError | ConfigKeyError):
        return f"{override}: {one_line(complaint)}"
    cfg = compose(config_name, list(taken), return_hydra_config=key.startswith("hydra."))
    keys = {*_dotted_keys(OmegaConf.to_container(cfg)), *own} - {"hydra"}
    for free in (key.rsplit(".", depth)[0] for depth in range(key.count("."))):
        if isinstance(OmegaConf.select(cfg, free), DictConfig) and not (OmegaConf.select(cfg, free)):
            return f"{override}: names in {free} are your own: write '+{override}', or add them in a file"
    return _unknown_key(key, keys)


def _dotted_keys(node: Any, above: str = "") -> Iterator[str]:
    for name, child in node.items() if isinstance(node, dict) else ():
        if name != "_target_":
            yield f"{above}{name}"
            yield from _dotted_keys(child, f"{above}{name}.")


def _unknown_key(key: str, keys: Iterable[str]) -> str:
    """Names the keys beside the unknown one and those that end alike, else the near misses."""
    above, _, last = key.rpartition(".")
    related = [name for name in keys if name.rpartition(".")[0] == above or name.rpartition(".")[2] == last]
    return unknown("key", key, related or difflib.get_close_matches(key, keys) or keys)


def _sweeps(config_name: str, overrides: Sequence[Override], loader: ConfigLoader) -> list[str]:
    """Sweeps outside a multirun, which is asked for by a flag or by the configuration itself."""
    sweeps = [str(override.input_line) for override in overrides if override.is_sweep_override()]
    if not sweeps:
        return []
    cfg = compose(config_name, _jobs(overrides, loader)[0], return_hydra_config=True)
    if cfg.hydra.mode is RunMode.MULTIRUN:
        return []
    return [f"{text}: add -m to run one job per value (a list is written [a,b])" for text in sweeps]


def _empty_sweeps(config_name: str, overrides: Sequence[Override], loader: ConfigLoader) -> list[str]:
    """Sweeps without a value, on the command line or in a file, which would launch no job and say nothing."""
    cfg = compose(config_name, _jobs(overrides, loader)[0], return_hydra_config=True)
    of_file = [f"{key}={values}" for key, values in (cfg.hydra.sweeper.get("params") or {}).items()]
    swept = [each for each in (*overrides, *_parsed(of_file, loader)[0]) if each.is_sweep_override()]
    return [
        f"{override.input_line}: there is no such value, so no job would run{_globs(override, loader)}"
        for override in swept
        if override.is_discrete_sweep() and not _choices(override)
    ]


def _globs(override: Override, loader: ConfigLoader) -> str:
    """What a glob can choose from."""
    known = loader.get_group_options(override.key_or_group)
    if known:
        return f". Known: {', '.join(known)}"
    return "; glob(...) chooses among the entries of a group" if "glob(" in str(override.input_line) else ""


def _unread(config_name: str, overrides: Sequence[Override], loader: ConfigLoader) -> list[str]:
    """Overrides of what the chosen model does not read; in a sweep over models that is no mistake."""
    cfg = compose(config_name, _jobs(overrides, loader)[0], return_hydra_config=True)
    if "model" not in cfg or cfg.hydra.mode is RunMode.MULTIRUN:
        return []
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    fitted = _has(cfg, LANGUAGE) and _has(cfg, FITTED)
    if fitted:
        del raw["model"]["language"]
    read, model = _references(raw), cfg.hydra.runtime.choices.model
    problems = []
    for override in overrides:
        key = override.package or override.key_or_group
        of_parts = key.partition(".")[0] in MODEL_PARTS or (fitted and f"{key}.".startswith(f"{LANGUAGE}."))
        if of_parts and not any(_overlap(key, other) for other in read):
            instead = f"; it has that of {FITTED}" if fitted else _own(cfg, key)
            problems.append(f"{override.input_line}: model={model} does not read {key}{instead}")
    return problems


def _own(cfg: DictConfig, key: str) -> str:
    """Where the model has a value of its own for the key, if it has one."""
    homes = [f"{above}.{key}" for above in ("model", LANGUAGE)]
    return next((f"; it has {home}" for home in homes if _has(cfg, home)), "")


def _has(cfg: DictConfig, key: str) -> bool:
    return OmegaConf.select(cfg, key, throw_on_resolution_failure=False) is not None


def _references(raw: Any) -> set[str]:
    """The keys of a model's parts that other sections refer to, and those that these refer to."""
    found: set[str] = set()
    nodes = [child for name, child in raw.items() if name not in {"hydra", *MODEL_PARTS}]
    while nodes:
        references = " ".join(re.findall(r"\$\{[^}]*", str(nodes.pop())))
        new = set(re.findall(rf"(?<!\w)(?<!\w\.)(?:{'|'.join(MODEL_PARTS)})\b[\w.]*", references)) - found
        found |= new
        nodes += [_node(raw, key) for key in new]
    return found


def _node(raw: Any, key: str) -> Any:
    for name in key.split("."):
        raw = raw.get(name, {}) if isinstance(raw, dict) else {}
    return raw


def _overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or lies within it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def check_values(cfg: DictConfig) -> None:
    """Raise one ConfigError that lists every value that is missing or refers to nothing."""
    problems = dict.fromkeys(_broken_values(cfg, ""))
    if not problems:
        problems |= dict.fromkeys(_no_folders(cfg))
    if problems:
        raise ConfigError("\n".join(problems))


def _no_folders(cfg: DictConfig) -> Iterator[str]:
    """A line for each folder of a verb that is a number or a switch, or null where there must be one."""
    for key in ("outputs", "run", "folder"):
        value = cfg.get(key, "")
        if value is None and key == "outputs" and "run" not in cfg:
            yield "outputs names the folder that results go to, got null"
        elif value is not None and not isinstance(value, str):
            yield f"{key} names a folder, got {value!r}: write {key}=./NAME if it is called so"


def _broken_values(node: Any, above: str) -> Iterator[str]:
    for name in names(node):
        key = f"{above}.{name}" if above else str(name)
        if problem := broken_value(node, name, key):
            yield problem
        elif not OmegaConf.is_interpolation(node, name):
            yield from _broken_values(node[name], key)


def broken_value(node: Any, name: Any, key: str) -> str | None:
    """Why a value cannot be read, in words; None if it can."""
    try:
        node[name]
    except InterpolationToMissingValueError as error:
        missing = one_line(error).rpartition(": ")[2]
        return f"{missing} has no value: add {missing}=..."
    except MissingMandatoryValue:
        return f"{key} has no value: add {key}=..."
    except OmegaConfBaseException as error:
        return f"{key}: {one_line(error)}"
    return None


def home(node: Any, name: Any, key: str) -> str:
    """The key a user overrides: that of the value itself, or of the value it is taken from."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    alias = re.fullmatch(r"\$\{(\w[\w.]*)\}", str(raw[name]))
    return alias[1] if alias else key


def names(node: Any) -> list[Any]:
    """The keys of a section, the positions of a list, and nothing of a value."""
    if isinstance(node, DictConfig):
        return list(node.keys())
    return list(range(len(node))) if isinstance(node, ListConfig) else []
