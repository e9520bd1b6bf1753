"""How many workers a machine can have, and what is said of more."""

import math

import pytest

from service.core.cpus import UsableCpus
from service.core.memory import UsableMemory
from service.errors import GlyphrecError
from service.workers.limits import LEAST_BYTES, check_workers, least_bytes

UNKNOWN = UsableMemory(0, 0)


def test_more_workers_than_processors_are_refused_with_the_number_that_is_possible(tmp_path):
    check_workers(4, tmp_path, UsableCpus(4, math.inf), UNKNOWN)
    with pytest.raises(GlyphrecError, match=r"is 5, but there are 4 usable.* Set it to 4 at most"):
        check_workers(5, tmp_path, UsableCpus(4, math.inf), UNKNOWN)
    with pytest.raises(GlyphrecError, match="Set it to 1 at most"):
        check_workers(2, tmp_path, UsableCpus(8, 1.5), UNKNOWN)


def test_workers_that_do_not_fit_into_the_memory_are_refused(tmp_path):
    (tmp_path / "recommender.onnx").write_bytes(bytes(10**6))
    least = least_bytes(tmp_path)
    assert least == LEAST_BYTES + 10**6
    check_workers(3, tmp_path, UsableCpus(8, math.inf), UsableMemory(4 * least, 3 * least))
    with pytest.raises(GlyphrecError, match="Set it to 3, or give the service more memory"):
        check_workers(4, tmp_path, UsableCpus(8, math.inf), UsableMemory(4 * least, 4 * least - 1))


def test_a_bundle_that_is_not_there_is_left_to_the_worker_that_says_so(tmp_path):
    check_workers(2, tmp_path / "none", UsableCpus(2, math.inf), UsableMemory(0, 10 * LEAST_BYTES))
