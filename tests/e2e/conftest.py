from pathlib import Path

import pytest

from tests.known_bundle import KNOWN_ITEMS, write_known_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose processes start fast."""
    return write_known_bundle(tmp_path_factory.mktemp("known"), KNOWN_ITEMS)
