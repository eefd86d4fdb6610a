"""Fixtures of the tests of the curation."""

from pathlib import Path

import pytest
from wordnet_support import write_wordnet


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small WordNet database."""
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))
