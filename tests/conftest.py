"""Settings that must stand before JAX is imported; processes that tests start inherit them."""

import os
import pathlib

from absl import flags

CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    # Small programs are kept too: most tests spend their time compiling.
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# Grain reads absl's flags, which only a program's main function parses.
flags.FLAGS.mark_as_parsed()
