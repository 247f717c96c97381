"""Shared settings: one thread a process (tests run in several), and no network."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

pytest.register_assert_rewrite("helpers.random_nets", "helpers.crafted_nets", "helpers.short_trainings", "helpers.runs")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _quick():
    from helpers.quick import be_quick

    be_quick()
    yield
    gc.unfreeze()
