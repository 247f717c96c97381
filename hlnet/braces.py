"""Braces in file names, as bash and WebDataset write them."""

from __future__ import annotations

import re

from hlnet.errors import UsageError


def expanded(pattern: str) -> list[str]:
    """All names that a pattern with braces stands for, as in bash.

    Raises:
        UsageError: if a brace is not closed, or holds neither a range nor a list.

    Example:
        >>> expanded("{train-{08..10},val-0}.tar")
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-0.tar']
    """
    start = pattern.find("{")
    if start < 0 and "}" not in pattern:
        return [pattern]
    depth, commas = 0, [start]
    for end in range(len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[end], 0)
        if depth == 1 and pattern[end] == ",":
            commas.append(end)
        if depth < 0 or (depth == 0 and end > start):
            break
    if depth:
        raise UsageError(f"'{pattern}' has a brace without its other half; expected such as train-{{0000..0007}}.tar")
    parts = [pattern[a + 1 : b] for a, b in zip(commas, [*commas[1:], end], strict=True)]
    middles = [middle for part in parts for middle in expanded(part)] if len(parts) > 1 else _range(parts[0])
    rest = expanded(pattern[end + 1 :])
    return [pattern[:start] + middle + after for middle in middles for after in rest]


def _range(text: str) -> list[str]:
    match = re.fullmatch(r"([0-9]{1,7})\.\.([0-9]{1,7})(?:\.\.([0-9]{1,7}))?", text)
    if match is None:
        raise UsageError(f"'{{{text}}}' is neither a range, such as {{0000..0007}}, nor a list, such as {{train,val}}")
    first, last, step = match.groups()
    padded = any(end.startswith("0") and end != "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    way = 1 if int(first) <= int(last) else -1
    return [f"{i:0{width}}" for i in range(int(first), int(last) + way, way * (int(step or 1) or 1))]
