"""Files that are on this machine, in the hub's cache, on the hub, or nowhere."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from gmtool.errors import MachineError, UserError
from gmtool.huggingface import local_or_hub_file


def test_a_file_on_this_machine_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    here = Path("owner/name/file.pt")
    here.parent.mkdir(parents=True)
    here.touch()
    for source in ("owner/name/file.pt", "missing.pt", "folder/missing.pt", "./a/b/missing.pt", "/no/such/file.pt"):
        assert local_or_hub_file(source, "SOURCE") == Path(source)


def test_a_file_of_a_repository_is_taken_from_the_cache_or_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, bool]] = []

    def download(repository: str, file: str, *, local_files_only: bool = False, **_: object) -> str:
        asked.append((repository, file, local_files_only))
        if local_files_only and len(asked) == 1:
            raise LocalEntryNotFoundError("not there yet")
        return str(tmp_path / "fetched.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        assert local_or_hub_file("owner/name/folder/file.pt", "SOURCE") == tmp_path / "fetched.pt"
    name = ("owner/name", "folder/file.pt")
    assert asked == [(*name, True), (*name, False), (*name, True)]


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (LocalEntryNotFoundError("no network"), MachineError, "cannot be fetched from huggingface.co"),
        (EntryNotFoundError("404"), UserError, "has the repository, but not this file"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], words: str
) -> None:
    def download(*_: object, local_files_only: bool = False, **__: object) -> str:
        raise LocalEntryNotFoundError("not there yet") if local_files_only else raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(error, match=words) as caught:
        local_or_hub_file("owner/name/file.pt", "--statistics")
    assert "\n" not in str(caught.value) and "--statistics owner/name/file.pt" in str(caught.value)
