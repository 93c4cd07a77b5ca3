"""Settings that must stand before JAX is imported; processes that tests start inherit them."""

import importlib.util
import mmap
import os
import pathlib

from absl import flags

CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"
# Most tests spend their time compiling: less of it, and programs are kept. XLA's older emitter of fused loops compiles
# a training step in a third of the time.
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_use_fusion_emitters": "false",
}


def is_known(flag: str) -> bool:
    """Whether this jaxlib has a flag: one that it doesn't know ends the process, and flags of XLA come and go."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec and spec.origin
    library = pathlib.Path(spec.origin).with_name("libjax_common.so")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.lstrip("-").encode()) >= 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
    if flag not in os.environ.get("XLA_FLAGS", "") and is_known(flag):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Grain reads absl's flags, which only a program's main function parses.
flags.FLAGS.mark_as_parsed()
