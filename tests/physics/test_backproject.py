from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import point_group
from cryorbit.physics.backproject import Backprojector, prior_power_from_fsc
from cryorbit.physics.formation import form_images
from cryorbit.physics.noise import add_white_noise
from cryorbit.physics.scatter import atoms_to_density
from physics_models import GaussianBlobs, blob_atoms, uniform_rotations, varied_ctf

GREY_VALUES = (
    0.03  # relative, below half of Nyquist; trilinear weights do not quite sum to one; measured 0.01
)
RETURNED = 0.99  # FSC of the map from its own noise-free images, every shell but the last two


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """FSC per shell, |k| rounded."""
    n = a.shape[0]
    k = torch.fft.fftfreq(n, 1 / n)
    shell = torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().long().flatten()

    def total(x: Tensor) -> Tensor:
        return torch.zeros(int(shell.max()) + 1, dtype=torch.float64).index_add_(
            0, shell, x.double().flatten()
        )

    x, y = torch.fft.fftn(a), torch.fft.fftn(b)
    return (total((x * y.conj()).real) / (total(x.abs() ** 2) * total(y.abs() ** 2)).sqrt())[: n // 2]


def half_size_transform(values: Tensor) -> Tensor:
    """The coefficients below half of Nyquist."""
    n = values.shape[0]
    keep = (torch.fft.fftfreq(n).abs() < 0.25).nonzero()[:, 0]
    return torch.fft.fftn(values)[keep][:, keep][:, :, keep]


def truth(box: int) -> Volume:
    return atoms_to_density(blob_atoms(radius_A=50.0), box=box, pixel_size_A=5.0, b_factor_A2=150.0)


def poses(n: int, *, seed: int = 1) -> Pose:
    shift_A = 8 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return Pose(uniform_rotations(n, seed=seed, dtype=torch.float32), shift_A)


@pytest.mark.parametrize("box", [32, 33])
def test_what_was_projected_is_reconstructed(box: int):
    """600 noise-free images with CTF and shifts give the map back: FSC > 0.99 in every shell but the last
    two.
    """
    volume, pose, ctf = truth(box), poses(600), varied_ctf(600)
    sums = Backprojector.empty(box, pixel_size_A=5.0)
    sums.insert(form_images(volume, pose, ctf), pose, ctf)
    result = sums.solve()
    assert correlation(result.values, volume.values)[:-2].min().item() > RETURNED
    low = [half_size_transform(v.values) for v in (result, volume)]
    slope = (low[0] * low[1].conj()).real.sum() / low[1].abs().square().sum()
    assert abs(slope.item() - 1) < GREY_VALUES


def test_order_and_batches_do_not_matter():
    """Two batches, or two backprojectors merged, equal one."""
    volume, pose, ctf = truth(24), poses(40), varied_ctf(40)
    images = form_images(volume, pose, ctf)
    first, second, whole = (Backprojector.empty(24, pixel_size_A=5.0) for _ in range(3))
    whole.insert(images, pose, ctf)
    first.insert(images[:15], pose[:15], ctf[:15])
    second.insert(images[15:], pose[15:], ctf[15:])
    merged = first + second
    torch.testing.assert_close(merged.numerator, whole.numerator, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(merged.denominator, whole.denominator, rtol=1e-4, atol=1e-4)


def test_weights_are_numbers_of_copies():
    """An image of weight 2 counts as two images; weight 0 as none."""
    volume, pose = truth(24), poses(3)
    images = form_images(volume, pose, None)
    weighted, copied = (Backprojector.empty(24, pixel_size_A=5.0) for _ in range(2))
    weighted.insert(images, pose, weight=torch.tensor([2.0, 0.0, 1.0]))
    rows = torch.tensor([0, 0, 2])
    copied.insert(images[rows], pose[rows])
    torch.testing.assert_close(weighted.denominator, copied.denominator, rtol=1e-5, atol=1e-5)


def test_noise_power_scales_information():
    """Information is the number of images over the noise power, per coefficient, on average over a shell."""
    box, n = 32, 800
    pose = Pose(uniform_rotations(n, dtype=torch.float32), torch.zeros(n, 2))
    sums = Backprojector.empty(box, pixel_size_A=5.0)
    sums.insert(torch.zeros(n, box, box), pose, noise_power=torch.full((box // 2 + 1,), 4.0))
    # n planes of about pi r^2 coefficients spread over 4 pi r^2 of a shell (thickness 1): n / (2 r) per
    # coefficient.
    shell = torch.arange(4, box // 2 - 2)
    expected = n / (2 * shell) / 4.0
    torch.testing.assert_close(sums.information()[4 : box // 2 - 2], expected, rtol=0.08, atol=0)


def test_wiener_prior_helps_on_noisy_images():
    """With noise, the prior from the truth's own power brings the map closer to it than no prior."""
    box, n = 32, 300
    volume, pose, ctf = truth(box), poses(n), varied_ctf(n)
    clean = form_images(volume, pose, ctf)
    sigma = 5 * clean.std().item()
    images = add_white_noise(clean, sigma=sigma, generator=torch.Generator().manual_seed(0))
    sums = Backprojector.empty(box, pixel_size_A=5.0)
    sums.insert(images, pose, ctf, noise_power=sigma**2 * box**2)
    spectrum = torch.fft.fftn(volume.values).abs().square().flatten()
    k = torch.fft.fftfreq(box, 1 / box)
    shell = torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().long().clamp_max(16).flatten()
    power = torch.zeros(17).index_add_(0, shell, spectrum) / torch.bincount(shell)
    plain, wiener = sums.solve().values, sums.solve(prior_power=power).values
    error = [((v - volume.values).norm() / volume.values.norm()).item() for v in (plain, wiener)]
    assert error[1] < 0.8 * error[0]


def test_prior_from_the_fsc_shrinks_by_the_fsc():
    """The Wiener factor information / (information + 1 / prior) is the correlation itself."""
    fsc, information = torch.tensor([0.9, 0.5, 0.143]), torch.tensor([4.0, 2.0, 1.0])
    prior = prior_power_from_fsc(fsc, information)
    torch.testing.assert_close(information / (information + 1 / prior), fsc)


@pytest.mark.parametrize("name", ["C3", "D2", "O"])
def test_symmetry_fills_in_missing_views(name: str):
    """A symmetric map from few images: both ways of symmetrising agree with it better than none."""
    group = point_group(name)
    blobs = GaussianBlobs.random(6, radius_px=9.0, sigma_px=1.5)
    whole = GaussianBlobs(
        torch.cat([blobs.centre_px @ g.T for g in group]), blobs.weight.repeat(len(group)), blobs.sigma_px
    )
    volume = Volume(whole.values(32).float(), 5.0)
    pose = Pose(uniform_rotations(25, dtype=torch.float32), torch.zeros(25, 2))
    images = form_images(volume, pose, None)
    plain, expanded = (Backprojector.empty(32, pixel_size_A=5.0) for _ in range(2))
    plain.insert(images, pose)
    expanded.insert(images, pose, group=group)
    values = [s.solve().values for s in (plain, expanded, plain.symmetrise(group))]
    score = [correlation(v, volume.values)[3:13].mean().item() for v in values]
    assert score[1] > score[0]
    assert score[2] > score[0]
    assert abs(score[1] - score[2]) < 0.02


def test_symmetrising_by_the_identity_changes_nothing():
    """C1 leaves the sums' map as it was."""
    volume, pose = truth(24), poses(50)
    sums = Backprojector.empty(24, pixel_size_A=5.0)
    sums.insert(form_images(volume, pose, None), pose)
    a, b = sums.solve().values, sums.symmetrise(point_group("C1")).solve().values
    assert ((a - b).norm() / a.norm()).item() < 0.02  # the outermost shell of the lattice is not carried over


def test_sums_of_different_boxes_do_not_add():
    """Merging needs one box and one pixel size."""
    with pytest.raises(BadInput, match="Resample"):
        Backprojector.empty(16, pixel_size_A=2.0) + Backprojector.empty(16, pixel_size_A=3.0)


def test_wrong_shapes_are_refused():
    """Images of another box, and noise powers of another length, are errors with the shape wanted."""
    sums = Backprojector.empty(16, pixel_size_A=2.0)
    with pytest.raises(BadInput, match="wanted"):
        sums.insert(torch.zeros(2, 20, 20), poses(2))
    with pytest.raises(BadInput, match="9 positive"):
        sums.insert(torch.zeros(2, 16, 16), poses(2), noise_power=torch.ones(5))
    with pytest.raises(BadInput, match="9 prior powers"):
        sums.solve(prior_power=torch.ones(5))
