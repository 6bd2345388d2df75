"""What two processes under torchrun tell each other, and what a user sees of them; one process alone."""

from pathlib import Path

import pytest
import torch
from user import torchrun

from gmtool.distributed import World, join
from gmtool.errors import UserError

SCRIPT = """
import sys
from pathlib import Path
import torch
from gmtool.cli import app
from gmtool.distributed import join
from gmtool.errors import UserError

def execute(_arguments):
    world = join("auto")
    rank = world.rank
    assert (world.size, world.device) == (2, torch.device("cpu"))
    assert list(world.share(5)) == [[0, 1], [2, 3, 4]][rank]
    values = torch.tensor([1.0, 2.0]) * (rank + 1)
    assert world.sum(values).tolist() == [3, 6] and values.tolist() == [rank + 1, 2 * (rank + 1)]
    assert world.mean(torch.tensor([1.0, 2.0]) * rank).tolist() == [0.5, 1]
    assert world.any(rank == 1) and not world.any(False)
    assert world.broadcast({"a": torch.ones(2)} if rank == 0 else {})["a"].tolist() == [1, 1]
    assert world.tell({"step": 3 + rank, "names": ["ü", None]}) == {"step": 3, "names": ["ü", None]}
    assert world.failure(f"{rank} fails") == "0 fails" and world.failure("1 fails" if rank else None) == "1 fails"
    assert world.failure(None) is None
    with world.first_before_others():
        assert Path("made").exists() == bool(rank)
        Path("made").touch()
    gathered = world.gather({"rows": torch.full((rank + 1, 2), rank), "half": torch.ones(rank, dtype=torch.float16)})
    if rank:
        assert gathered == []
    else:
        assert [part["rows"].tolist() for part in gathered] == [[[0, 0]], [[1, 1], [1, 1]]]
        assert [len(part["half"]) for part in gathered] == [0, 1] and gathered[1]["half"].dtype == torch.float16
    print("said by", rank)
    print("noted by", rank, file=sys.stderr)
    if rank == 1:
        raise UserError("the second process fails")
    world.barrier()

app.execute = execute
app.run()
"""

LATE = """
import atexit
import os
from pathlib import Path
from gmtool.cli import app

class Late:
    def __del__(self):
        os.abort()

late = Late()  # which goes when the interpreter is torn down
atexit.register(Path("cleared-" + os.environ["RANK"]).touch)
app.execute = lambda _arguments: print("done") or 0
app.run()
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is asserted to be the CPU")
def test_two_processes_agree_and_the_one_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(["script.py"], tmp_path)
    assert done.returncode != 0
    assert done.stdout.splitlines() == ["said by 0"]
    ours = done.stderr.split("torch/distributed")[0].splitlines()[:-1]  # then torchrun tells that a process failed
    assert sorted(ours) == ["gmtool: error: the second process fails", "noted by 0"]


@pytest.mark.slow
def test_a_process_of_torchrun_ends_without_tearing_itself_down(tmp_path: Path) -> None:
    """A thread of gloo that lets go of a tensor too late would abort it; what is registered for exit does run."""
    (tmp_path / "script.py").write_text(LATE)
    done = torchrun(["script.py"], tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert len(list(tmp_path.glob("cleared-*"))) == 2


def test_one_process_is_a_world() -> None:
    world = join("cpu")
    assert world == World(0, 1, torch.device("cpu")) and world.first
    values = torch.tensor([1.0, 2.0])
    assert world.share(5) == range(5)
    assert world.sum(values).tolist() == world.mean(values).tolist() == [1, 2]
    assert world.any(True) and not world.any(False)
    assert [tensors["x"].tolist() for tensors in (world.broadcast({"x": values}), *world.gather({"x": values}))] == [
        [1, 2]
    ] * 2
    assert world.tell(values) is values
    assert world.failure("it fails") == "it fails" and world.failure(None) is None
    with world.first_before_others():
        world.barrier()


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 4), (0, 2), (8, 8)])
def test_shares_are_even_and_make_up_the_whole(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [tensor for share in shares for tensor in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="--device"):
        join("tpu")
