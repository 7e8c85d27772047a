"""Which cases of a test stay in the fast lane."""

from collections.abc import Collection, Hashable, Iterable
from typing import Any

import pytest


def fast_if(fast: Collection[Hashable], cases: Iterable[Hashable]) -> list:
    """All cases; those that are not among the fast ones are marked `slow`."""
    cases = list(cases)
    assert fast and set(fast) <= set(cases)
    return [_case(case, case in fast) for case in cases]


def every_third(cases: Iterable[Any]) -> list:
    """All cases; those between each third one are marked `slow`."""
    return [_case(case, number % 3 == 0) for number, case in enumerate(cases)]


def _case(case: Any, is_fast: bool):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=() if is_fast else pytest.mark.slow)
