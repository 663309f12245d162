"""One thread per test process: `make test` runs as many processes as there are cores."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("fast_for")
        if mark and hasattr(item, "callspec") and not set(mark.args) & set(item.callspec.id.split("-")):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """The same in every test, whichever ran before it."""
    torch.manual_seed(0)
