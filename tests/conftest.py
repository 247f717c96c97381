"""Shared settings: one thread a process (tests run in several), no network, and the command line built once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from functools import cache

import pytest
import torch
import typer.testing

pytest.register_assert_rewrite("helpers.random_nets", "helpers.crafted_nets", "helpers.short_trainings", "helpers.runs")
torch.set_num_threads(1)
# A tenth of a second each time, for a thousand commands that tests run.
typer.testing._get_command = cache(typer.testing._get_command)


@pytest.fixture(scope="session", autouse=True)
def _quick():
    from helpers import quick

    quick.draw_no_curves()
