"""Shared settings: one thread a process (tests run in several), and no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
