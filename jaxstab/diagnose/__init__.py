"""What happened to a run, and where it began."""

from jaxstab.diagnose.cause import Cause, find_causes
from jaxstab.diagnose.replay import replay
from jaxstab.diagnose.report import Diagnosis, diagnose, diagnosed
from jaxstab.diagnose.series import Run, read_run
from jaxstab.diagnose.tev import tev

__all__ = ["Cause", "Diagnosis", "Run", "diagnose", "diagnosed", "find_causes", "read_run", "replay", "tev"]
