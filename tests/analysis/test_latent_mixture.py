from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.latent_mixture import classify
from cryorbit.analysis.latent_scores import adjusted_rand_index
from cryorbit.analysis.latents import k_means
from cryorbit.errors import BadInput

SEEN = 0.35  # latent units, of centres about one apart: a few standard errors of a mean over 100 images


def images(n: int = 600, *, k: int = 4, d: int = 3, seed: int = 0, sharp: float = 40.0):
    """Posteriors of images of k latent vectors under a standard normal prior; each image shows some directions better."""
    g = torch.Generator().manual_seed(seed)
    centre = 1.2 * torch.nn.functional.one_hot(torch.arange(k), d + 1)[:, :d].double() - 0.3
    label = torch.arange(n) % k
    turn = torch.linalg.qr(torch.randn(n, d, d, generator=g, dtype=torch.float64)).Q
    strength = sharp * torch.rand(n, d, generator=g, dtype=torch.float64) ** 3
    q = (turn * strength[:, None]) @ turn.mT
    noise = torch.randn(n, d, 1, generator=g, dtype=torch.float64)
    pull = q @ centre[label][..., None] + turn @ (strength.sqrt()[..., None] * noise)
    precision = q + torch.eye(d, dtype=torch.float64)
    z = torch.linalg.solve(precision, pull)[..., 0]
    return z, precision, label, centre


def test_classes_are_found_and_better_than_by_k_means():
    """What each image tells is weighed: centres come out at the truth, and more images in their class than by k-means."""
    z, precision, label, centre = images()
    found = classify(z, precision, 4)
    nearest = torch.cdist(centre, found.centre)
    assert sorted(nearest.argmin(1).tolist()) == [0, 1, 2, 3]
    assert float(nearest.min(1).values.max()) < SEEN
    assert adjusted_rand_index(found.label, label) > adjusted_rand_index(k_means(z, 4).label, label) + 0.05
    torch.testing.assert_close(found.probability.sum(1), torch.ones(600, dtype=torch.float64))


def test_confidence_is_what_it_says():
    """Of the images, the share that is in its most probable class is the mean of those probabilities."""
    z, precision, label, centre = images(4000)
    found = classify(z, precision, 4)
    name = torch.cdist(found.centre, centre).argmin(1)
    right = (name[found.label] == label).double().mean()
    assert (
        abs(float(right - found.probability.max(1).values.mean())) < 0.03
    )  # 4 deviations of a share of 4000


def test_images_that_tell_nothing_change_nothing():
    """P = I and z = 0 is the prior itself: centres stay, shares stay, and such an image has the classes' shares."""
    z, precision, *_ = images()
    few = classify(z, precision, 4)
    blank = torch.eye(3, dtype=torch.float64).expand(200, 3, 3)
    many = classify(torch.cat((z, torch.zeros(200, 3).double())), torch.cat((precision, blank)), 4)
    order = torch.cdist(few.centre, many.centre).argmin(1)
    torch.testing.assert_close(many.centre[order], few.centre, rtol=0, atol=1e-2)  # both end within 1e-6 nats
    torch.testing.assert_close(many.probability[600:], many.weight.expand(200, 4), rtol=0, atol=1e-3)


def test_likelihood_of_one_class_is_the_formula():
    """With k = 1 the centre is (sum Q + I)^-1 sum P z, and the gain over latent 0 is half of its energy."""
    z, precision, *_ = images(50)
    found = classify(z, precision, 1)
    eye = torch.eye(3, dtype=torch.float64)
    pull = (precision @ z[..., None]).sum(0)
    hold = (precision - eye).sum(0) + eye
    centre = torch.linalg.solve(hold, pull)
    torch.testing.assert_close(found.centre[0], centre[:, 0], rtol=0, atol=1e-9)
    assert found.log_likelihood == pytest.approx(float(0.5 * (pull.T @ centre)), rel=1e-9)


def test_every_start_ends_at_the_same_classes():
    """Classes in close pairs far from each other: k-means joins pairs and cuts others, which exchanges mend."""
    g = torch.Generator().manual_seed(3)
    far = 3 * torch.randn(6, 1, 2, generator=g, dtype=torch.float64)
    centre = (far + 0.25 * torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)).flatten(0, 1)
    label = torch.arange(1200) % 12
    precision = 1 + 100 * torch.eye(2, dtype=torch.float64).expand(1200, 2, 2)
    z = centre[label] + 0.1 * torch.randn(1200, 2, generator=g, dtype=torch.float64)
    found = [classify(z, precision, 12, restarts=1, seed=seed) for seed in range(4)]
    best = max(one.log_likelihood for one in found)
    for one in found:
        assert one.log_likelihood == pytest.approx(best, abs=1.0)  # nats: the same mixture
        assert adjusted_rand_index(one.label, label) > 0.95  # of pairs five errors apart


def test_more_restarts_are_never_less_likely():
    z, precision, *_ = images(200, sharp=6.0)
    one, many = (classify(z, precision, 4, restarts=r).log_likelihood for r in (1, 3))
    assert many >= one


def test_a_negative_curvature_is_no_evidence():
    """A precision below the prior's own, as noisy finite differences give, neither breaks nor repels."""
    z, precision, *_ = images()
    bent = precision.clone()
    bent[0] = 0.8 * torch.eye(3)
    found = classify(z, bent, 4)
    assert bool(torch.isfinite(found.centre).all())
    assert float(found.centre.abs().max()) < 3


def test_what_cannot_be_sorted_is_refused():
    z, precision, *_ = images(5)
    with pytest.raises(BadInput, match="6 clusters of 5 points"):
        classify(z, precision, 6)
    with pytest.raises(BadInput, match="not positive definite"):
        classify(z, torch.nan * precision, 2)
