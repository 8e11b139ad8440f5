import pytest

from cloister.graph import legality


@pytest.fixture(autouse=True)
def _module_nodes(monkeypatch):
    monkeypatch.setattr(legality, "RUNTIME_DOMAINS", (*legality.RUNTIME_DOMAINS, "cloister"))
