"""A disk that is full, or a directory that can't be written: the reason is told, and what was there is as it was."""

import errno
import os
from pathlib import Path

import pytest

from jaxstab import durable
from jaxstab.config import UserError
from jaxstab.train.workdir import write_whole


def failing(name, monkeypatch, code=errno.ENOSPC):
    """Lets a call of the operating system fail."""

    def call(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, call)


def fill(monkeypatch):
    """As a full disk: the bytes are buffered, and half of them fit."""
    real = Path.write_bytes

    def write_bytes(self, data):
        real(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("fail", [fill, lambda m: failing("fsync", m), lambda m: failing("replace", m, errno.EROFS)])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fail):
    path = tmp_path / "a.json"
    write_whole(path, {"a": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        fail(patched)
        with pytest.raises(UserError, match=r"a\.json can't be written: (No space left|Read-only file)") as error:
            write_whole(path, {"a": 2})
    assert "\n" not in str(error.value)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a.json": before}


def test_a_directory_takes_the_place_of_another(tmp_path):
    for name, content in (("new", "b"), ("old", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    durable.replace_directory(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "file").read_text() == "b"
