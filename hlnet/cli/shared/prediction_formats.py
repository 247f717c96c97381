"""Output formats of ``hlnet predict``: text, CSV, or JSON with one object per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hlnet.errors import UsageError, counted

if TYPE_CHECKING:
    from hlnet.evaluation.prediction import Label, PathAnswer, Prediction
    from hlnet.model.provenance import Rejection

#: The columns of CSV, described in docs/predict.md.
COLUMNS = (
    *("image", "class", "answer", "level", "probability", "classes"),
    *("leaf", "leaf_probability", "score", "rejected", "error"),
)


#: Formats of the answers.
Format = Literal["text", "csv", "jsonl"]
FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}


def choose_format(out: Path | None, form: Format | None) -> Format:
    """The format of ``--format``, or of the file's ending.

    Raises:
        UsageError: if the two disagree, or the name asks for one that is not known.
    """
    suffix = out.suffix.lower() if out else ""
    named = FORMATS.get(suffix)
    if form is None and named is None and suffix not in ("", ".txt"):
        raise UsageError(f"--out '{out}': expected an ending of .csv, .jsonl or .txt, or --format")
    if form is not None and named not in (None, form):
        raise UsageError(f"--out '{out}' is a name for {named}, and --format says {form}; give one of them")
    return form or named or "text"


def columns(always: Sequence[str] = (), groups: bool = False) -> tuple[str, ...]:
    """The columns of CSV.

    Args:
        always: names of the classes whose probability stands in every row, as ``p(tabby)``.
        groups: whether a row is a group of images; their number follows.
    """
    return (*COLUMNS, *(("images",) if groups else ()), *(f"p({name})" for name in always))


def writer(
    form: Format, rejection: Rejection | None, labels: bool = True, always: Sequence[str] = (), groups: bool = False
) -> Callable[[Prediction], str]:
    """A function from a prediction to its text, line breaks included.

    Args:
        form: the format.
        rejection: the network's threshold, if it has one.
        labels: whether the text lists classes after an answer that may end above them.
        always, groups: as :func:`columns` takes them.
    """
    match form:
        case "jsonl":
            return lambda prediction: prediction.model_dump_json(exclude_none=True) + "\n"
        case "csv":
            return lambda prediction: csv_row([*_values(prediction), *_more(prediction, always, groups)])
    return lambda prediction: "".join(f"{line}\n" for line in _lines(prediction, rejection, labels))


def csv_row(values: Sequence[object]) -> str:
    """One row of CSV.

    >>> csv_row(["a,b", None, 0.5, True])
    '"a,b",,0.5,true\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, values))
    return text.getvalue()


def _cell(value: object) -> object:
    """The content of a cell; measured numbers have six digits."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
    return value


def _values(prediction: Prediction) -> list[object]:
    """Of one row."""
    if not prediction.labels:
        return [prediction.image, *[None] * (len(COLUMNS) - 2), prediction.error]
    best, answer = prediction.labels[0], prediction.answer
    reached: list[object] = [None] * 4
    if answer is not None:
        reached = [answer.path, answer.level, answer.probability, answer.classes]
    elif not prediction.rejected:
        share = best.path_probabilities[-1] if best.path_probabilities else best.probability
        reached = [best.path, best.path.count("/") + 1, share, 1]
    name = None if prediction.rejected else best.name
    return [prediction.image, name, *reached, best.path, best.probability, prediction.score, prediction.rejected, None]


def _more(prediction: Prediction, always: Sequence[str], groups: bool) -> list[object]:
    """The optional columns of a row."""
    shares = prediction.always or {}
    return [*([prediction.images] if groups else []), *(shares.get(name) for name in always)]


def _lines(prediction: Prediction, rejection: Rejection | None, labels: bool) -> Iterator[str]:
    """Lines of text: the image, then its answers; nothing for an image that could not be read."""
    if prediction.error is not None:
        return
    yield (
        prediction.image
        if prediction.images is None
        else f"{prediction.image}  ({counted(prediction.images, 'image')})"
    )
    yield from _asked_for(prediction)
    told = ""
    if prediction.score_name is not None:
        told = f"  ({prediction.score_name} {'–' if prediction.score is None else format(prediction.score, '.4g')}"
        told += f", accepted from {rejection.threshold:.4g})" if rejection else ")"
    if prediction.rejected:
        yield f"  none of these{told}"
        return
    if prediction.answer is not None:
        yield f"  {_ended(prediction.answer)}"
    for label in prediction.labels if labels or prediction.answer is None else ():
        if label.path_probabilities is None:  # the only class
            yield f"  {'accepted' if rejection else 'perhaps'}  {label.path}{told}"
        else:
            yield f"  {_whole(label)}"


def _asked_for(prediction: Prediction) -> Iterator[str]:
    """``always: tabby 0.41, beagle <0.01``."""
    if prediction.always:
        yield "  always: " + ", ".join(f"{name} {_share(share)}" for name, share in prediction.always.items())


def _whole(label: Label) -> str:
    """``animal 0.99 / cat 0.97 / tabby 0.41``."""
    shares = label.path_probabilities or []
    steps = " / ".join(_steps(label.path, shares))
    if label.probability is not None and abs(label.probability - shares[-1]) > 1e-6:  # trained one-vs-rest
        return f"{steps}  (by itself {_share(label.probability)})"
    return steps


def _ended(answer: PathAnswer) -> str:
    """``animal 0.99 / cat 0.97  (then tabby 0.41)``."""
    steps = _steps(answer.way, answer.way_probabilities)
    before, after = " / ".join(steps[: answer.level]), " / ".join(steps[answer.level :])
    return f"{before or 'not sure'}  (then {after})" if after else before


def _steps(path: str, shares: Sequence[float]) -> list[str]:
    return [f"{name} {_share(share)}" for name, share in zip(path.split("/"), shares, strict=True)]


def _share(value: float) -> str:
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"
