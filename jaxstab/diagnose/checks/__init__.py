"""Exact checks: identities that hold in every run, whatever its method, optimizer and data, until something else acts.

Each is a function of a `History` that gives the `Break`s that it sees. They know no threshold but rounding.
"""

from jaxstab.diagnose.checks.base import Break, Event, together
from jaxstab.diagnose.checks.moments import broken_moments
from jaxstab.diagnose.checks.rate import expected_rate, rates_off
from jaxstab.diagnose.checks.records import Replaced, compared_batches, position_breaks, records_from
from jaxstab.diagnose.checks.weights import broken_weights, restored_from

__all__ = [
    "Break",
    "Event",
    "Replaced",
    "broken_moments",
    "broken_weights",
    "compared_batches",
    "expected_rate",
    "position_breaks",
    "rates_off",
    "records_from",
    "restored_from",
    "together",
]
