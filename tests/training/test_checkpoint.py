import json
import shutil
from pathlib import Path

import pytest
import torch

from gmtool.artifacts.files import part_of
from gmtool.errors import UserError
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiT, DiTArchitecture
from gmtool.training.checkpoint import (
    EMA,
    MODEL,
    OPTIMIZER,
    STATE,
    Position,
    cut_short,
    find_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_weights,
    remove_old,
    save_checkpoint,
)
from gmtool.training.optimizer import Optimizer, make_optimizer
from gmtool.training.settings import OptimizerSettings

ARCHITECTURE = DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2, classes=3)
SETTINGS, RATE = OptimizerSettings(weight_decay=0.1), 0.01


def make(seed: int) -> tuple[DiT, Optimizer]:
    network = build_network(ARCHITECTURE, seed)
    return network, make_optimizer(network, SETTINGS, RATE)


def take_step(network: DiT, optimizer: Optimizer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 2, 2, 2, generator=draw)
    optimizer.zero_grad()
    (network(x, torch.rand(4, generator=draw), Conditions(torch.arange(4) % 4)) - x).square().mean().backward()
    optimizer.step(RATE, torch.tensor(False))


def save(folder: Path, step: int, keep: int = 2, streak: int = 0) -> tuple[DiT, Optimizer]:
    network, optimizer = make(step)
    take_step(network, optimizer, step)
    average = build_network(ARCHITECTURE, step + 1000)
    files = {MODEL: network.state_dict(), EMA: average.state_dict(), OPTIMIZER: optimizer.state()}
    save_checkpoint(folder, Position(step, streak=streak), files)
    remove_old(folder, keep)
    return network, optimizer


def test_what_is_saved_comes_back_and_continues_alike(tmp_path: Path) -> None:
    network, optimizer = save(tmp_path, 1)
    checkpoint = find_checkpoint(tmp_path, None)
    again, its_optimizer = make(77)
    load_weights(again, checkpoint.path / MODEL)
    load_optimizer(its_optimizer, checkpoint.path / OPTIMIZER)
    for seed in (5, 6):
        take_step(network, optimizer, seed)
        take_step(again, its_optimizer, seed)
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    average = build_network(ARCHITECTURE, 0)
    load_weights(average, checkpoint.path / EMA)
    assert torch.equal(average.x_embedder.weight, build_network(ARCHITECTURE, 1001).x_embedder.weight)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [15, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]
    assert find_checkpoint(tmp_path, None).step == 20
    assert find_checkpoint(tmp_path, 15).step == 15
    with pytest.raises(UserError, match=r"--checkpoint 5: .* has 15, 20"):
        find_checkpoint(tmp_path, 5)


def test_one_to_roll_back_to_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    kept = []
    for step, streak in ((5, 0), (10, 0), (15, 1), (20, 6), (25, 11), (30, 0), (35, 0)):
        save(tmp_path, step, keep=2, streak=streak)
        kept.append([checkpoint.step for checkpoint in list_checkpoints(tmp_path)])
    assert kept[3:] == [[10, 15, 20], [10, 20, 25], [25, 30], [30, 35]]


def test_steps_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step, keep=3)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]


def test_an_unfinished_checkpoint_is_none_and_is_written_over(tmp_path: Path) -> None:
    part, other = part_of(tmp_path / "step-00000007"), part_of(tmp_path / "step-00000003")
    part.mkdir()
    other.mkdir()
    (part / "state.json").write_text("{}")
    (part / "left over").write_text("")
    (tmp_path / "step-00000008").mkdir()  # without a state: not gmtool's
    assert list_checkpoints(tmp_path) == ()
    assert cut_short(tmp_path) == (tmp_path / "step-00000008",)
    with pytest.raises(
        UserError, match="step-00000008 was cut short or changed since it was written, and there is no whole checkpoint"
    ):
        find_checkpoint(tmp_path, None)
    save(tmp_path, 7)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [7]
    assert not part.exists() and not other.exists()
    assert not (tmp_path / "step-00000007" / "left over").exists()
    assert list_checkpoints(tmp_path / "none") == ()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        find_checkpoint(tmp_path / "none", None)


def test_a_newer_checkpoint_that_is_not_whole_is_passed_over_with_a_word(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    assert find_checkpoint(tmp_path, None).notes == ()
    (tmp_path / "step-00000003" / EMA).unlink()
    (tmp_path / "step-00000001" / STATE).unlink()  # older ones do not matter
    checkpoint = find_checkpoint(tmp_path, None)
    (line,) = checkpoint.notes
    assert checkpoint.step == 2 and f"{tmp_path / 'step-00000003'} was cut short" in line and "step 2 instead" in line
    with pytest.raises(UserError, match=r"--checkpoint 3: .*step-00000003 was cut short"):
        find_checkpoint(tmp_path, 3)


def test_a_changed_position_is_no_checkpoint(tmp_path: Path) -> None:
    """Any flipped bit of the state: refused, or the same position."""
    save(tmp_path, 7)
    file = tmp_path / "step-00000007" / STATE
    whole, (right,) = file.read_bytes(), list_checkpoints(tmp_path)
    for place in range(len(whole)):
        for bit in (1, 16):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert list_checkpoints(tmp_path) in ((), (right,))
    state = json.loads(whole)
    del state["checksum"]  # as earlier versions wrote it
    file.write_text(json.dumps(state))
    assert list_checkpoints(tmp_path) == (right,)


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 7)
    network, _ = make(1)
    save_checkpoint(tmp_path, Position(7), {MODEL: network.state_dict()})
    again = build_network(ARCHITECTURE, 0)
    load_weights(again, find_checkpoint(tmp_path, 7).path / MODEL)
    assert torch.equal(again.x_embedder.weight, network.x_embedder.weight)


@pytest.mark.parametrize(
    "other",
    [
        DiTArchitecture((2, 2, 2), depth=2, width=16, heads=2, classes=3),
        DiTArchitecture((2, 2, 2), depth=1, width=32, heads=2, classes=3),
        DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2),
    ],
)
def test_weights_of_another_network(tmp_path: Path, other: DiTArchitecture) -> None:
    save(tmp_path, 1)
    file = find_checkpoint(tmp_path, 1).path / MODEL
    with pytest.raises(UserError, match=r"model.safetensors holds the weights of another network") as caught:
        load_weights(build_network(other, 0), file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text, not tensors", None])
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_damaged_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    save(tmp_path, 1)
    file = find_checkpoint(tmp_path, 1).path / name
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    network, optimizer = make(0)
    with pytest.raises(UserError, match=f"{name} is damaged") as caught:
        load_weights(network, file) if name == MODEL else load_optimizer(optimizer, file)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_weights(network, file)


def test_files_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    save(tmp_path, 1)
    plain = tmp_path / "plain"
    plain.write_text("")
    for file in find_checkpoint(tmp_path, 1).path.iterdir():
        assert file.stat().st_mode == plain.stat().st_mode, file


def test_decay_is_on_matrices_alone() -> None:
    network, optimizer = make(0)
    decayed, others = optimizer.parts[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert {parameter.dim() for parameter in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))
    assert decayed["betas"] == (0.9, 0.95)


def test_a_kill_during_a_removal_leaves_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, Position(step), {"model.safetensors": {"a": torch.zeros(2)}})

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        (folder / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_old(tmp_path, keep=2)
    assert cut_short(tmp_path) == ()
    remove_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
