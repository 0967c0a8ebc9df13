"""Verdicts: the one rule of intervals."""

import pytest

from limelight.validate.outcome import LEAST, judged

GOOD, BAD, OPEN = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)


@pytest.mark.parametrize(
    ("gains", "verdict", "every"),
    [
        ([GOOD], "passed", "passed"),
        ([BAD], "failed", "failed"),
        ([OPEN], "measured", "measured"),
        ([(-0.2, 0.0)], "measured", "measured"),
        ([(0.0, 0.2)], "measured", "measured"),
        ([(0.0, 0.0)], "measured", "measured"),
        ([GOOD, OPEN], "passed", "measured"),
        ([GOOD, GOOD], "passed", "passed"),
        ([GOOD, BAD], "failed", "failed"),
        ([OPEN, BAD], "failed", "failed"),
        ([], "measured", "measured"),
    ],
)
def test_a_claim_fails_where_an_interval_lies_wholly_on_the_wrong_side(gains, verdict, every):
    assert judged(gains) == verdict
    assert judged(gains, every=True) == every
    assert judged(gains, LEAST - 1) == judged(gains, LEAST - 1, every=True) == "measured"
