"""``hlnet predict``."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli.shared import cue_options, options
from hlnet.cli.shared.prediction_formats import Format, choose_format, columns, csv_row, writer
from hlnet.errors import RunError, UsageError, counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from hlnet.cli.shared.processes import Share
    from hlnet.cues.policy import CuePolicy
    from hlnet.cues.table import CueMatching
    from hlnet.evaluation.prediction import Prediction
    from hlnet.model.fast.optimize import InferenceNet

#: Labels for each image, without --top.
TOP = 5


def predict(
    model: options.Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders of them, patterns in quotes ('photos/**/*.jpg'), or - to "
            "read names from standard input.",
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Labels for each image; default: 5, or none if answers may end early."),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Answer with the deepest node on the way down that is at least this likely."),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.999,
            help="Answer with a node that contains the image's class this often; needs hlnet calibrate.",
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Run only the branches that may still win, so that this share of images gets the full network's "
            "answer; needs hlnet calibrate --agreement.",
        ),
    ] = None,
    always: Annotated[
        str | None,
        typer.Option(
            metavar="CLASSES", help="Give these classes' probabilities in every answer: names, or @targets.txt."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="folder|event|REGEX",
            help="One answer for all images of a folder; of an event, that is a minute or less apart (event:10: ten "
            "seconds); or with the same match of a pattern in their paths.",
        ),
    ] = None,
    cue: cue_options.CueOption = None,
    text: cue_options.Text = None,
    text_model: cue_options.TextModel = None,
    cues: cue_options.CuesFile = None,
    prior: cue_options.Prior = None,
    cue_mode: cue_options.Mode = None,
    attention_signal: cue_options.AttentionSignal = None,
    reliability: cue_options.Reliability = None,
    hard: cue_options.Hard = False,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Format; default: by the ending of --out (.csv, .jsonl, .txt), text on stdout."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write, in one step at the end; default: stdout.")] = None,
    batch_size: options.BatchSize = 16,
    workers: options.Workers = 2,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
) -> None:
    """Label images: the path down the tree, with the probability of each node on it.

    "animal 0.99 / cat 0.97 / tabby 0.41": the probability of a node is the sum over the classes under it. With
    --min-confidence or --coverage, the answer stops at the last node that is probable enough. A network with a
    threshold (make-expert --calibrate) answers "none of these" for images that score below it. A network of a single
    class without a threshold prints its score.

    Cues are outside information about the class: --cue, --text, a file of --cues for single images, a --prior. Cues
    with a reliability shift logits by Bayes' rule; cues with a factor scale features.

    Images are read and answered one after the other, in order, however many there are. An image that cannot be read is
    reported and does not stop the run; the exit code is then 1. Several processes share the images:
    torchrun --nproc-per-node 2 -m hlnet predict MODEL photos --out answers.csv.

    **Examples**

        hlnet predict cats.safetensors photo.jpg

        hlnet predict runs/photos/best.safetensors holiday/ --coverage 0.9 --out answers.csv

        hlnet predict runs/photos garden/ --text meow --reliability 0.9

        hlnet predict runs/lean camera/ --agreement 0.98 --out answers.csv

        hlnet predict runs/photos cameras/ --group-by event --min-confidence 0.8 --always @targets.txt --out seen.csv

        find . -name '*.jpg' | hlnet predict hf-hub:owner/pets - --min-confidence 0.8 --json
    """
    _check(form, as_json, min_confidence, coverage)
    form = choose_format(out, "jsonl" if as_json else form)
    from hlnet.cli.shared import output
    from hlnet.cli.shared.processes import Share
    from hlnet.data.bursts import grouping
    from hlnet.evaluation import prediction
    from hlnet.files import check_writable
    from hlnet.tree.selection import select_classes

    share = Share.ours()
    _check_share(share, images, out, group_by)
    if not share.first:
        output.silence_hints()
    files = options.image_files(images, "IMAGES")
    if out is not None and share.first:
        check_writable(out)
    net = options.load_optimized(model, _device(device, share), dtype)
    strengths = (attention_signal, cue_mode, reliability)
    matching, policy = _cues(net, model, images, (cue, text, text_model), cues, prior, strengths, hard)
    if share.first:
        _hint_at_doubts(net, images)
    predictions = prediction.predict(
        *(net, share.of(files), top or TOP, batch_size, min_confidence, coverage),
        *(0 if _are_few(images, batch_size) else workers, matching, policy),
        always=always,
        group=None if group_by is None else grouping(group_by),
        agreement=agreement,
    )
    named = [] if always is None else [net.tree.classes[i] for i in select_classes(net.tree, always)]
    if matching is not None and policy is not None:
        _log_cues(net, matching, policy)
    with_labels = top is not None or (min_confidence is None and coverage is None)
    line = writer(form, net.provenance.rejection, with_labels, named, group_by is not None)
    head = csv_row(columns(named, group_by is not None)) if form == "csv" else ""
    counts = _write(predictions, line, head, out, share, images)
    if counts is not None:
        if matching is not None and share.count == 1:  # of several processes, none has seen all images
            matching.finish()
        _report(counts, net, out, group_by is not None)


def _check(form: Format | None, as_json: bool, min_confidence: float | None, coverage: float | None) -> None:
    """Refuse options that do not go together."""
    if as_json and form not in (None, "jsonl"):
        raise UsageError(f"--json is --format jsonl, not --format {form}; give one")
    if min_confidence is not None and coverage is not None:
        raise UsageError("--min-confidence and --coverage both say where an answer ends; give one")


def _check_share(share: Share, images: list[str], out: Path | None, group_by: str | None) -> None:
    """Refuse options that several processes cannot serve."""
    if share.count == 1:
        return
    if group_by is not None:
        raise UsageError("--group-by needs all images in one process; several would each see a part of a group")
    if out is None:
        raise UsageError("several processes write one file; name it with --out")
    if "-" in images:
        raise UsageError("several processes cannot read one standard input; give folders or patterns in quotes")


def _cues(
    net: InferenceNet,
    model: str,
    images: list[str],
    everywhere: tuple[list[str] | None, str | None, str | None],
    file: Path | None,
    prior: Path | None,
    strengths: tuple[str | None, cue_options.CueMode | None, float | None],
    hard: bool,
) -> tuple[CueMatching | None, CuePolicy | None]:
    """The cues of the images and how they act; nothing without an option.

    Args:
        net, model: the network, and its name in messages.
        images: as the command line has them.
        everywhere: the options of cues on every image: --cue, --text and --text-model.
        file: of --cues.
        prior, strengths, hard: as :func:`cue_options.cue_policy` takes them.
    """
    from hlnet.cues.table import CueMatching

    cue, text, text_model = everywhere
    if not cue_options.wanted(*everywhere, file, prior, hard, *strengths):
        return None, None
    if not cue_options.wanted(cue, text, file) and (prior is None or cue_options.wanted(hard, *strengths)):
        raise UsageError("these options say how cues act, but none is given; add --cue, --text or --cues")
    cues = cue_options.cues_for_all(net.tree, cue or (), text, text_model, strengths[1])
    if hard:
        cue_options.check_hard_cues(net, model, *strengths, cues=cues)
    policy = cue_options.cue_policy(*strengths, net, hard, prior)
    matching = CueMatching(cue_options.cue_table(file, net, cues))
    if (
        file is not None
        and "-" not in images
        and not any(map(matching.cues_naming, options.image_files(images, "IMAGES")))
    ):
        matching.finish()  # which refuses a file that has cues for none of the images
    return matching, policy


def _log_cues(net: InferenceNet, matching: CueMatching, policy: CuePolicy) -> None:
    """Say how cues act where the command line does not, and how many classes hard cues leave."""
    if given := matching.table.all_cues:
        cue_options.log_stored_cues(net, policy, given)
        if policy.hard and matching.table.everywhere:
            cue_options.log_hard_cues(net, matching.table.everywhere)


def _report(counts: Counter[str], net: InferenceNet, out: Path | None, grouped: bool) -> None:
    """Say what was written.

    Raises:
        RunError: if images could not be read.
    """
    from hlnet.cli.shared import output

    if not counts["images"]:
        output.hint("no names of images came from standard input")
    if out is not None:
        groups = f" in {counted(counts['groups'], 'group')}" if grouped else ""
        rejected = f", {counts['rejected']} of them none of these" if net.provenance.rejection else ""
        output.hint(f"{counted(counts['images'], 'image')}{groups}{rejected}; the answers are in '{out}'")
    if counts["unread"]:
        raise RunError(f"{counts['unread']} of {counted(counts['images'], 'image')} could not be read")


def _write(
    predictions: Iterator[Prediction],
    text: Callable[[Prediction], str],
    head: str,
    out: Path | None,
    share: Share,
    images: list[str],
) -> Counter[str] | None:
    """Write all predictions one by one, other processes' too, and count them; in another process, return ``None``."""
    from hlnet.cli.shared import output
    from hlnet.files import replacing

    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(_clean_end())
        stream = sys.stdout
        if out is not None and share.first:
            draft = stack.enter_context(replacing(out))
            stream = stack.enter_context(draft.open("w", encoding="utf-8", newline=""))
        if share.first and output.stderr.is_terminal and (out is not None or not stream.isatty()):
            predictions = _with_progress(predictions, stack.enter_context(output.progress()), images, share)
        everything = predictions if out is None else _gathered(predictions, share, out, stack)
        if everything is None:
            return None
        stream.write(head)
        for one in everything:
            counts["images"] += one.images or 1
            counts["groups"] += one.images is not None
            counts["unread"] += one.error is not None
            counts["rejected"] += bool(one.rejected)
            if one.error is not None:
                output.hint(one.error)
            stream.write(text(one))
            if out is None:
                stream.flush()
    return counts


def _gathered(
    predictions: Iterator[Prediction], share: Share, out: Path, stack: ExitStack
) -> Iterator[Prediction] | None:
    """The predictions of all processes, in the first one; ``None`` in the others."""
    from hlnet.cli.shared.processes import in_order
    from hlnet.evaluation.prediction import Prediction

    if share.count == 1:
        return predictions
    lines = stack.enter_context(in_order(share, (json.dumps(one.model_dump()) for one in predictions), out))
    return None if lines is None else (Prediction(**json.loads(line)) for line in lines)


@contextmanager
def _clean_end() -> Iterator[None]:
    """A SIGTERM ends the command as Ctrl-C does, without half-written files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _device(device: str, share: Share) -> str:
    """Each process of a machine has a GPU of its own, where there are so many."""
    if device != "auto" or share.count == 1:
        return device
    import torch

    return f"cuda:{share.local % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def _hint_at_doubts(net: InferenceNet, images: list[str]) -> None:
    """Point out what a user may overlook."""
    from hlnet.cli.shared import output
    from hlnet.data.image_files import STDIN

    if STDIN in images and sys.stdin.isatty():
        output.hint("reading names of images, one per line, up to the end of input (Ctrl-D)")
    if len(net.tree.classes) == 1 and net.provenance.rejection is None:
        output.hint(
            "one class, and no threshold: the score only ranks images; make-expert --calibrate fits a threshold"
        )


def _are_few(images: list[str], batch_size: int) -> bool:
    """Whether they are known to be one batch, for which processes that load would only have to be started."""
    from hlnet.data.image_files import are_files

    return are_files(images) and len(images) <= batch_size


def _with_progress(
    predictions: Iterator[Prediction], bar: Progress, images: list[str], share: Share
) -> Iterator[Prediction]:
    """The predictions, with a progress bar; the images are counted meanwhile, unless they come from a pipe."""
    from hlnet.data.image_files import STDIN, image_files

    task = bar.add_task("images", total=None)

    def count() -> None:
        bar.update(task, total=sum(1 for _ in share.of(image_files(images))))

    if STDIN not in images:
        threading.Thread(target=count, daemon=True).start()
    for one in predictions:
        bar.advance(task)
        yield one
