"""What several modules of this folder start from."""

import pytest
from helpers import one_thread


@pytest.fixture(scope="module")
def quick():
    """Several threads would take longer over the small models here than one."""
    with one_thread():
        yield
