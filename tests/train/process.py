"""One process of a run: main.py, in which batch 5 gives no finite loss, and which hurts itself where it is told to.

FAULT=SIGKILL:5 sends that signal to itself before it dispatches step 5; FAULT="ip link set eth0 down:5" runs a command.
"""

import os
import signal
import subprocess
import sys

from jaxstab.data import Batches
from jaxstab.train.loop import Trainer
from tests.train import faults

MARK = 300  # the tokenizer's ids end at 256
MARKED = 5


def mark(records):
    """`Batches.records`, in which the last row of batch MARKED has the mark, whoever reads it."""

    def marked(self, position, count, rows=slice(None)):
        tokens = records(self, position, count, rows).copy()
        if position == MARKED * count and count - 1 in range(count)[rows]:
            tokens[-1, 0] = MARK + faults.KINDS.index("nan_loss")
        return tokens

    return marked


def hurt_before(dispatch, what, at):
    def hurt(self, step, *rest):
        if step == at:
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
            else:
                subprocess.run(what.split(), check=True)
        return dispatch(self, step, *rest)

    return hurt


def prepare(fault):
    faults.install(setattr, MARK)
    Batches.records = mark(Batches.records)
    if fault:
        what, _, step = fault.rpartition(":")
        Trainer._dispatch = hurt_before(Trainer._dispatch, what, int(step))


if __name__ == "__main__":
    import main

    prepare(os.environ.get("FAULT"))
    sys.exit(main.main(sys.argv))
