"""Settings that must stand before JAX is imported; processes that tests start inherit them."""

import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"
# Most tests spend their time compiling: less of it, and programs are kept.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# XLA's older emitter of fused loops compiles a training step in a third of the time.
OLD_EMITTER = "--xla_cpu_use_fusion_emitters=false"


def is_known(flag: str) -> bool:
    """Whether this jaxlib has a flag: one that it doesn't know ends the process, and jaxlib 0.12 lacks that above."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": flag}, capture_output=True).returncode == 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
given = os.environ.get("XLA_FLAGS", "")
missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
if missing:  # in this process first of all; those that it starts have them
    missing += [OLD_EMITTER] if is_known(OLD_EMITTER) else []
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Grain reads absl's flags, which only a program's main function parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="module")
def _let_go_of_programs():
    """Programs go with the file that compiled them.

    Each holds dozens of mappings of memory, of which Linux gives a process 65,530: with the programs of a thousand
    tests XLA crashes where it loads the next.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
