"""Writes the tables of settings at the end of docs/training.md, from their declarations in hlnet/training.

python scripts/make_settings_tables.py            --check says whether the page agrees, and writes nothing
"""

import argparse
import sys
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

from hlnet.training.run_config import run_settings
from hlnet.training.settings import PANELS

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
MARK = "<!-- settings: made by scripts/make_settings_tables.py -->\n"
HEAD = "| option | in a recipe | default | values | |\n|---|---|---|---|---|\n"
WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
TYPES = {str: "text", int: "whole number", float: "number", bool: "on or off"}


def values(kind, bounds):
    """What a setting may be, in words.

    >>> values(float, {"gt": 0, "le": 1}), values(tuple[int, ...], {}), values(Literal["a", "b"], {})
    ('number, above 0, at most 1', 'whole numbers', '`a`, `b`')
    """
    parts = [part for part in get_args(kind) if part is not ...]
    match get_origin(kind):
        case origin if origin is Literal:
            return ", ".join(f"`{part}`" for part in parts)
        case origin if origin is tuple:
            return f"{'two ' if len(parts) > 1 else ''}{'whole ' if int in parts else ''}numbers"
        case origin if origin is dict:
            return "names and values"
        case origin if origin in (Union, UnionType):
            return "whole number, or " + ("text" if str in parts else "`auto`")
    return ", ".join([TYPES[kind], *(f"{WORDS[name]} {limit:g}" for name, limit in bounds.items())])


def default(value):
    """A default, as a recipe writes it."""
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{','.join(f'{part:g}' for part in value) if isinstance(value, tuple) else value}`"


def tables():
    """All tables, one for each panel."""
    settings = run_settings()
    text = ""
    for panel in PANELS:
        text += f"\n### {panel or 'Data and tree'}\n\n{HEAD}"
        for one in (one for one in settings if one.panel == panel):
            option = "DATA" if one.name == "data" else f"`--{one.option.replace('_', '-')}`"
            place = f"`{one.table}.{one.name}`" if one.table else f"`{one.name}`"
            row = [option, place, default(one.default), values(one.type, one.bounds), one.description]
            text += f"| {' | '.join(row)} |\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the page is not as it would be made"
    )
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    before, mark, _ = page.partition(MARK)
    made = before + mark + tables()
    if arguments.check:
        return (
            0 if page == made else f"not as it would be made: {PAGE.name}; run python scripts/make_settings_tables.py"
        )
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
