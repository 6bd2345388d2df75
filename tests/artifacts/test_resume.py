import numpy as np
import pytest

from gmtool.artifacts.resume import ResumeFile, ResumeState
from gmtool.progress import Progress

STATE = ResumeState({"images": 3, "names": ["a", "b"]}, {"mean": np.arange(4.0), "count": np.array(7)})
SILENT = Progress()


class Notes(Progress):
    def __init__(self) -> None:
        self.lines = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_a_state_comes_back_for_its_own_key_alone(tmp_path):
    file = ResumeFile(tmp_path / "out.h5", "key")
    assert file.load(SILENT) is None
    assert not file.exists()
    file.save(STATE)
    loaded = file.load(SILENT)
    assert loaded.record == STATE.record
    assert loaded.arrays.keys() == STATE.arrays.keys()
    np.testing.assert_array_equal(loaded.arrays["mean"], STATE.arrays["mean"])
    notes = Notes()
    assert ResumeFile(tmp_path / "out.h5", "other").load(notes) is None
    assert notes.lines == [f"{tmp_path / 'out.h5'} was begun with other inputs or settings: starting over"]
    file.remove()
    assert list(file.path.parent.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_damaged_state_is_none_and_told(tmp_path, kept):
    file = ResumeFile(tmp_path / "out.h5", "key")
    file.save(STATE)
    file.path.write_bytes(file.path.read_bytes()[:kept])
    notes = Notes()
    assert file.load(notes) is None
    (line,) = notes.lines
    assert line.startswith(f"{file.path} is damaged (") and line.endswith("): starting over")


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    file = ResumeFile(tmp_path / "out.h5", "key")
    file.save(STATE)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        file.save(ResumeState({"images": 4}))
    assert file.load(SILENT).record["images"] == 3
    assert list(file.path.parent.iterdir()) == [file.path]
