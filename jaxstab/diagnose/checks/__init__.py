"""Exact checks: identities that hold in every run, whatever its method, optimizer and data, until something else acts.

Each is a function of a `History` that gives the `Break`s that it sees. They know no threshold but rounding.
"""

from jaxstab.diagnose.checks.base import Break, Event, together
from jaxstab.diagnose.checks.moments import broken_moments
from jaxstab.diagnose.checks.rate import expected_rate, rates_off
from jaxstab.diagnose.checks.records import position_breaks, replaced_batches
from jaxstab.diagnose.checks.weights import broken_weights, restored_from

__all__ = [
    "Break",
    "Event",
    "broken_moments",
    "broken_weights",
    "expected_rate",
    "position_breaks",
    "rates_off",
    "replaced_batches",
    "restored_from",
    "together",
]
