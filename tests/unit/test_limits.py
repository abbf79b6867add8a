"""What a run may use, from what its spec says."""

from __future__ import annotations

import pytest

from wherry_runner.execution.engine import Limits
from wherry_runner.protocol import Resources
from wherry_runner.resources.limits import LimitDefaults, limits

DEFAULTS = LimitDefaults(memory_request_bytes=10, memory_limit_bytes=100, descriptors=64, log_bytes_per_second=1000)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {"memory_bytes": 100}),
        ({"memory_limit_bytes": 50}, {"memory_bytes": 50}),
        ({"memory_limit_bytes": 500}, {"memory_bytes": 500}),
        ({"memory_request_bytes": 30}, {"memory_bytes": 100}),
        ({"memory_request_bytes": 300}, {"memory_bytes": 300}),
        ({"memory_request_bytes": 3, "memory_limit_bytes": 5}, {"memory_bytes": 5}),
        ({"cpu_request_millicores": 200}, {"memory_bytes": 100, "cpu_weight_millicores": 200}),
        ({"cpu_request_millicores": 0}, {"memory_bytes": 100, "cpu_weight_millicores": 0}),
        (
            {"cpu_limit_millicores": 300},
            {"memory_bytes": 100, "cpu_millicores": 300, "cpu_weight_millicores": 300},
        ),
        (
            {"cpu_request_millicores": 100, "cpu_limit_millicores": 300},
            {"memory_bytes": 100, "cpu_millicores": 300, "cpu_weight_millicores": 100},
        ),
        ({"fuel": 7}, {"memory_bytes": 100, "fuel": 7}),
    ],
    ids=str,
)
def test_the_limits_of_a_run(resources: dict[str, int], expected: dict[str, int]) -> None:
    assert limits(Resources(**resources), DEFAULTS) == Limits(descriptors=64, log_bytes_per_second=1000, **expected)


def test_a_file_is_no_larger_than_what_it_is_in() -> None:
    assert limits(Resources(), DEFAULTS, file_bytes=5).file_bytes == 5
