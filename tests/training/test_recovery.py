import os
import signal
import threading
from pathlib import Path

import pytest
from user import torchrun

from gmtool.training.recovery import finishing_the_step

RESUME = """
from pathlib import Path
import torch
from gmtool.cli import app
from gmtool.distributed import join, whole
from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.progress import Progress
from gmtool.training import checkpoint, recovery
from gmtool.training.checkpoint import OPTIMIZER, Position, save_checkpoint
from gmtool.training.settings import AverageSettings, OptimizerSettings
from gmtool.training.state import make_state

ARCHITECTURE = DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2)
notes = []

class Notes(Progress):
    def note(self, text):
        notes.append(text)

def unreadable(path, **given):
    if path == Path(path.parts[0], "step-00000002", OPTIMIZER):
        raise UserError(f"{path} is damaged (Input/output error)")
    return read_tensors(path, **given)

read_tensors = checkpoint.read_tensors

def execute(_arguments):
    world = join("cpu")
    if not world.first:
        checkpoint.read_tensors = unreadable
        recovery.list_checkpoints = lambda folder: ()  # a list from a cache
    for sharded in (False, True):
        folder, network = Path(f"{sharded}"), build_network(ARCHITECTURE, 0)
        state = make_state(network, OptimizerSettings(), AverageSettings(), 0.1, 2, sharded=sharded, world=world)
        bias = dict(network.named_parameters())["head.linear.bias"]
        for step in (1, 2):
            with torch.no_grad():
                bias.fill_(step)
            files = state.tensors(world)
            if world.first:
                save_checkpoint(folder, Position(step), files)
        world.barrier()
        assert recovery.resume(Path("run"), folder, state, Notes(), world) == Position(1)
        assert (whole(bias) == 1).all()
        assert len(notes) == 2 and f"step-00000002/{OPTIMIZER} is damaged (Input/output error)" in notes[0]
        notes.clear()
        try:
            recovery.roll_back(folder, Position(4, streak=2), state, Notes(), world)
        except UserError as error:
            assert "is damaged (Input/output error)" in str(error)
        else:
            raise AssertionError("the second process cannot read what is rolled back to")
    return 0

app.execute = execute
app.run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), finishing_the_step() as told:
        assert not told()
        os.kill(os.getpid(), number)
        assert told()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_another_thread_is_never_told():
    answers = []

    def work():
        with finishing_the_step() as told:
            answers.append(told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.mark.slow
def test_all_processes_take_the_same_checkpoint_where_one_cannot_read_the_newest(tmp_path: Path):
    """Whether each holds the network whole or in part: none waits for the others in vain."""
    (tmp_path / "script.py").write_text(RESUME)
    done = torchrun(["script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
