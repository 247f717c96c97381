"""Settings of a training that are refused."""

import pytest
from helpers.short_trainings import build, config, fit
from pydantic import ValidationError

from hlnet.errors import UsageError
from hlnet.training.train_config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "cache"), [({"opt": "nonsense"}, False), ({}, True), ({"sched": "nonsense"}, False)]
)
def test_what_cannot_be_meant_is_refused(tmp_path, settings, cache):
    with pytest.raises(UsageError):
        fit(build(), config(**settings), cache=cache, out=tmp_path / "run")


WRONG = (
    "epochs=0 batch_size=0 lr=0 lr=-1 lr=nan lr=inf min_lr=-1 smoothing=1 ema_decay=1 clip_grad=0 hflip=2 momentum=1"
)


@pytest.mark.parametrize(
    ("name", "value"),
    [*(pair.split("=") for pair in WRONG.split()), *(("scale", pair) for pair in [(0.1,), (0.9, 0.1), (-1.0, 2.0)])],
)
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_views": 1},
        {"unfreeze_epochs": 1},
        {"cache_views": 1, "frozen_trunk": True, "unfreeze_epochs": 1},
        {"cache_views": 1, "frozen_trunk": True, "mixup": 0.2},
        {"cache_views": 1, "frozen_trunk": True, "layer_decay": 0.7},
        {"sched": "plateau"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValidationError, match=list(settings)[-1]):
        TrainConfig(**settings)
