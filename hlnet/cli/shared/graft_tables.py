"""Tables of ``hlnet graft``: the new classes, and the network before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlnet.cli.shared import output
from hlnet.errors import counted
from hlnet.model.cost import network_cost, plain_cost

if TYPE_CHECKING:
    from hlnet.expert.graft import GraftReport
    from hlnet.expert.graft_training import GraftEpoch
    from hlnet.model.cost import Cost
    from hlnet.model.hierarchical import HierarchicalNet

#: Loss of the old classes' top-1 above which a line warns.
MUCH = 0.1


@dataclass(frozen=True)
class Graft:
    """The results of a graft.

    Attributes:
        report: of the library.
        net, grown: the network before and after.
        out: the file written.
    """

    report: GraftReport
    net: HierarchicalNet
    grown: HierarchicalNet
    out: Path

    def json(self) -> dict[str, Any]:
        """All of it, for machines."""
        costs = {"before": network_cost(self.net), "after": network_cost(self.grown)}
        dumped = {name: cost.model_dump(mode="json") for name, cost in costs.items()}
        return {"out": str(self.out), **self.report.model_dump(mode="json"), "cost": dumped}

    def show(self) -> None:
        """The same as tables."""
        report, grown = self.report, self.grown
        rows = [
            [name, place.under, output.percent(place.fit, 1), output.percent(report.per_class.get(name), 1)]
            for name, place in report.places.items()
        ]
        images = f"{report.old_train_images} old and {report.new_train_images} new training images"
        output.show_table(f"New classes, from {images}", ["class", "under", "fit", "top-1"], rows)
        before, after = report.old_before, report.old_after
        if before is not None and after is not None and before - after > MUCH:
            output.hint("warning: the new classes win too often; train longer (--epochs), or give more old images")
        cost = network_cost(grown)
        output.hint_at_cost(cost, plain_cost(grown.config, grown.num_classes, grown.transform.input_size))
        output.hint("fit: mean probability that the old network gives to classes under that node, on the new images")
        _show_change(report, network_cost(self.net), cost)
        difference = f"largest difference {report.max_logit_difference:.1g}, float64"
        output.show(f"verified: old logits equal the old network's ({difference})")
        size = self.out.stat().st_size / 1e6
        output.show(f"{counted(len(grown.tree.classes), 'class')}, {size:.1f} MB, written to {self.out}")


def hint_epoch(epoch: GraftEpoch, epochs: int) -> None:
    """A line on an epoch of training."""
    output.hint(
        f"epoch {epoch.epoch:>3}/{epochs}  loss {epoch.loss:.4f}  train top-1 {100 * epoch.top1:.2f} %  "
        f"{epoch.seconds:.1f} s"
    )


def _show_change(report: GraftReport, before: Cost, after: Cost) -> None:
    cells = [output.cost_cells(cost)[:2] for cost in (before, after)]
    rows = [
        [
            f"top-1, {counted(report.old_images, 'image')} of old classes",
            *map(output.percent, (report.old_before, report.old_after)),
        ],
        [f"top-1, {counted(report.new_images, 'image')} of new classes", "–", output.percent(report.new)],
        ["top-1, all", "–", output.percent(report.all)],
        ["classes", str(before.classes), str(after.classes)],
        ["nodes per level", *(", ".join(map(str, cost.nodes)) for cost in (before, after))],
        *(list(row) for row in zip(["parameters, M", "GMACs"], *cells, strict=True)),
    ]
    output.show_table("Old and new", ["", "before", "after"], rows)
