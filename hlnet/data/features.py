"""Features of a frozen trunk, computed once: in memory, or in a file that is read as it is used.

The trunk sees every image a few times before the first epoch, once for each augmented *view*, instead of once an epoch;
after that only what lies behind it runs. ``hlnet.data.feature_cache`` keeps the files.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hlnet.data.sampling import Seeded
from hlnet.data.tree_data import loader
from hlnet.errors import DataError

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork

#: Called with the number of batches done, and of all.
OnBatch = Callable[[int, int], None]


class CachedFeatures(Dataset[tuple[Tensor, int]]):
    """Features of one or more views of each image, with labels.

    Args:
        features: ``[views, N, C, h, w]``; kept in whatever precision they come. Asking for an item draws one view.
        labels: ``[N]``.

    Example:
        >>> cached = CachedFeatures(torch.zeros(2, 3, 8, 7, 7), torch.tensor([0, 1, 0]))
        >>> len(cached), cached[1][0].shape, len(cached.restricted([1]))
        (3, torch.Size([8, 7, 7]), 1)
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.labels = labels
        self._stored: Tensor | None = features
        self._file: Path | None = None
        self._kept: Tensor | None = None

    @classmethod
    def mapped(cls, file: str | Path, labels: Tensor) -> Self:
        """Features in a ``.npy`` file, ``[views, N, C, h, w]``: read when they are used, and as often.

        A worker process receives the file's name, not its content.

        Args:
            file: it must stay as it is for as long as this is in use.
            labels: ``[N]``.

        Raises:
            OSError, ValueError: if there is no such file, or it is not whole.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp()) / "features.npy"
            >>> np.save(file, np.ones((1, 2, 8, 7, 7), np.float16))
            >>> CachedFeatures.mapped(file, torch.tensor([0, 1]))[1][0].dtype
            torch.float32
        """
        file = Path(file).resolve()
        found = cls(map_array(file), labels)
        found._file = file
        return found

    @property
    def features(self) -> Tensor:
        """``[views, N, C, h, w]``. Do not write to it: a file's is read-only. Of a restricted one, a copy each time."""
        return self.stored if self._kept is None else self.stored[:, self._kept]

    @property
    def stored(self) -> Tensor:
        """The features of all images, also those that :meth:`restricted` has left out."""
        if self._stored is None:
            assert self._file is not None
            self._stored = map_array(self._file)
        return self._stored

    def restricted(self, classes: Iterable[int]) -> CachedFeatures:
        """Only the images of these classes, which are renumbered in the order given; no feature is copied."""
        new = {old: position for position, old in enumerate(classes)}
        kept = torch.tensor([i for i, label in enumerate(self.labels.tolist()) if label in new], dtype=torch.long)
        labels = torch.tensor([new[label] for label in self.labels[kept].tolist()], dtype=torch.long)
        found = CachedFeatures(self.stored, labels)
        found._file = self._file
        found._kept = kept if self._kept is None else self._kept[kept]
        return found

    def digest(self) -> str:
        """A short fingerprint of the labels."""
        return hashlib.sha256(repr(self.labels.tolist()).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        views = len(self.stored)
        view = int(torch.randint(views, ())) if views > 1 else 0
        place = position if self._kept is None else int(self._kept[position])
        return self.stored[view, place].float(), int(self.labels[position])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | ({"_stored": None} if self._file else {})


def trunk_features(net: TrainableNetwork, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Put the trunk's features, float16 and on the CPU, in the place of each batch's images ``[B, 3, H, W]``.

    The network is brought to evaluation mode, and mixed precision is left out.

    Raises:
        DataError: if a feature does not fit float16.
    """
    net.eval()
    for images, *rest in batches:
        with torch.no_grad(), torch.autocast(net.device.type, enabled=False):
            features = net.features(images.to(net.device)).half().cpu()
        if not features.isfinite().all():
            raise DataError(
                "the trunk's features exceed what float16 holds (65504): they cannot be cached (cache_views)"
            )
        yield features, *rest


class FeatureSource:
    """Source of cached features: a trunk, and the views of images for it.

    Args:
        net: its ``features`` are taken.
        data: images with labels.
        views, batch_size, workers, seed, on_batch, skip_unreadable: see
            :func:`hlnet.data.feature_cache.cached_features`.

    Attributes:
        labels: of each image, once :meth:`features` has gone through the first view.
        taken: position of the image that stands at each place, likewise; its own, unless that cannot be read.
    """

    def __init__(
        self,
        net: TrainableNetwork,
        data: Dataset[Any],
        views: int,
        batch_size: int,
        workers: int,
        seed: int,
        on_batch: OnBatch | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.net, self.on_batch = net, on_batch
        self.images = _Views(data, views, seed, skip_unreadable)
        self.batches = loader(self.images, batch_size, workers)
        self.batches.generator = torch.Generator()  # or the loader would draw from the global one
        self.labels = torch.full((len(self.images.seeded),), -1)
        self.taken = self.labels.clone()

    def shape(self) -> tuple[int, ...]:
        """``[views, N, C, h, w]``, learnt from one image.

        Raises:
            DataError: if it cannot be read.
        """
        (features, *_) = next(trunk_features(self.net, [(self.images[0][0][None],)]))
        return (self.images.views, len(self.taken), *features.shape[1:])

    def features(self) -> Iterator[Tensor]:
        """Features ``[B, C, h, w]``, batch by batch, view after view.

        Raises:
            DataError: if an image cannot be read, or a feature does not fit float16.
        """
        start = 0
        for done, (features, labels, positions) in enumerate(trunk_features(self.net, self.batches), start=1):
            places = torch.arange(start, start + len(positions)) % len(self.taken)
            start += len(positions)
            first = self.taken[places] < 0
            self.taken[places[first]], self.labels[places[first]] = positions[first], labels[first]
            if lost := places[self.taken[places] != positions].tolist():
                raise DataError(f"image {lost[0]} of the data can be read at times only; check the disk that it is on")
            yield features
            if self.on_batch:
                self.on_batch(done, len(self.batches))


def map_array(file: Path) -> Tensor:
    """The array of a ``.npy`` file, whatever follows it, as a read-only tensor that is loaded page by page.

    For as long as any tensor refers to it, the file carries a shared lock (``flock``), where the system has such locks.

    Raises:
        OSError, ValueError: if there is no such file, or it is not whole.
    """
    with file.open("rb") as source:
        if sys.platform != "win32":  # there, a mapped file cannot be removed anyway
            import fcntl

            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(source, fcntl.LOCK_SH)
        try:
            np.lib.format.read_magic(source)
            shape, _, dtype = np.lib.format.read_array_header_1_0(source)
        except Exception as error:  # whatever numpy's parser says of a damaged header
            raise ValueError("it has no header of a .npy file") from error
        # The map keeps a duplicate of the file's descriptor, and with it the lock.
        array = np.memmap(source, dtype, "r", source.tell(), shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the tensor is not writable: so it is meant
        return torch.from_numpy(array)


class _Numbered(Dataset[tuple[Tensor, int, int]]):
    """Items with their positions, which tell whose place another image has taken."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        image, label = self.data[position]
        return image, int(label), position


class _Views(Dataset[Any]):
    """All images, then all of them again: another view, and so on."""

    def __init__(self, data: Dataset[Any], views: int, seed: int, skip_unreadable: bool) -> None:
        self.seeded, self.views = Seeded(_Numbered(data), seed, skip_unreadable), views

    def __len__(self) -> int:
        return self.views * len(self.seeded)

    def __getitem__(self, number: int) -> Any:
        return self.seeded[number]
