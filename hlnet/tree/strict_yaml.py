"""YAML as people write it: names stay as written, and a doubled name is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from hlnet.errors import TreeError


def read_yaml(text: str) -> Any:
    """What a YAML text holds, of text, whole numbers, ``None``, lists and mappings alone.

    Raises:
        TreeError: if a name stands twice in a mapping, or is no text.
        yaml.YAMLError, RecursionError: if it is no YAML, or nested too deep.

    Example:
        >>> read_yaml("no: [010, 12:30, 7]")
        {'no': ['010', '12:30', 7]}
    """
    return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader


class _StrictLoader(yaml.SafeLoader):
    """YAML whose names stay as written (``no``, ``010``, ``12:30``), and in which a doubled key is an error.

    Only plain decimals and empty values are anything but text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise TreeError(f"a name must be text, not a list or mapping (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise TreeError(f"'{key.value}' appears twice under one node (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(0|-?[1-9][0-9]{0,8})\Z"), list("-0123456789")
)
