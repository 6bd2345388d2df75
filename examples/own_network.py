"""A network of your own under the union of GMFlow and MM-FM: two moons, scikit-learn's mixture, two evaluations."""

import torch
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture as EM
from torch import Tensor, nn

from gmtool.evaluation.trajectory import sliced_distance
from gmtool.flow.method import union
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.source import ModeMixture
from gmtool.flow.times import full_grid
from gmtool.mixture.gaussian_mixture import GaussianMixture

MODES, K, BATCH = 4, 16, 256


class Network(nn.Module):
    """Points x_t (B, 2), times t (B,), modes (B,) -> a mixture of K Gaussians over the velocity."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.mode, self.first = nn.Embedding(MODES, width), nn.Linear(3, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * K + 1))

    def forward(self, x_t: Tensor, t: Tensor, modes: Tensor) -> GaussianMixture:
        hidden = self.first(torch.cat([x_t, t[:, None]], 1)) + self.mode(modes)
        means, logits, log_variance = self.body(hidden)[..., None].split([2 * K, K, 1], 1)
        return GaussianMixture(means.reshape(-1, K, 2), logits.log_softmax(1), log_variance.exp())


def main(steps: int = 400) -> list[float]:
    stream, method, network = torch.manual_seed(0), union(ratio=0.9), Network()
    train, test = (torch.tensor(make_moons(4000, noise=0.05, random_state=i)[0]).float() for i in (0, 1))
    em = EM(MODES, covariance_type="diag", random_state=0).fit(train)
    mixture = ModeMixture(*(torch.tensor(array).float() for array in (em.weights_, em.means_, em.covariances_**0.5)))
    shares = torch.tensor(em.predict_proba(train))  # p(k | x)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):  # in the coordinates that each point's own mode whitens, where noise is N(0, I)
        rows = torch.randint(len(train), (BATCH,))
        modes, draws = shares[rows].multinomial(1).squeeze(1), method.draw(BATCH, (2,), stream)
        pairs = method.pair(train[rows], draws.noise, mixture.at(modes))
        loss = method.loss(lambda x_t, t, modes=modes: network(x_t, t, modes), pairs, draws).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    modes = mixture.draw(len(test), stream)
    own, model = mixture.at(modes), method.model(lambda x_t, t: network(x_t, t, modes))
    start = method.start(torch.randn(test.shape), own)
    with torch.inference_mode():
        end = integrate(GmOde(order=2, substeps=32), model, start, full_grid(2))
    distances = [sliced_distance(method.finish(points, own), test, stream) for points in (start, end)]
    print("squared sliced W2 to held-out points: {:.5f} of the mixture, {:.5f} of the samples".format(*distances))
    return distances


if __name__ == "__main__":
    main()
