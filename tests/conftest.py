"""Settings that must stand before JAX is imported; processes that tests start inherit them."""

import os
import pathlib

from absl import flags

CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"
# Most tests spend their time compiling: less of it, and programs are kept.
FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_backend_optimization_level": "0"}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Grain reads absl's flags, which only a program's main function parses.
flags.FLAGS.mark_as_parsed()
