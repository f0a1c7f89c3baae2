"""`ReportData`: everything a report can show. Only the map and how it came about must be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.calibration import Calibration, Reliability
from cryorbit.analysis.fsc import MaskedCorrelation, ShellCorrelation
from cryorbit.analysis.mirror import MirrorSymmetry
from cryorbit.analysis.pose_history import PoseHistory
from cryorbit.analysis.pose_subsets import ConsistentSubsets
from cryorbit.data import CTF, Pose, Volume
from cryorbit.errors import BadInput

Level = Literal["good", "caution", "bad", "none"]


@dataclass(frozen=True, eq=False)
class ExampleImages:
    """Some particles beside what the map predicts for them, row by row.

    Parameters
    ----------
    images
        Shape (k, h, w), as used: light protein.
    reprojections
        Shape (k, h, w): the map projected at each pose, with CTF and shift.
    labels
        A short line per particle, or nothing.
    """

    images: Float[Tensor, "k h w"]
    reprojections: Float[Tensor, "k h w"]
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.images.shape != self.reprojections.shape:
            raise BadInput(
                f"ExampleImages: images {tuple(self.images.shape)} but reprojections "
                f"{tuple(self.reprojections.shape)}. Give one per image, of the same box."
            )


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """What was measured on the images themselves, per Fourier shell from the origin.

    Parameters
    ----------
    frequency_per_A
        Shape (shells,).
    noise_power
        Shape (shells,), any unit; estimated where there is no particle, or by the reconstruction.
    signal_power
        Shape (shells,), same unit: what the reprojections predict, mean over particles. None if not known.
    snr
        Variance of the CTF-filtered signal over the whole box divided by that of the noise, or None.
    """

    frequency_per_A: Float[Tensor, "shells"]
    noise_power: Float[Tensor, "shells"]
    signal_power: Float[Tensor, "shells"] | None = None
    snr: float | None = None


@dataclass(frozen=True, eq=False)
class PosesBesideTruth:
    """Predicted rotations in the true frame and hand, with the truth, row by row.

    Parameters
    ----------
    rotation
        Shape (n, 3, 3).
    truth
        Shape (n, 3, 3): for a symmetric particle the equivalent nearest to the prediction.
    confidence
        Shape (n,), 0 to 1, or None.
    """

    rotation: Float[Tensor, "n 3 3"]
    truth: Float[Tensor, "n 3 3"]
    confidence: Float[Tensor, "n"] | None = None

    def __post_init__(self) -> None:
        if self.rotation.shape != self.truth.shape:
            raise BadInput(
                f"PosesBesideTruth: {tuple(self.rotation.shape)} rotations but {tuple(self.truth.shape)} true "
                "ones. Give one per particle."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """What one encoder says of a run's particles."""

    name: str
    hypothesis_deg: Float[Tensor, "n k"]
    """Angle of each hypothesis, most probable first, from the pose that the run found."""
    refined_deg: Float[Tensor, "n"]
    """The same of the best of them after refinement by likelihood."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Numbers for the table."""


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkReading:
    """Equivariant encoders that know the run's map, on its particles.

    `moved_*` are a few particles p under a few moves g of the image (D4), with k hypotheses each of the first reader.
    """

    readers: tuple[Reader, ...]
    moves: tuple[str, ...]
    """A word per move."""
    moved_images: Float[Tensor, "p g h h"]
    moved_rotation: Float[Tensor, "p g k 3 3"]
    moved_probability: Float[Tensor, "p g k"]
    moved_centre_px: Float[Tensor, "p g 2"]
    """Where the particle sits, (x, y) in pixels from index h // 2."""
    moved_error: float
    """Largest difference between the probabilities for a moved image and the moved probabilities."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PostprocessReading:
    """What `cryorbit postprocess` left: the sharpened map and what was measured on the half maps."""

    map: Volume
    """Sharpened, weighted and low-passed, without the mask."""
    mask: Volume
    local: Volume | None
    """Local resolution in angstrom, 0 outside the mask."""
    facts: Mapping[str, object]
    """Numbers of postprocess.json."""
    guinier: Mapping[str, Float[Tensor, "shells"]]
    """Columns of guinier.csv: resolution_squared_per_A2, ln_amplitude, ln_amplitude_weighted and perhaps fit."""
    frequency_per_A: Float[Tensor, "shells"]
    cone_axis: Float[Tensor, "cones 3"]
    cone_resolution_A: Float[Tensor, "cones"]
    cone_correlation: Float[Tensor, "cones shells"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportData:
    """A run in nouns and numbers, for `write_report`."""

    map: Volume
    """The final map."""
    settings: Mapping[str, object]
    """Every setting with its value, in the order to show."""
    title: str = "Reconstruction"
    """What was done to what: 'Ab initio map of particles.star'."""
    command: str = ""
    """The command line as typed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Program and library versions, device."""
    date: str = ""
    """When the run ended, to be shown as it is."""
    seconds: float | None = None
    """Wall time of the run."""

    verdict: str = ""
    """The outcome in one sentence."""
    verdict_level: Level = "none"
    """Colour of the verdict."""
    notes: Sequence[str] = ()
    """Warnings and remarks, a sentence each."""

    half_maps: tuple[Volume, Volume] | None = None
    half_curve: ShellCorrelation | None = None
    """Half-map FSC without a mask; computed from `half_maps` if None."""
    masked_curve: MaskedCorrelation | None = None
    """The same with a mask, corrected for it; computed from `half_maps` with an automatic mask if None."""
    truth_curve: ShellCorrelation | None = None
    """FSC of the map against a known truth, for simulations."""
    gold_standard: bool = False
    """Whether the two halves never shared a map, poses included, from the start."""
    shared_to_A: float | None = None
    """Low-pass of the reference that both halves started from; None where each half started from poses of its own."""

    pose: Pose | None = None
    symmetry: str = "C1"
    confidence: Float[Tensor, "n"] | None = None
    """Probability of the best pose's neighbourhood, per particle, 0 to 1."""
    n_particles: int | None = None
    """Particles of the run, of which the report may show some."""
    entropy: Float[Tensor, "n"] | None = None
    """Entropy of the posterior per particle, nats relative to uniform."""
    ctf: CTF | None = None
    statistics: ImageStatistics | None = None
    examples: ExampleImages | None = None
    particles: Mapping[str, object] = field(default_factory=dict)
    """Summary of the particle table: file, numbers, optics groups, micrographs, half sets, ..."""

    metrics: Sequence[Mapping[str, object]] = ()
    """Rows of metrics.jsonl in order: `stage`, `step` and numbers."""
    evaluation: Mapping[str, object] = field(default_factory=dict)
    """Numbers against the truth, as `cryorbit evaluate` prints them."""

    mirror: MirrorSymmetry | None = None
    """The map against its reflections; needs no truth."""
    poses_beside_truth: PosesBesideTruth | None = None
    """For simulations, as all that follows."""
    subsets: ConsistentSubsets | None = None
    """Which particles agree with one another, in either hand."""
    pose_history: PoseHistory | None = None
    """Pose errors and subsets through the run."""
    calibration: Calibration | None = None
    """Credible sets of the posterior against the truth."""
    reliability: Reliability | None = None
    """Confidence against how often the pose was right."""
    network: NetworkReading | None = None
    """Equivariant encoders that know the map."""
    postprocessed: PostprocessReading | None = None
    """What was made of the half maps afterwards."""
