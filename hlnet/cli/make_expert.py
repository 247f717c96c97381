"""``hlnet make-expert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlnet.cli import options
from hlnet.errors import UsageError


def make_expert(
    model: options.Model,
    classes: options.Classes,
    out: Annotated[Path, typer.Option(help="The expert's .safetensors file to write.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove on random images that the kept logits equal the full network's.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Cut an expert: keep only the wanted classes' paths.

    Out of a full network or another expert. Reads only the rows that it keeps; no image, no training. Writes a
    checkpoint that every command takes.

    **Examples**

        hlnet make-expert runs/digits/best.safetensors --classes 0-4 --out low.safetensors --verify

        hlnet make-expert imagenet.safetensors --classes animal/cat,@wanted.txt --out cats.safetensors
    """
    from hlnet.checkpoint import load_checkpoint, read_header
    from hlnet.cli import output
    from hlnet.expert import cut_checkpoint, verify_expert
    from hlnet.files import replacing
    from hlnet.hub import locate_model
    from hlnet.network import HierarchicalNet, NetworkConfig
    from hlnet.profiling import profile

    if classes is None:
        raise UsageError("--classes is needed: which classes is the expert for?")
    source = locate_model(model)  # once: what a name on the Hub stands for may change
    if out.resolve() == source.resolve():
        raise UsageError(f"--out '{out}' is the model itself; choose another name")
    difference = None
    with replacing(out) as draft:  # what is not a cut of the model never takes the place of an older file
        cut_checkpoint(source, classes, draft)
        if verify:
            cut, full = load_checkpoint(draft), load_checkpoint(source)
            assert isinstance(cut, HierarchicalNet) and isinstance(full, HierarchicalNet)
            difference = verify_expert(cut, full)
    expert = read_header(out)
    assert isinstance(expert.config, NetworkConfig)
    costs = profile(expert.config, expert.tree, expert.transform, parent_counts=expert.provenance.parent_counts)
    if as_json:
        verified = {} if difference is None else {"max_logit_difference": difference}
        output.show_json({"out": str(out), "classes": expert.tree.classes, **verified, **costs.model_dump(mode="json")})
        return
    output.show_tree(expert.tree)
    output.show_profile(costs)
    if difference is not None:
        output.show(f"verified: kept logits equal the full network's (largest difference {difference:.1g}, float64)")
    output.show(f"{len(expert.tree.classes)} classes, {out.stat().st_size / 1e6:.1f} MB, written to {out}")
