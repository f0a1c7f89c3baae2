"""Rotations in every encoding we need: batched, differentiable, safe at angle 0 and at half turns.

A rotation is a proper orthogonal matrix that acts on column vectors (x, y, z). Quaternions are (w, x, y, z).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Matrix of the rotation by w + xi + yj + zk; the length does not matter, but must not be 0.

    >>> quaternion_to_matrix(torch.tensor([0.0, 0.0, 0.0, 2.0])).diagonal().tolist()
    [-1.0, -1.0, 1.0]
    """
    w, x, y, z = quaternion.unbind(-1)
    two = 2.0 / (quaternion * quaternion).sum(-1)
    xx, yy, zz = two * x * x, two * y * y, two * z * z
    xy, xz, yz = two * x * y, two * x * z, two * y * z
    wx, wy, wz = two * w * x, two * w * y, two * w * z
    rows = [1 - yy - zz, xy - wz, xz + wy, xy + wz, 1 - xx - zz, yz - wx, xz - wy, yz + wx, 1 - xx - yy]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion with w >= 0 of a rotation matrix.

    The entries of 4 q q^T are linear in the matrix; its row with the largest diagonal (never below 1) is a
    safe multiple of q, so values and gradients stay finite everywhere.
    """
    r = matrix
    trace = r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2]
    ww, xx, yy, zz = (
        1 + trace,
        1 + 2 * r[..., 0, 0] - trace,
        1 + 2 * r[..., 1, 1] - trace,
        1 + 2 * r[..., 2, 2] - trace,
    )
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 1, 0] + r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0], r[..., 2, 1] + r[..., 1, 2]
    entries = [ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz]
    outer = torch.stack(entries, -1).unflatten(-1, (4, 4))
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def rotvec_to_matrix(rotvec: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Exponential map: the rotation about `rotvec` by its length in radians, right-handed.

    >>> rotvec_to_matrix(torch.zeros(3)).tolist() == torch.eye(3).tolist()
    True
    """
    return quaternion_to_matrix(_rotvec_to_quaternion(rotvec))


def _rotvec_to_quaternion(rotvec: Tensor) -> Tensor:
    squared = (rotvec * rotvec).sum(-1, keepdim=True)
    small = squared < 1e-6  # the series below is exact to float64 there
    half = 0.5 * torch.where(small, torch.ones_like(squared), squared).sqrt()
    factor = torch.where(small, 0.5 - squared / 48 + squared**2 / 3840, 0.5 * torch.sin(half) / half)
    w = torch.where(small, 1 - squared / 8 + squared**2 / 384, torch.cos(half))
    return torch.cat([w, rotvec * factor], -1)


def matrix_to_rotvec(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Logarithm: axis times angle, angle in [0, pi]. At exactly pi either sign of the axis is right."""
    quaternion = matrix_to_quaternion(matrix)
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    squared = (vector * vector).sum(-1, keepdim=True)
    small = squared < 1e-6
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    ratio = squared / torch.where(small, w, torch.ones_like(w)) ** 2
    series = 2 / torch.where(small, w, torch.ones_like(w)) * (1 - ratio / 3 + ratio**2 / 5)
    return vector * torch.where(small, series, 2 * torch.atan2(sine, w) / sine)


def skew(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix K with K u = vector x u."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def six_d_to_matrix(six_d: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation whose first two **columns** come from Gram-Schmidt on six_d[..., :3] and six_d[..., 3:].

    Zhou et al. 2019, "On the continuity of rotation representations", eq. 15.
    """
    first, second = six_d[..., :3], six_d[..., 3:]
    a = torch.nn.functional.normalize(first, dim=-1)
    b = torch.nn.functional.normalize(second - (a * second).sum(-1, keepdim=True) * a, dim=-1)
    return torch.stack([a, b, torch.linalg.cross(a, b)], -1)


def matrix_to_six_d(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two columns, one after the other."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], -1)


def orthogonalise(
    first: Float[Tensor, "*batch 3"], second: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation [Q, q1 x q2] with Q the pair of orthonormal columns nearest to [first, second].

    Symmetric in the two vectors (unlike Gram-Schmidt), equivariant under rotations from the left and without
    the gradient blow-up of an SVD. With A = [first, second], B = A^T A, d = sqrt(det B), t = sqrt(tr B + 2
    d): Q = A B^(-1/2) = A (adj B + d I) / (d t). Parallel vectors have no answer; d is kept from vanishing,
    so that the result is finite, but it is then no rotation.
    """
    scale = torch.sqrt(
        0.5 * ((first * first).sum(-1, keepdim=True) + (second * second).sum(-1, keepdim=True))
    )
    scale = scale.clamp_min(torch.finfo(first.dtype).tiny)
    v1, v2 = first / scale, second / scale
    b11, b22 = (v1 * v1).sum(-1, keepdim=True), (v2 * v2).sum(-1, keepdim=True)
    b12 = (v1 * v2).sum(-1, keepdim=True)
    cross = torch.linalg.cross(v1, v2)
    d = (cross * cross).sum(-1, keepdim=True).clamp_min(torch.finfo(first.dtype).eps ** 2).sqrt()
    dt = d * torch.sqrt(b11 + b22 + 2 * d)
    q1 = (v1 * (b22 + d) - v2 * b12) / dt
    q2 = (v2 * (b11 + d) - v1 * b12) / dt
    return torch.stack([q1, q2, torch.linalg.cross(q1, q2)], -1)


def axis_rotation(axis: str, angle_rad: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Right-handed rotation about the coordinate axis "x", "y" or "z"."""
    if axis not in ("x", "y", "z"):
        raise BadInput(f"axis_rotation: axis {axis!r} is not one of 'x', 'y', 'z'.")
    c, s = torch.cos(angle_rad), torch.sin(angle_rad)
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    entries = {
        "x": [one, zero, zero, zero, c, -s, zero, s, c],
        "y": [c, zero, s, zero, one, zero, -s, zero, c],
        "z": [c, -s, zero, s, c, zero, zero, zero, one],
    }[axis]
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _axes(convention: str) -> tuple[list[int], bool]:
    """Axis numbers in order of application about fixed axes, and whether the name is intrinsic."""
    letters = convention.lower()
    intrinsic = convention.isupper()
    valid = len(letters) == 3 and set(letters) <= set("xyz") and (intrinsic or convention.islower())
    if not valid or letters[0] == letters[1] or letters[1] == letters[2]:
        raise BadInput(
            f"Euler convention {convention!r} is not known. Give three axes such as 'ZYZ' (capitals: about "
            "the turning axes) or 'xyz' (small: about fixed axes), neighbours different."
        )
    order = ["xyz".index(c) for c in letters]
    return (order[::-1] if intrinsic else order), intrinsic


def euler_to_matrix(
    angles_deg: Float[Tensor, "*batch 3"], *, convention: str = "ZYZ"
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation of three angles. "ZYZ" (capitals, intrinsic) is Rz(a) Ry(b) Rz(c); "zyz" is Rz(c) Ry(b) Rz(a).

    The letters mean what they mean in scipy.spatial.transform.Rotation.
    """
    _, intrinsic = _axes(convention)
    first, second, third = (
        axis_rotation(axis, torch.deg2rad(angle))
        for axis, angle in zip(convention.lower(), angles_deg.unbind(-1), strict=True)
    )
    return first @ second @ third if intrinsic else third @ second @ first


def matrix_to_euler(
    matrix: Float[Tensor, "*batch 3 3"], *, convention: str = "ZYZ"
) -> Float[Tensor, "*batch 3"]:
    """Angles in degrees: first and third in (-180, 180]; second in [0, 180] (ZYZ) or [-90, 90] (XYZ).

    Where the second angle is at its end only a sum is determined: the first angle is then 0. Gradients exist
    elsewhere. Bernardes & Viollet 2022, "Quaternion to Euler angles conversion", PLoS ONE 17, e0276302.
    """
    (i, j, k), intrinsic = _axes(convention)
    symmetric = i == k
    if symmetric:
        k = 3 - i - j
    parity = (i - j) * (j - k) * (k - i) // 2
    w, *xyz = matrix_to_quaternion(matrix).unbind(-1)
    if symmetric:
        a, b, c, d = w, xyz[i], xyz[j], xyz[k] * parity
    else:
        a, b, c, d = w - xyz[j], xyz[i] + xyz[k] * parity, xyz[j] + w, xyz[k] * parity - xyz[i]
    length_ab, length_cd = torch.hypot(a, b), torch.hypot(c, d)
    end = 8 * torch.finfo(matrix.dtype).eps
    half_sum = torch.where(length_ab > end, torch.atan2(b, a), torch.zeros_like(a))
    half_diff = torch.where(length_cd > end, torch.atan2(d, c), torch.zeros_like(a))
    # About fixed axes the earlier rotation is sum - difference, the later one sum + difference; at the ends
    # the undetermined half is chosen so that the first angle named by the caller is 0.
    sign = -1.0 if intrinsic else 1.0
    half_diff = torch.where(length_cd > end, half_diff, sign * half_sum)
    half_sum = torch.where(length_ab > end, half_sum, sign * half_diff)
    earlier, later = half_sum - half_diff, half_sum + half_diff
    middle = 2 * torch.atan2(length_cd, length_ab)
    if not symmetric:
        later, middle = later * parity, middle - math.pi / 2
    first, third = (later, earlier) if intrinsic else (earlier, later)
    return torch.rad2deg(torch.stack([_wrap(first), middle, _wrap(third)], -1))


def matrix_to_euler_pair(
    matrix: Float[Tensor, "*batch 3 3"], *, convention: str = "ZYZ"
) -> Float[Tensor, "*batch 2 3"]:
    """Both triples of angles in degrees that give each rotation; [..., 0, :] is that of `matrix_to_euler`.

    The other has its first and third angle half a turn away and the second negated (ZYZ) or reflected at 90 (XYZ),
    in (-180, 180]. For "ZYX" these are Slabaugh's (phi, theta, psi); where the second angle is at its end there are
    infinitely many more.
    """
    first = matrix_to_euler(matrix, convention=convention)
    symmetric = convention[0] == convention[2]
    middle = -first[..., 1] if symmetric else 180.0 - first[..., 1]
    other = torch.stack([first[..., 0] + 180.0, middle, first[..., 2] + 180.0], -1)
    return torch.stack([first, 180.0 - torch.remainder(180.0 - other, 360.0)], -2)


def _wrap(angle_rad: Tensor) -> Tensor:
    """Into (-pi, pi]."""
    turned = torch.remainder(math.pi - angle_rad, 2 * math.pi)
    return math.pi - turned


def random_rotations(
    n: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n 3 3"]:
    """`n` rotations drawn uniformly (Haar measure), on the generator's device."""
    quaternion = torch.randn(n, 4, generator=generator, device=generator.device, dtype=torch.float64)
    return quaternion_to_matrix(quaternion).to(dtype)


def geodesic_angle(a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "..."]:
    """Angle in radians, 0 to pi, of the rotation that carries `a` to `b`; batches broadcast.

    Uses atan2 of sine and cosine parts: acos of the trace loses half the digits near zero.

    >>> geodesic_angle(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    r = a.mT @ b
    sine = torch.stack(
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1
    ).norm(dim=-1)
    cosine = r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2] - 1
    return torch.atan2(sine, cosine)


def frobenius_squared(
    a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "..."]:
    """|a - b|_F^2 = 8 sin^2(theta / 2), the squared chordal distance, 0 to 8."""
    return ((a - b) ** 2).sum((-2, -1))
