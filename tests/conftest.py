"""Shared settings: one thread a process (tests run in several), and no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

pytest.register_assert_rewrite(
    *(f"helpers.{name}" for name in ("random_nets", "crafted_nets", "short_trainings", "runs"))
)
torch.set_num_threads(1)
