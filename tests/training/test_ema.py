import pytest
import torch

from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiT, DiTArchitecture
from gmtool.training.ema import average_file, by_images, exponential, make_averages, power_exponent, power_law
from gmtool.training.settings import AverageSettings

CONFIG = AverageSettings(ema=(0.9, 0.5), ema_images=(640,), ema_power=(0.1, 0.25))
NAMES = ["0.9", "0.5", "images-640", "power-0.1", "power-0.25"]


def network() -> DiT:
    return build_network(DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2), 0)


def test_the_ramp() -> None:
    assert [exponential(0.999, step) for step in (0, 8, 98)] == pytest.approx([0.1, 0.5, 99 / 108])
    assert exponential(0.999, 10**6) == 0.999
    assert exponential(0.0, 5) == 0.0


def test_a_decay_that_changes_at_a_step() -> None:
    average = make_averages(network(), AverageSettings(ema=(0.999,), ema_knots="25000:0.9995,26000:0.5"), 1)[0]
    assert [average.decay(step) for step in (8, 24_999, 25_000, 26_000)] == [0.5, 0.999, 0.9995, 0.5]


def test_the_half_life_in_images() -> None:
    """After a half-life's images half of the start is left; until there are 20 times as many, a twentieth of them."""
    kept = 1.0
    for step in range(20_000, 21_000):
        kept *= by_images(64_000, 64, step)
    assert kept == pytest.approx(0.5)
    assert by_images(64_000, 64, 0) == 0
    assert by_images(10**9, 64, 100) == pytest.approx(0.5 ** (64 / (0.05 * 6400)))
    assert by_images(10**9, 1, 100) == pytest.approx(by_images(10**9, 64, 100))  # the ramp counts steps


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_width_of_the_power_law_is_the_asked_one(width: float) -> None:
    """The standard deviation of the profile tau^gamma over [0, 1], by quadrature."""
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    profile = tau ** power_exponent(width)
    profile /= profile.sum()
    mean = (profile * tau).sum()
    assert float((profile * (tau - mean).square()).sum().sqrt()) == pytest.approx(width, rel=1e-6)


def test_the_widest_power_law_is_the_mean_of_all_steps() -> None:
    assert power_exponent(12**-0.5) == pytest.approx(0, abs=1e-6)
    assert [power_law(12**-0.5, step) for step in range(4)] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])


@pytest.mark.parametrize("width", [0.05, 0.25])
def test_the_steps_weights_follow_the_power(width: float) -> None:
    """What a step of the recursion keeps in the end, against i^gamma; they sum to one."""
    steps, kept, weights = 4000, 1.0, []
    for step in reversed(range(steps)):
        weights.append(kept * (1 - power_law(width, step)))
        kept *= power_law(width, step)
    profile = torch.tensor(weights, dtype=torch.float64).flip(0)
    expected = (torch.arange(steps, dtype=torch.float64) + 1) ** power_exponent(width)
    assert float(profile.sum()) == pytest.approx(1)
    late = slice(steps // 2, None)
    torch.testing.assert_close(profile[late] / profile[-1], expected[late] / expected[-1], rtol=0.01, atol=0)


def test_several_averages_follow_their_own_recursions() -> None:
    subject = network()
    averages = make_averages(subject, CONFIG, 32)
    assert (
        [tracked.name for tracked in averages]
        == list(CONFIG.names)
        == ["0.9", "0.5", "images-640", "power-0.1", "power-0.25"]
    )
    expected = [subject.x_embedder.weight.detach().clone() for _ in averages]
    for step in range(20):
        with torch.no_grad():
            for parameter in subject.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        for index, average in enumerate(averages):
            average.update(subject, step)
            decay = min((0.9, 0.5)[index], (1 + step) / (10 + step)) if index < 2 else average.decay(step)
            expected[index] = decay * expected[index] + (1 - decay) * subject.x_embedder.weight.detach()
    for average, value in zip(averages, expected, strict=True):
        torch.testing.assert_close(average.network.x_embedder.weight, value, atol=1e-5, rtol=1e-5)
        assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_files_and_names() -> None:
    names = CONFIG.names
    files = [average_file(name, names) for name in (None, *names)]
    others = [
        "ema-0.5.safetensors",
        "ema-images-640.safetensors",
        "ema-power-0.1.safetensors",
        "ema-power-0.25.safetensors",
    ]
    assert files == ["ema.safetensors", "ema.safetensors", *others]
    with pytest.raises(UserError, match=r"--ema 0.7: the run keeps 0.9, 0.5, images-640, power-0.1, power-0.25"):
        average_file("0.7", names)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema": (0.9, 1.0)}, "--ema must be below 1"),
        ({"ema": (0.9, 0.9)}, "the EMA 0.9 is given twice"),
        ({"ema": ()}, "no EMA is tracked"),
        ({"ema_power": (0.3,)}, "--ema-power must be at most 0.28"),
        ({"ema_images": (0,)}, "--ema-images must be at least 1"),
        ({"ema": (), "ema_images": (9,), "ema_knots": "5:0.9"}, "--ema-knots are decays of the first --ema"),
        ({"ema_knots": "5:1.5"}, "--ema-knots are decays below 1, not 5:1.5"),
        ({"ema_knots": "50%:0.9"}, "--ema-knots is STEP:DECAY,..., such as 25000:0.9995, not 50%:0.9"),
        ({"ema_knots": "9:0.9,5:0.99"}, "--ema-knots go from earlier steps to later ones"),
        ({"ema_knots": "9" * 5000 + ":0.9"}, "--ema-knots is STEP:DECAY"),
    ],
)
def test_averages_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        AverageSettings(**settings)
