# SPDX-License-Identifier: Apache-2.0
import pytest
from small_catalogue import MORE, write_checkpoint, write_photos


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """name → folder: first, later (with its spaces and one more of neckline, described), moved (other weights)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "first": write_checkpoint(folder / "first"),
        "later": write_checkpoint(folder / "later", MORE, described=True),
        "moved": write_checkpoint(folder / "moved", nudge=0.05),
        "other": write_checkpoint(folder / "other", seed=7),
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twenty photos."""
    return write_photos(tmp_path_factory.mktemp("photos"), range(20))
