import itertools

import pytest
import torch

from gmtool.flow.coupling import BatchOT, Independent, ModeCoupling, draw_modes


def test_modes_are_drawn_by_their_probabilities():
    count = 50_000
    modes = torch.tensor([[7, 2, 5, 0]]).expand(count, -1)
    probabilities = torch.tensor([[0.6, 0.3, 0.1, 0.0]]).expand(count, -1)
    drawn = draw_modes(modes, probabilities, torch.rand(count, generator=torch.Generator().manual_seed(0)))
    shares = [(drawn == mode).float().mean().item() for mode in (7, 2, 5)]
    torch.testing.assert_close(torch.tensor(shares), torch.tensor([0.6, 0.3, 0.1]), atol=0.01, rtol=0)
    assert not (drawn == 0).any()


def test_hard_assignment_always_draws_the_one_mode():
    modes = torch.tensor([[3], [9]])
    assert draw_modes(modes, torch.ones(2, 1), torch.tensor([0.0, 0.999])).tolist() == [3, 9]


def test_rounding_never_draws_the_padding():
    modes = torch.tensor([[4, 6, 0]])
    probabilities = torch.tensor([[0.3, 0.7 - 1e-6, 0.0]])
    largest = torch.tensor([1 - 2**-24])
    assert draw_modes(modes, probabilities, largest).item() == 6


def test_batch_transport_is_the_cheapest_permutation():
    draw = torch.Generator().manual_seed(0)
    x, z = torch.randn(6, 2, 3, generator=draw), torch.randn(6, 2, 3, generator=draw)
    paired = BatchOT().pair(x, z)
    best = min(itertools.permutations(range(6)), key=lambda order: (x - z[list(order)]).square().sum().item())
    assert torch.equal(paired, z[list(best)])


@pytest.mark.parametrize("coupling", [Independent(), ModeCoupling()])
def test_other_couplings_leave_the_noise_where_it_was_drawn(coupling):
    x, z = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(coupling.pair(x, z), z)
