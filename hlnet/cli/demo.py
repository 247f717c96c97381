"""``hlnet demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlnet.cli.shared import options


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 12,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Run everything once on embedded handwritten digits: train, cut, measure, cue.

    Builds a tree by clustering, trains, cuts an expert, counts, times, cues; needs no data and no internet. Writes a
    folder with the networks, pictures and report.html.

    **Examples**

        hlnet demo

        hlnet demo --out /tmp/demo --json
    """
    from hlnet.cli.shared import output
    from hlnet.demo import run_demo

    with output.progress() as bar:
        task = bar.add_task("", total=None)
        result = run_demo(
            out,
            epochs,
            seed,
            options.pick_device(device),
            on_stage=output.hint,
            on_batch=lambda phase, step, steps: bar.update(task, description=phase, completed=step, total=steps),
        )

    def show() -> None:
        output.show_profile(result.cost)
        noisy, family = result.noisy, ", ".join(result.expert_classes)
        rows = [
            ["all ten digits", output.percent(result.top1, 1)],
            [
                f"noisy digits, expert for {family}",
                output.percent(result.noisy_expert_top1, 1),
            ],
            ["noisy digits, full network restricted to the same", output.percent(result.noisy_restricted_top1, 1)],
            ["noisy digits, no cue", output.percent(noisy["no cue"], 1)],
            ["noisy digits, right cue (an oracle)", output.percent(noisy["right cue"], 1)],
            ["noisy digits, wrong cue", output.percent(noisy["wrong cue"], 1)],
            ["for comparison: right cue as a bias on the logit", output.percent(noisy["right cue as a bias"], 1)],
        ]
        output.show_table("Top-1 accuracy", ["", "held-out digits"], rows)
        output.show(f"report: {out / 'report.html'}")

    output.result(as_json, result, show)
