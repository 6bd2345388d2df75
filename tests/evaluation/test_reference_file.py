"""Reference files with ADM's arrays: what they hold, and that figures against them are those against the images."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from points import normal

from gmtool.cli.app import main
from gmtool.evaluation.array_reference import open_npz
from gmtool.evaluation.features import Features, feature_statistics
from gmtool.evaluation.reference_file import write_reference_file


@pytest.fixture
def folders(tmp_path, digits):
    for name, images in (("real", digits[:12]), ("samples", digits[100:108])):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index:02d}.png")
    return tmp_path


def scored(capsys, *arguments: object) -> dict[str, float]:
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    return {figure["metric"]: figure["generated"]["value"] for figure in json.loads(capsys.readouterr().out)["figures"]}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    """A DINOv2 of 8 numbers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 14, "image_size": 224}
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_reference_and_samples_in_adms_form_give_the_same_figures(folders, dinov2, digits, capsys):
    """Statistics of a set, and its images, through a file; and the samples as ADM's tools write them."""
    common = ["--dinov2-weights", dinov2, "--cache-size", "0"]
    written = ["--write-reference", folders / "ref.npz"]
    plain = scored(capsys, folders / "samples", "--reference", folders / "real", *common, *written)
    reference = dict(np.load(folders / "ref.npz"))
    assert {name: array.shape for name, array in reference.items()} == {
        "mu": (8,),
        "sigma": (8, 8),
        "arr_0": (12, 8, 8, 3),
    }
    np.testing.assert_array_equal(reference["arr_0"], digits[:12])
    np.savez(folders / "samples.npz", arr_0=digits[100:108], arr_1=np.zeros(8, np.int64))
    through = scored(capsys, folders / "samples.npz", "--reference", folders / "ref.npz", *common)
    assert through.keys() == plain.keys() and {"frechet_distance", "precision"} <= plain.keys()
    for metric, value in plain.items():
        assert through[metric] == pytest.approx(value, rel=1e-6, abs=1e-9), metric
    # a file of statistics alone
    np.savez(folders / "mu.npz", mu=reference["mu"], sigma=reference["sigma"])
    alone = scored(capsys, folders / "samples.npz", "--reference", folders / "mu.npz", *common)
    assert alone["frechet_distance"] == pytest.approx(plain["frechet_distance"], rel=1e-6)
    assert "precision" not in alone


def test_spatial_statistics_are_written_and_read(tmp_path):
    features = Features(normal(9, 3, 0), None, normal(9, 5, 1))
    write_reference_file(tmp_path / "ref.npz", features, None, 8)
    reference = open_npz(tmp_path / "ref.npz", "ref.npz")
    expected = feature_statistics(features.spatial)
    np.testing.assert_array_equal(reference.spatial.mean, expected.mean)
    np.testing.assert_array_equal(reference.spatial.covariance, expected.covariance)
    assert reference.statistics.mean.shape == (3,) and len(reference) == 0


def test_nothing_is_replaced_and_a_reference_is_an_npz(folders, capsys):
    (folders / "mine.npz").write_text("mine")
    arguments = ["eval", str(folders / "samples"), "--reference", str(folders / "real"), "--write-reference"]
    for name, message in (("mine.npz", "exists"), ("ref.txt", "ends in .npz")):
        assert main([*arguments, str(folders / name)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (folders / "mine.npz").read_text() == "mine"
    np.savez(folders / "mu.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert (
        main(["eval", str(folders / "samples"), "--reference", str(folders / "mu.npz"), "--write-reference", "x.npz"])
        == 2
    )
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--write-reference needs real images, and" in message and "holds statistics alone" in message
