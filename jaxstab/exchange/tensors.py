"""Safetensors files from anywhere: what is in them by their headers, and single tensors as they lie on the disk.

A header is believed only once safetensors has checked it against the size of its file. The tensors are read here, since
that library gives NumPy no float8.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxstab import safe_json
from jaxstab.config import UserError

LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses longer ones too
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
KNOWN = {*FLOATS, "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F6_E2M3", "F6_E3M2", "F4", "C64", "BOOL"}
KNOWN |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      path: the file.
      name: its name there.
      dtype: by safetensors' name, such as BF16.
      shape: of the tensor.
      offset: of its first byte in the file.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def array(self) -> np.ndarray:
        """The tensor, mapped into memory; raises UserError where it has no float dtype known here."""
        if self.dtype not in FLOATS:
            raise UserError(
                f"{self.name} of {self.path} is of dtype {self.dtype}, whose numbers mean something only with the "
                f"scales of its quantization; known are {', '.join(FLOATS)}"
            )
        if not math.prod(self.shape):
            return np.zeros(self.shape, FLOATS[self.dtype])
        return np.memmap(self.path, FLOATS[self.dtype], "r", self.offset, self.shape)


def tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, by name; raises UserError where it is none, or its header lies."""
    header, start = _header(path)
    for name, each in header.items():
        dtype = each.get("dtype") if isinstance(each, dict) else None
        if isinstance(dtype, str) and dtype not in KNOWN:
            raise UserError(f"{name} of {path} is of dtype {dtype}, which isn't known here")
    _validate(path)
    return {
        name: Tensor(path, name, each["dtype"], tuple(each["shape"]), start + each["data_offsets"][0])
        for name, each in header.items()
        if name != "__metadata__"
    }


def _header(path: Path) -> tuple[dict, int]:
    """The header of a file and the offset of what follows it."""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > min(LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError(f"its header would have {size} bytes")
            header = safe_json.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error).splitlines()[0]}") from error
    return header, 8 + size


def _validate(path: Path) -> None:
    """Raises UserError where the header doesn't describe the file: shapes, dtypes, offsets, its end."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error).splitlines()[0][:200]}") from error
