"""What a run writes about itself, and how to read it back."""

from jaxstab.logging.columns import read_measurements
from jaxstab.logging.jsonl import each_line, in_force, read_metrics
from jaxstab.logging.run import LogConfig, RunLogger, SilentLogger

__all__ = ["LogConfig", "RunLogger", "SilentLogger", "each_line", "in_force", "read_measurements", "read_metrics"]
