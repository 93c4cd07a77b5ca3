"""What happened to a run, and where it began."""

from jaxstab.diagnose.causes import Cause, find_causes
from jaxstab.diagnose.diagnosis import Diagnosis, diagnosed
from jaxstab.diagnose.history import History, read_history
from jaxstab.diagnose.replay import replay
from jaxstab.diagnose.report import diagnose, diagnose_log
from jaxstab.diagnose.tev import tev

__all__ = [
    "Cause",
    "Diagnosis",
    "History",
    "diagnose",
    "diagnose_log",
    "diagnosed",
    "find_causes",
    "read_history",
    "replay",
    "tev",
]
