"""``hlnet merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, counted


def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL MODEL...", help=f"Experts to merge; each {options.MODEL_NAMES}.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    as_json: options.Json = False,
) -> None:
    """Merge experts: one network with the classes of all of them.

    The result is bit for bit the expert of the union of their classes; no images, no training. Experts of different
    networks are refused, unless their trunks are bitwise the same and no common node has different weights.

    **Examples**

        hlnet merge cats.safetensors dogs.safetensors --out pets.safetensors

        hlnet merge cats.safetensors dogs.safetensors birds.safetensors --out animals.safetensors --json
    """
    from hlnet.cli.shared import output
    from hlnet.expert.merge import merge_experts
    from hlnet.model.cost import profile
    from hlnet.store.checkpoint import save_checkpoint
    from hlnet.store.locate import locate_model

    if len(models) < 2:
        raise UsageError(f"merge takes two models at least, got only '{models[0]}'")
    paths = [locate_model(model) for model in models]
    if out.resolve() in [path.resolve() for path in paths]:
        raise UsageError(f"--out '{out}' is one of the models; choose another name")
    merged = merge_experts(paths)
    save_checkpoint(merged, out)
    costs = profile(merged.config, merged.tree, merged.transform, parent_counts=merged.provenance.parent_counts)
    figures = {"out": str(out), "classes": merged.tree.classes, "parent": merged.provenance.parent}

    def show() -> None:
        output.show_tree(merged.tree)
        output.show_profile(costs)
        output.show(
            f"{counted(len(merged.tree.classes), 'class')}, {out.stat().st_size / 1e6:.1f} MB, written to {out}"
        )

    output.result(as_json, figures | costs.model_dump(mode="json"), show)
