"""What `labor-llm VERB --help` says: the verb's settings in the words of its configuration file."""

from itertools import takewhile

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from labor_llm.configs import conf_folder, groups

FLAGS = """
  --cfg job            show the whole configuration, run nothing
  -m key=1,2 ...       run every combination; hydra/launcher=... says where; with --cfg job: list them, run nothing
  --config-dir FOLDER  your own entries, which add to these or replace those of the same name
  --hydra-help         all other flags
"""


def usage(verb: str) -> str:
    """What the verb does, its settings and their defaults, and the entries of its groups."""
    lines = (conf_folder() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    sections = {
        "Settings, key=value:": _settings(lines),
        "Groups and their entries, group=entry, [in brackets] by default:": _entries(verb),
    }
    shown = ["\n".join(["", title, *rest, ""]) for title, rest in sections.items() if rest]
    return "".join(["\n".join([*head, ""]), *shown, FLAGS])


def _settings(lines: list[str]) -> list[str]:
    """The lines of a configuration file that set the verb's own values."""
    kept, others = [], False
    for line in lines:
        if line and line[0] not in " -":
            others = line.startswith(("#", "defaults:", "hydra:"))
        kept += [f"  {line}"] if line and not others else []
    return kept


def _entries(verb: str) -> list[str]:
    """A line for each group that the verb's configuration chooses from."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        chosen = groups(verb)
        options = {name: loader.get_group_options(name) for name in chosen}
    return [
        f"  {name}: {', '.join(f'[{entry}]' if entry == chosen[name] else entry for entry in entries)}"
        for name, entries in options.items()
        if entries
    ]
