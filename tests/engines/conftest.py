"""Model folders, made once a run."""

from pathlib import Path

import pytest

from tests.engines.models import Folder, write_chain, write_random


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_random(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def chain_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_chain(tmp_path_factory.mktemp("models") / "chain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"
