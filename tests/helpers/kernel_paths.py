"""Both ways in which kernels run on a CPU: with weights that oneDNN has packed, and with torch's public operators."""

import pytest
import torch

from hlnet.model.fast import kernels

both_paths = pytest.mark.usefixtures("path")  # which a module that uses it takes from here, too


@pytest.fixture(params=["packed", "portable"])
def path(request, monkeypatch):
    """Both ways to run; the packed one where this machine has it."""
    if request.param == "portable":
        monkeypatch.setattr(kernels, "packs", lambda device, dtype: False)
    elif not kernels.packs("cpu", torch.float32):
        pytest.skip("torch lacks oneDNN's operators here")
    return request.param
