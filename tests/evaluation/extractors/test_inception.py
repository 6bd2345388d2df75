"""Where Inception's weights come from, and that no file can run code."""

import hashlib
import http.server
import io
import pickle
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as upstream

from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import ExtractorSettings, inception
from gmtool.evaluation.extractors.inception import (
    build_inception,
    fetch_weights,
    prepare,
    read_weights,
    spatial_features,
    weights_cache,
)
from gmtool.progress import Progress

PUBLISHED = upstream.URL_INCEPTION_V3


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served over HTTP, and a function that says which file of it holds the published weights."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what one of the tests is about."""

    folder = tmp_path / "served"
    folder.mkdir()
    with Server(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def publish(content: bytes, digest: str) -> None:
            (folder / f"weights-{digest}.pth").write_bytes(content)
            url = f"http://127.0.0.1:{running.server_port}/weights-{digest}.pth"
            monkeypatch.setattr(upstream, "URL_INCEPTION_V3", url)

        yield publish
        running.shutdown()


def test_weights_are_fetched_into_the_hub_cache_whole(cache, server):
    content = bytes(range(256)) * 9000
    digest = hashlib.sha256(content).hexdigest()[:8]
    server(content, digest)
    seen = []
    progress = Progress()
    progress.advance = lambda count=1, figures=None: seen.append(count)
    assert fetch_weights(progress, None) == weights_cache() == cache / f"weights-{digest}.pth"
    assert weights_cache().read_bytes() == content
    assert sum(seen) == len(content) // 2**20
    assert [path.name for path in cache.iterdir()] == [f"weights-{digest}.pth"]


def test_other_content_than_published_is_not_kept(cache, server):
    server(b"captive portal", "0badc0de")
    with pytest.raises(MachineError, match=r"other content.*--features tokenizer"):
        fetch_weights(Progress(), None)
    assert list(cache.iterdir()) == []


def test_a_download_that_takes_too_long_is_given_up(cache, server):
    content = b"x" * 2**22
    server(content, hashlib.sha256(content).hexdigest()[:8])
    with pytest.raises(MachineError, match="not done after"):
        fetch_weights(Progress(), 1e-9)
    assert list(cache.iterdir()) == []


def test_without_network_the_message_names_the_ways_out(cache, monkeypatch):
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-01234567.pth")
    with pytest.raises(MachineError, match="--inception-weights FILE, or use --features tokenizer"):
        fetch_weights(Progress(), None)


def test_a_missing_weights_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth is not a file"):
        prepare(ExtractorSettings(inception_weights=tmp_path / "nowhere.pth"), None, Progress())


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["text", "pickle", "torch", "tensor", "truncated"])
def test_other_files_are_refused_and_run_nothing(kind, tmp_path):
    file, target = tmp_path / "weights.pth", tmp_path / "exploded"
    whole = io.BytesIO()
    torch.save({"weight": torch.zeros(100)}, whole)
    if kind == "text":
        file.write_text("not weights")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"weight": Bomb(target)}))
    elif kind == "torch":
        torch.save({"weight": Bomb(target)}, file)
    elif kind == "tensor":
        torch.save(torch.zeros(3), file)
    else:
        file.write_bytes(whole.getvalue()[:-200])
    with pytest.raises(UserError, match=r"weights\.pth does not hold"):
        read_weights(file)
    assert not target.exists()


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, file)
    weights = read_weights(file)
    assert not weights.published
    with pytest.raises(UserError, match=r"other\.pth does not hold the weights of torch-fidelity's Inception"):
        build_inception(weights, file, torch.device("cpu"))


def test_the_digest_is_the_hubs(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", PUBLISHED)
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1)}, file)
    assert read_weights(file).digest == hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    assert inception.published_digest() == "6726825d"


def test_spatial_features_lie_as_adms_do():
    """Seven channels at each of 17 x 17 positions, channels fastest, as TensorFlow's NHWC is flattened."""
    maps = torch.randn(2, 192, 17, 17)
    spatial = spatial_features(maps)
    assert spatial.shape == (2, 2023)
    np.testing.assert_array_equal(spatial.numpy(), maps.numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1))


@pytest.mark.slow
def test_spatial_features_are_of_the_fourth_of_the_blocks_of_17_by_17(inception_weights):
    """``mixed_6`` of the graph is the third block after ``mixed_3``, which halves the maps; of it the 1 x 1 branch."""
    settings = ExtractorSettings(inception_weights=inception_weights)
    extractor = inception.open_extractor(settings, None, torch.device("cpu"), Progress())
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    blocks = [name for name, _ in extractor.network.named_children() if name.startswith("Mixed_6")]
    handle = extractor.network.get_submodule(blocks[3]).register_forward_hook(lambda *call: seen.append(call[2]))
    features = extractor(images)
    handle.remove()
    assert blocks[0] == "Mixed_6a" and seen[0].shape == (2, 768, 17, 17)
    torch.testing.assert_close(features.spatial, seen[0][:, :7].permute(0, 2, 3, 1).flatten(1))
    assert features.vectors.shape == (2, 2048) and features.logits.shape == (2, 1008)
