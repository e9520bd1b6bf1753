"""Requests made up from the API's own description, to a real process: nothing undocumented, nothing broken.

1,200 of them or more here; `make fuzz` sends 10,000.
"""

import os

import pytest

from benchmarks.fuzz import SETTINGS, fuzz
from model_export.local_service import local_service

CASES = 1_200
TIMEOUT_S = 500


@pytest.mark.slow
def test_no_made_up_request_gets_an_answer_that_is_not_documented(bundle, redis_url, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GLYPHREC_")]:
        monkeypatch.delenv(name)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with local_service(bundle, redis_url=redis_url, log=tmp_path / "log") as service:
        found = fuzz(service.url, tmp_path, cases=CASES, seed=1, timeout_s=TIMEOUT_S)
        assert service.client.get("/health/ready").is_success
    assert found.failures == 0, found.said
    assert found.cases >= CASES
    assert "Traceback" not in (tmp_path / "log").read_text()
