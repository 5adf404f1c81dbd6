import pytest

from lightning_evolve.evolution.journal import Journal


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    yield journal
    journal.close()
