import torch

from gmtool.streams import SampleNoise, generator, key_seed


def test_a_sample_sees_the_seed_and_its_index_alone():
    together, alone = SampleNoise(5, [3, 8, 1]), SampleNoise(5, [8])
    for _ in range(2):
        torch.testing.assert_close(together.normal((2, 3))[1:2], alone.normal((2, 3)), rtol=0, atol=0)
    torch.testing.assert_close(together.uniform((4,))[1:2], alone.uniform((4,)), rtol=0, atol=0)


def test_keys_are_told_apart():
    keys = [(0, "train", 1), (0, "train", 2), (1, "train", 1), (0, "modes", 1), ("0", "train", 1), (0, "train1")]
    assert len({key_seed(*key) for key in keys}) == len(keys)


def test_a_generator_repeats():
    first, second = (torch.rand(3, generator=generator(1, "x")) for _ in range(2))
    assert (first == second).all()
