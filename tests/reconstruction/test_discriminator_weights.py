"""The discriminator's ViT from a folder and from a file of DINO's authors."""

from pathlib import Path

import pytest
import torch
from golden import DATA
from safetensors.torch import load_file
from torch import nn

from gmtool.errors import MachineError, UserError
from gmtool.reconstruction.discriminator import Discriminator
from gmtool.reconstruction.discriminator_weights import load_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    path = tmp_path_factory.mktemp("vit") / "vit"
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(path)
    return path


def test_a_folder_and_its_tokens(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    features = load_features(str(folder), (0,), CPU)
    config = ViTConfig.from_pretrained(folder, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
    network = ViTModel.from_pretrained(folder, config=config).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        hidden = network(pixels, output_hidden_states=True).hidden_states
        last, first = features(images)
    torch.testing.assert_close(first, hidden[1][:, 1:].transpose(1, 2), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(last, hidden[2][:, 1:].transpose(1, 2), atol=2e-5, rtol=1e-5)


def test_only_the_heads_learn_and_the_seed_makes_them(folder: Path) -> None:
    one, other, third = (Discriminator(load_features(str(folder), (), CPU), seed=seed) for seed in (0, 0, 1))
    assert all(name.startswith("heads.") for name, parameter in one.named_parameters() if parameter.requires_grad)
    assert not any(module.training for module in one.train().features.network.modules())
    for a, b, c in zip(one.heads.parameters(), other.heads.parameters(), third.heads.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)
    logits = one(torch.rand(2, 3, 40, 40))
    assert logits.shape == (2, 3 * 16)


def test_a_file_of_the_authors_and_one_that_was_cut_short(tmp_path: Path) -> None:
    weights = load_file(DATA / "decoder_gan.safetensors")
    dino = {name.removeprefix("dino."): tensor for name, tensor in weights.items() if name.startswith("dino.")}
    torch.save(dino, tmp_path / "dino.pth")
    features = load_features(str(tmp_path / "dino.pth"), (), CPU)
    assert (features.blocks, features.size, features.width) == ((0, 1, 2, 3), 224, 32)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "dino.pth").read_bytes()[:5000])
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    torch.save(
        {name: tensor for name, tensor in dino.items() if "blocks.1.norm1" not in name}, tmp_path / "lacking.pth"
    )
    for name in ("cut", "other", "lacking"):
        with pytest.raises(UserError, match=rf"{name}\.pth") as caught:
            load_features(str(tmp_path / f"{name}.pth"), (), CPU)
        assert "\n" not in str(caught.value)


def test_what_is_no_vit(folder: Path, tmp_path: Path) -> None:
    for source, words in (
        (str(DATA / "rae_encoder"), "not a ViT"),
        (str(tmp_path), r"holds no config\.json"),
        ("./nowhere", "no file or folder, and no hub id"),
    ):
        with pytest.raises(UserError, match=f"--discriminator-weights .*{words}"):
            load_features(source, (), CPU)
    with pytest.raises(UserError, match=r"--discriminator-blocks 2: .* has 2 blocks"):
        load_features(str(folder), (0, 2), CPU)


def test_no_network_tells_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(MachineError, match=r"facebook/dino-vits8 .*cannot be fetched.*--adversarial none"):
        load_features(None, (), CPU)
