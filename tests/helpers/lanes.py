"""Which cases of a test stay in the fast lane."""

from collections.abc import Collection, Hashable, Iterable

import pytest


def fast_if(fast: Collection, cases: Iterable[Hashable]) -> list:
    """All cases; those that are not among the fast ones are marked `slow`."""
    cases = list(cases)
    assert fast and set(fast) <= set(cases)
    as_values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*values, marks=() if case in fast else pytest.mark.slow)
        for case, values in zip(cases, as_values, strict=True)
    ]
