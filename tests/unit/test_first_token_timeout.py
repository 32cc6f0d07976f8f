"""How much longer a turn waits for a model that reads a long prompt."""

from __future__ import annotations

import pytest

from isabella.turns.first_token_timeout import LONGEST, ReadingSpeeds

HERE = "smol/smollm2"


@pytest.mark.parametrize(
    ("local", "alone", "seconds"), [(False, False, 2), (False, True, 2), (True, False, 20), (True, True, 100)]
)
def test_before_it_was_measured(local: bool, alone: bool, seconds: float) -> None:
    """Vendors on the internet are fast; a server in the house may read 20 tokens a second, if nobody else answers."""
    assert ReadingSpeeds().longer(HERE, 2000, local=local, alone=alone) == seconds


def test_the_slowest_measurement_counts_with_a_margin() -> None:
    """A prompt of which the server still knows the beginning says little about the next one."""
    speeds = ReadingSpeeds()
    speeds.note(HERE, 1000, 20.0)
    speeds.note(HERE, 1000, 0.1)
    assert speeds.longer(HERE, 500, local=True, alone=False) == pytest.approx(30.0)
    assert speeds.longer("other/model", 500, local=True, alone=False) == 5.0


def test_a_machine_that_became_faster_is_believed_after_a_while() -> None:
    """Only the latest measurements are kept."""
    speeds = ReadingSpeeds()
    for seconds in (100.0, *[1.0] * 20):
        speeds.note(HERE, 1000, seconds)
    assert speeds.longer(HERE, 1000, local=True, alone=True) == pytest.approx(3.0)


def test_no_measurement_makes_it_wait_for_ever() -> None:
    """Nor does one of nothing."""
    speeds = ReadingSpeeds()
    speeds.note(HERE, 0, 5.0)
    speeds.note(HERE, 5, 0.0)
    assert speeds.longer(HERE, 100_000, local=True, alone=True) == LONGEST
