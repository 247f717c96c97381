"""Features that are cached for a training: a signal ends that with a word, and says what stays."""

import os
import signal

import pytest
import torch
from helpers.short_trainings import build, config, fit, squares

from hlnet.data.feature_cache import cached_features
from hlnet.training.cached import cache_features
from hlnet.training.stopping import Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("kept", "told"), [(True, "what is in the cache's folder stays"), (False, "nothing is kept")])
def test_a_signal_ends_it_and_says_what_stays(tmp_path, number, kept, told):
    steps = []

    def stop(step, _):
        steps.append(step)
        os.kill(os.getpid(), number)

    folder = tmp_path / "cache" if kept else None
    settings = config(frozen_trunk=True, cache_views=2, batch_size=4)
    with pytest.raises(Stopped, match=rf"stopped while features were cached, before the first epoch \({told}\)"):
        cache_features(build(), squares(16), 2, settings, folder, None, stop)
    assert steps == [1] and not [*tmp_path.glob("**/*.npy"), *tmp_path.glob("**/*.part")]


def test_a_training_is_ended_so_too(tmp_path):
    def stop(phase, *_):
        if phase == "features":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="before the first epoch"):
        fit(build(), config(frozen_trunk=True, cache_views=1), out=tmp_path, on_batch=stop)
    assert not (tmp_path / "metrics.csv").exists()


def test_features_are_those_of_the_cache_and_cached_ones_stay():
    net, data = build(), squares(6)
    found = cache_features(net, data, 1, config(frozen_trunk=True, cache_views=1), None, None, lambda *_: None)
    assert torch.equal(found.features, cached_features(net, data, batch_size=8).features)
    assert cache_features(net, found, 1, config(), None, None, pytest.fail) is found
