"""What an image shows of a molecule's conformation, in the molecule's own frame: CTF and pose taken out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF, Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import sample_weight
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.observations import crop_images
from cryorbit.models.deformation_fields import cluster_centres
from cryorbit.physics.formation import transfer_of

EncoderName = Literal["gradient", "image"]
CLUSTERS = 128
"""Of Gaussians, over which gradients are summed."""
SIDE = 40
"""Edge of the images that are read, pixels, where the boxes have as many."""


class ImageFeatures(ABC):
    """From images and their poses to a row of numbers each."""

    name: EncoderName

    @abstractmethod
    def read(self, likelihood: FlexLikelihood, pose: Pose, rows: Int[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Features of some images. `pose` is that of the whole stack."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that `features_of_state` needs, flat."""


class GradientFeatures(ImageFeatures):
    """How the likelihood of an image would rise if parts of the consensus were denser or elsewhere.

    The derivatives of minus the misfit by the logarithm of each Gaussian's amplitude and by its position (pixels), summed
    over clusters: the adjoint of the projection, applied to the whitened residual. So it is in the molecule's frame and
    corrected for the CTF by construction, and a linear model's posterior mean is linear in it (with a matrix that depends
    on view and CTF).

    Parameters
    ----------
    anchors
        Gaussians of the consensus.
    label
        The cluster of each, shape (n,).
    """

    name: EncoderName = "gradient"

    def __init__(self, anchors: Gaussians, label: Int[Tensor, "n"]) -> None:
        self.anchors, self.label = anchors, label
        self.clusters = int(label.max()) + 1

    @classmethod
    def of(cls, anchors: Gaussians, *, clusters: int = CLUSTERS) -> GradientFeatures:
        """With at most `clusters` clusters of anchors that lie together."""
        centre = cluster_centres(anchors.position_A, clusters)
        nearest = torch.cdist(anchors.position_A, centre).argmin(1)
        return cls(anchors, nearest.unique(return_inverse=True)[1])

    @torch.enable_grad()
    def read(self, likelihood: FlexLikelihood, pose: Pose, rows: Int[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Four numbers per cluster."""
        b, unit = len(rows), likelihood.pixel_size_A
        position = self.anchors.position_A.expand(b, -1, -1).clone().requires_grad_()
        amplitude = self.anchors.amplitude.expand(b, -1).clone().requires_grad_()
        moved = Gaussians(position, amplitude, self.anchors.width_A)
        misfit = likelihood.misfit(likelihood.model(moved, pose[rows], rows), likelihood.transforms(rows))
        by_position, by_amplitude = torch.autograd.grad(misfit.sum(), (position, amplitude))
        each = torch.cat(((by_amplitude * amplitude.detach())[..., None], by_position * unit), -1)
        summed = each.new_zeros(b, self.clusters, 4).index_add_(1, self.label, -each)
        return summed.flatten(1)

    def state(self) -> dict[str, Tensor]:
        """Anchors and clusters."""
        a = self.anchors
        return {
            "position_A": a.position_A,
            "amplitude": a.amplitude,
            "width_A": a.width_A,
            "label": self.label,
        }


class AlignedImages(ImageFeatures):
    """Pixels of the image, CTF applied again and noise whitened, the particle at the origin and turned upright.

    What is left of the pose is the direction of view. Upright means that the molecule's z axis points to the right; from
    its poles that is arbitrary. The transform is cropped to `side` pixels, multiplied by the conjugate of what the
    microscope did and divided by the noise power (a matched filter), and read on the turned grid by linear interpolation.
    """

    name: EncoderName = "image"

    def __init__(self, side: int) -> None:
        if side < 4 or side % 2:
            raise BadInput(f"AlignedImages: wanted an even number of pixels from 4, got {side}.")
        self.side = side
        axis = torch.arange(side) - side // 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        # One pixel less than half: what interpolation needs is there on all sides, whatever the turn.
        inside = x.square() + y.square() <= (side // 2 - 1) ** 2
        self.place = torch.stack((x[inside], y[inside]), 1).float()

    def read(self, likelihood: FlexLikelihood, pose: Pose, rows: Int[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Pixels inside a circle that fits into the box."""
        box, side, ctf = likelihood.box, self.side, likelihood.ctf
        some = pose[rows]
        data = likelihood.transforms(rows) * likelihood.weight / sample_weight(box, ndim=2)
        transfer = transfer_of(
            some.shift_A, None if ctf is None else ctf[rows], box, pixel_size_A=likelihood.pixel_size_A
        )
        if transfer is not None:
            data = data * transfer.conj().to(data)
        images = crop_images(torch.fft.fftshift(data, dim=-2), side)
        turn = torch.atan2(some.rotation[:, 1, 2], some.rotation[:, 0, 2]).to(images)
        cosine, sine = turn.cos(), turn.sin()
        matrix = torch.stack((cosine, -sine, sine, cosine), -1).unflatten(-1, (2, 2))
        at = self.place @ matrix.mT + side // 2
        grid = (2 * at + 1) / side - 1
        read = torch.nn.functional.grid_sample(images[:, None], grid[:, None], align_corners=False)
        return read[:, 0, 0]

    def state(self) -> dict[str, Tensor]:
        """The number of pixels."""
        return {"side": torch.tensor(self.side)}


def features_of(name: EncoderName, anchors: Gaussians, *, box: int) -> ImageFeatures:
    """Features by name, for images of a box and a consensus."""
    if name == "gradient":
        return GradientFeatures.of(anchors)
    return AlignedImages(min(SIDE, box - box % 2))


def features_of_state(name: EncoderName, state: dict[str, Tensor]) -> ImageFeatures:
    """Those whose `state` was kept."""
    if name == "image":
        return AlignedImages(int(state["side"]))
    anchors = Gaussians(state["position_A"], state["amplitude"], state["width_A"])
    return GradientFeatures(anchors, state["label"])


def taken_how(pose: Pose, ctf: CTF | None) -> Float[Tensor, "n 10"]:
    """What is known of how images were taken: the direction of view with its products, and the defocus in micrometre.

    The direction is the microscope's axis in the molecule's frame, the third row of the rotation.
    """
    view = pose.rotation[:, 2].to(torch.float32)
    first, second = torch.triu_indices(3, 3)
    products = view[:, first] * view[:, second]
    if ctf is None:
        defocus = torch.zeros(len(view), 1)
    else:
        defocus = (0.5e-4 * (ctf.defocus_u_A + ctf.defocus_v_A)).to(view)[:, None]
    return torch.cat((view, products, defocus), 1)
