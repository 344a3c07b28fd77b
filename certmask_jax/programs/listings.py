"""What there is by name, from the tables of entries: on a screen, and as Markdown for documents."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping

from certmask_jax import data, models
from certmask_jax.programs import imported
from certmask_jax.programs.command_line import CommandLine
from certmask_jax.programs.defense_entries import BUILT_FOR, DEFENSES, SECOND, DefenseEntry
from certmask_jax.programs.evidence_entries import EVIDENCE, EvidenceEntry
from certmask_jax.programs.mask_entries import MASKS
from certmask_jax.programs.spec_keys import Key
from certmask_jax.programs.threat_entries import THREATS

WIDTH = 80

_OWN = {
    "--model package.module:create": "called with the options of models.create that are given",
    "--dataset package.module:load": "called with data_config and the options of data.load that "
    "are given",
    "--defense package.module:Class:key=value": "called with the masks and its keys; masks as for "
    "every defense",
}


def everything() -> str:
    """All that there is by name, and threats as they are typed: what ``certify --list`` prints."""
    sections = {
        "data sets": {**data.names(), **_installed(imported.DATASETS)},
        "models": {**models.names(), **_installed(imported.MODELS)},
        "defenses": {
            **{name: _about_defense(entry) for name, entry in DEFENSES.items()},
            **_installed(imported.DEFENSES),
        },
        "defenses on local evidence, of models with local logits (BagNets)": {
            name: _about_evidence(entry) for name, entry in EVIDENCE.items() if entry.is_local
        },
        "defenses on bands of an image, each of which the model sees alone": {
            name: _about_evidence(entry) for name, entry in EVIDENCE.items() if not entry.is_local
        },
        "threats, as they are typed": {
            typed: about for entry in THREATS for typed, about in entry.examples.items()
        },
        "masks of any defense": _about_masks(),
        "keys": {key.name: _about_key(key) for key in _keys()},
    }
    parts = [f"{title}:\n{_columns(names)}" for title, names in sections.items()]
    own = "\n".join(f"  {what}\n{_filled(about, '      ')}" for what, about in _OWN.items())
    return "\n".join([*parts, f"your own, from where Python finds modules:\n{own}"])


def defenses_as_markdown() -> str:
    """A table of the defenses: name, what it is, its keys with defaults, the usual masks."""
    rows = [
        (f"`{name}`", entry.about, _key_cells(entry.keys, entry), f"`{entry.masks}`")
        for name, entry in DEFENSES.items()
    ]
    rows += [(f"`{e.name}`", e.about, _key_cells(e.keys), "none") for e in EVIDENCE.values()]
    return _table(("defense", "what it is", "keys", "masks, if none are given"), rows)


def masks_as_markdown() -> str:
    """A table of the kinds of masks: the key that chooses each, what it is, its other keys."""
    rows = [(f"`{one.example}`", one.about, _key_cells(one.keys[1:])) for one in MASKS]
    rows.append((f"`{BUILT_FOR.name}=SIZE`", BUILT_FOR.about, ""))
    return _table(("masks", "what they are", "more keys"), rows)


def threats_as_markdown() -> str:
    """A table of threats: what is typed, and what attacks then."""
    rows = [(f"`{typed}`", about) for entry in THREATS for typed, about in entry.examples.items()]
    return _table(("threat", "what attacks"), rows)


def keys_as_markdown() -> str:
    """A table of all keys of defenses and masks."""
    rows = [(f"`{key.name}`", key.about, key.default) for key in _keys()]
    return _table(("key", "what it says", "default"), rows)


def options_as_markdown(parser: CommandLine) -> str:
    """A table of the options of a program, one for each group of its help."""
    parts = []
    for group in parser._action_groups:
        rows = [
            (f"`{_spelling(action)}`", (action.help or "") % _defaults(parser, action))
            for action in group._group_actions
            if action.help not in (None, argparse.SUPPRESS) and action.dest != "help"
        ]
        if rows:
            parts.append(f"**{group.title}**\n\n{_table(('option', 'what it says'), rows)}")
    return "\n\n".join(parts)


def _about_defense(entry: DefenseEntry) -> str:
    keys = [_with_default(key) for key in entry.keys]
    if entry.second_round:
        keys.append(f"{SECOND} before keys of masks: those of the second round")
    usual = "" if entry.masks == DEFENSES["plurality"].masks else f"masks: {entry.masks}"
    said = "; ".join(part for part in (", ".join(keys), usual) if part)
    return f"{entry.about} [{said}]" if said else entry.about


def _about_evidence(entry: EvidenceEntry) -> str:
    return f"{entry.about} [{', '.join(map(_with_default, entry.keys))}]"


def _about_masks() -> dict[str, str]:
    lines = {}
    for one in MASKS:
        keys = ", ".join(map(_with_default, one.keys[1:]))
        lines[one.example] = f"{one.about} [{keys}]" if keys else one.about
    return {**lines, f"{BUILT_FOR.name}=SIZE": BUILT_FOR.about}


def _about_key(key: Key) -> str:
    return key.about + (f" (default: {key.default})" if key.default else "")


def _with_default(key: Key) -> str:
    return f"{key.name}={key.default}" if key.default and " " not in key.default else key.name


def _keys() -> list[Key]:
    """Every key once, those of defenses first, with all that entries say of it.

    Without a default where they differ in it.
    """
    by_name: dict[str, Key] = {}
    on_evidence = (e.keys for e in EVIDENCE.values())
    entries = [
        *(e.keys for e in DEFENSES.values()),
        *on_evidence,
        *(m.keys for m in MASKS),
        (BUILT_FOR,),
    ]
    for key in (key for keys in entries for key in keys):
        before = by_name.setdefault(key.name, key)
        is_new = key.about not in before.about
        if is_new or before.default != key.default:
            about = f"{before.about}; {key.about}" if is_new else before.about
            default = key.default if key.default == before.default else ""
            by_name[key.name] = Key(key.name, key.read, about, default)
    return list(by_name.values())


def _installed(group: str) -> dict[str, str]:
    return {name: f"{path}, installed" for name, path in imported.registered(group).items()}


def _columns(names: Mapping[str, str]) -> str:
    width = 4 + max(map(len, names))
    return "\n".join(
        f"  {name}".ljust(width) + _filled(about, " " * width).lstrip()
        for name, about in names.items()
    )


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _key_cells(keys: Iterable[Key], entry: DefenseEntry | None = None) -> str:
    cells = [f"`{_with_default(key)}`" for key in keys]
    if entry is not None and entry.second_round:
        cells.append(f"`{SECOND}` before keys of masks")
    return ", ".join(cells)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _spelling(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes_value = action.option_strings and action.nargs != 0
    return f"{names} {action.metavar or action.dest.upper()}" if takes_value else names


def _defaults(parser: CommandLine, action: argparse.Action) -> dict[str, object]:
    return {**vars(action), "prog": parser.prog}
