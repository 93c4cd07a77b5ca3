"""Two network namespaces with one cable between them, as root on Linux: two hosts whose network can be cut."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
from pathlib import Path

ADDRESSES = "10.213.77.1", "10.213.77.2"


class Networks:
    """The networks of two processes; a context manager.

    Attributes:
      address: where process 0 listens.
    """

    address = f"{ADDRESSES[0]}:8476"

    def __init__(self):
        self.names = [f"jaxstab-{os.getpid()}-{number}" for number in (0, 1)]
        self._links = [f"js{os.getpid() % 10**7}-{number}" for number in (0, 1)]

    def inside(self, number):
        """What a command begins with that runs in the network of a process."""
        return ["ip", "netns", "exec", self.names[number]]

    def cut(self, number):
        """A command that takes the cable out, for the process of that number."""
        return f"ip link set {self._links[number]} down"

    def __enter__(self):
        try:
            ip("link", "add", self._links[0], "type", "veth", "peer", "name", self._links[1])
            for name, link, address in zip(self.names, self._links, ADDRESSES, strict=True):
                # Gloo looks the machine's own name up.
                (Path("/etc/netns") / name).mkdir(parents=True)
                (Path("/etc/netns") / name / "hosts").write_text(f"{address} {socket.gethostname()}\n")
                ip("netns", "add", name)
                ip("link", "set", link, "netns", name)
                for setting in (("addr", "add", f"{address}/24", "dev", link), ("link", "set", link, "up")):
                    ip("-n", name, *setting)
                ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "del", name)  # and its end of the cable
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@functools.cache
def missing():
    """Why there can be no such networks here; "" where there can."""
    try:
        with Networks():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {getattr(error, 'stderr', None) or error}"
