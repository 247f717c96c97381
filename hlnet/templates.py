"""Pages and cards from templates, which lie beside the modules that fill them.

Notable here: what goes into a page is escaped; an undefined name in a template is an error.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: object) -> str:
    """A filled template, without the line break at its end.

    Args:
        template: its path within the package, such as ``"view/show.html.j2"``.
        values: by the names that the template uses.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("hlnet", ""),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
