"""The cloud of latents of a heterogeneity method: axes, clusters, neighbours, and coordinates along it."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from cryorbit.errors import BadInput

_LANDMARKS = 1500
"""A dense eigenproblem of this size takes about a second."""


@dataclass(frozen=True, eq=False)
class LatentAxes:
    """Principal axes: latents = mean + scores @ axes, and what the axes left out.

    Parameters
    ----------
    mean
        Shape (d,).
    axes
        Shape (c, d): orthonormal, largest variance first; the largest entry of each is positive, which fixes its sign.
    variance
        Shape (c,).
    """

    mean: Float[Tensor, "d"]
    axes: Float[Tensor, "c d"]
    variance: Float[Tensor, "c"]

    def scores(self, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Coordinates along the axes."""
        return (latents.to(self.mean) - self.mean) @ self.axes.T

    def latents(self, scores: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """The latents at given coordinates: where a trajectory along an axis passes."""
        return self.mean + scores.to(self.mean) @ self.axes


def latent_axes(latents: Float[Tensor, "n d"], *, components: int | None = None) -> LatentAxes:
    """Principal component analysis of the latents; all components unless told."""
    points = _checked(latents, "latent_axes")
    mean = points.mean(0)
    _, singular, axes = torch.linalg.svd(points - mean, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    variance = singular**2 / max(len(points) - 1, 1)
    return LatentAxes(mean, axes[:components], variance[:components])


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centres, shape (k, d), and the centre of each point, shape (n,)."""

    centre: Float[Tensor, "k d"]
    label: Int[Tensor, "n"]


def k_means(latents: Float[Tensor, "n d"], k: int, *, restarts: int = 10, seed: int = 0) -> Clusters:
    """The best of several k-means runs, by the sum of squared distances, each begun by k-means++.

    Where fewer than k points are distinct there are as many centres as those.

    Raises
    ------
    BadInput
        If there are fewer points than clusters.
    """
    points = _checked(latents, "k_means").numpy()
    if not 1 <= k <= len(points):
        raise BadInput(f"k_means: {k} clusters of {len(points)} points. Ask for 1 to {len(points)}.")
    distinct, label = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) <= k:
        return Clusters(torch.from_numpy(distinct), torch.from_numpy(label.reshape(-1)).long())
    best, cost = None, np.inf
    for run in range(restarts):
        centre, label = _quiet_kmeans(points, k, iter=50, minit="++", seed=np.random.default_rng([seed, run]))
        total = float(((points - centre[label]) ** 2).sum())
        if total < cost:
            best, cost = (centre, label), total
    assert best is not None
    return Clusters(torch.from_numpy(best[0]), torch.from_numpy(best[1]).long())


def _quiet_kmeans(points: np.ndarray, k: int | np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """`kmeans2` without its warning that a cluster is empty: the caller keeps the best run, or drops the cluster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return kmeans2(points, k, **options)


def nearest_particles(latents: Float[Tensor, "n d"], points: Float[Tensor, "m d"]) -> Int[Tensor, "m"]:
    """For each point the particle whose latent is nearest: decode real latents, not means of them."""
    _, index = KDTree(_checked(latents, "nearest_particles").numpy()).query(
        points.detach().double().cpu().numpy()
    )
    return torch.from_numpy(np.asarray(index)).long()


def neighbour_graph(latents: Float[Tensor, "n d"], *, k: int = 15) -> csr_array:
    """Distances to the k nearest neighbours of either end of an edge, as a symmetric sparse matrix, in one piece.

    Points that no neighbour joins to the rest are joined by the shortest edge between the pieces, so that every two
    particles have a path. Two particles of the same latent are 1e-12 times the mean distance apart, not 0, which a
    sparse matrix would drop.

    Raises
    ------
    BadInput
        If there are fewer than two points.
    """
    points = _checked(latents, "neighbour_graph").numpy()
    n = len(points)
    if n < 2:
        raise BadInput("neighbour_graph: wanted at least two points. Give more particles.")
    distance, index = (np.asarray(x) for x in KDTree(points).query(points, k=min(k, n - 1) + 1))
    row = np.repeat(np.arange(n), index.shape[1])
    edges = _symmetric(row, index.reshape(-1), distance.reshape(-1), n)
    while True:
        pieces, label = connected_components(edges, directed=False)
        if pieces == 1:
            return edges
        inside = label == np.argmin(np.bincount(label))
        others = np.flatnonzero(~inside)
        far, nearest = (np.asarray(x) for x in KDTree(points[others]).query(points[inside]))
        best = int(np.argmin(far))
        joint = (np.flatnonzero(inside)[best], others[nearest[best]])
        row, column = edges.nonzero()
        edges = _symmetric(
            np.append(row, joint[0]), np.append(column, joint[1]), np.append(edges.data, far[best]), n
        )


def _symmetric(row: np.ndarray, column: np.ndarray, distance: np.ndarray, n: int) -> csr_array:
    keep = row != column
    row, column, distance = row[keep], column[keep], distance[keep]
    scale = distance.mean() if len(distance) and distance.mean() > 0 else 1.0
    edges = csr_array((np.maximum(distance, 1e-12 * scale), (row, column)), shape=(n, n))
    return csr_array(edges.maximum(edges.T))


def graph_path(graph: csr_array, start: int, end: int) -> Int[Tensor, "m"]:
    """Particles on the shortest path through the graph, both ends included.

    Edges count by their squared length, so that the path keeps to where particles are dense.

    Raises
    ------
    BadInput
        If an end is not in the graph.
    """
    n = len(graph.indptr) - 1
    if not (0 <= start < n and 0 <= end < n):
        raise BadInput(f"graph_path: particles {start} and {end} of {n}. Count from 0 to {n - 1}.")
    squared = csr_array((graph.data**2, graph.indices, graph.indptr), shape=graph.shape)
    _, before = dijkstra(squared, directed=False, indices=start, return_predecessors=True)
    path = [end]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
        if path[-1] < 0:
            raise BadInput(
                f"graph_path: no way from {start} to {end}. Make the graph with neighbour_graph()."
            )
    return torch.tensor(path[::-1])


def diffusion_map(
    latents: Float[Tensor, "n d"], *, components: int = 2, k: int = 15, seed: int = 0
) -> Float[Tensor, "n components"]:
    """Coordinates along the cloud: the slowest modes of a random walk on it, whatever its density.

    Kernel exp(-d_ij^2 / (s_i s_j)) on the neighbour graph, s_i the distance to the k-th neighbour (Zelnik-Manor and
    Perona 2004), density divided out (Coifman and Lafon 2006, alpha = 1). A path gives one coordinate that rises
    along it; a circle two, its cosine and sine. Signs are arbitrary, and so is the turn of a pair of equal modes.

    Of more than 1,500 points as many k-means centres are mapped, and every point takes the mean of its nearest
    centres' coordinates by the same kernel.

    Raises
    ------
    BadInput
        If there are not more points than components plus one.
    """
    points = _checked(latents, "diffusion_map").numpy()
    if len(points) < components + 2:
        raise BadInput(
            f"diffusion_map: {components} components of {len(points)} points. Give at least {components + 2} points."
        )
    centres = points
    if len(points) > _LANDMARKS:
        rng = np.random.default_rng(seed)
        chosen = np.unique(points[rng.permutation(len(points))[:_LANDMARKS]], axis=0)
        centres, label = _quiet_kmeans(points, chosen, iter=5, minit="matrix")
        centres = centres[np.bincount(label, minlength=len(centres)) > 0]
    if len(centres) < components + 2:
        raise BadInput("diffusion_map: most latents are one and the same. The method found no heterogeneity.")
    mapped, scale = _map_of_all(centres, components, k)
    if centres is points:
        return torch.from_numpy(mapped)
    distance, index = KDTree(centres).query(points, k=min(4, len(centres)))
    weight = np.exp(-(distance**2) / (scale[index] ** 2)) + 1e-12
    return torch.from_numpy((weight[..., None] * mapped[index]).sum(1) / weight.sum(1, keepdims=True))


def _map_of_all(points: np.ndarray, components: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Diffusion coordinates of the points, and the width of the kernel at each."""
    graph = neighbour_graph(torch.from_numpy(points), k=k)
    scale = np.asarray(np.sort(KDTree(points).query(points, k=min(k, len(points) - 1) + 1)[0], axis=1)[:, -1])
    scale = np.maximum(scale, 1e-9 * max(float(scale.max()), 1e-30))
    edges = graph.tocoo()
    row, column = edges.coords
    value = np.exp(-(edges.data**2) / (scale[row] * scale[column]))
    # a bridge between far pieces is kept, however weak
    kernel = csr_array((np.maximum(value, 1e-6), (row, column)), shape=graph.shape).toarray()
    kernel[np.diag_indices(len(points))] = 1.0
    density = kernel.sum(1)
    kernel /= density[:, None] * density
    root = np.sqrt(kernel.sum(1))
    values, vectors = torch.linalg.eigh(torch.from_numpy(kernel / (root[:, None] * root)))
    chosen = torch.arange(len(points) - 2, len(points) - 2 - components, -1)
    coordinate = values[chosen] * vectors[:, chosen] / torch.from_numpy(root)[:, None]
    return (coordinate / coordinate.std(0)).numpy(), scale


def umap_plane(latents: Float[Tensor, "n d"], *, seed: int = 0) -> Float[Tensor, "n 2"]:
    """Two coordinates by UMAP (McInnes et al. 2018), which keeps neighbours together; distances far apart mean little.

    Raises
    ------
    BadInput
        If the package umap-learn is not installed.
    """
    points = _checked(latents, "umap_plane").numpy()
    try:
        umap = importlib.import_module("umap")
    except ImportError as error:
        raise BadInput(
            "UMAP needs the package umap-learn, which is not installed. Install it (pip install umap-learn), or use the "
            "diffusion map, which needs nothing."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a seed makes it run on one core
        plane = umap.UMAP(n_components=2, random_state=seed).fit_transform(points)
    return torch.from_numpy(np.asarray(plane, dtype=np.float64))


def circular_coordinate(plane: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
    """Angles 0 to 2 pi around the middle of a ring of points, made uniform: the rank of the angle over n.

    Origin and direction are arbitrary; scores must allow for both (`circular_correlation` does).
    """
    points = _checked(plane, "circular_coordinate")
    ring = (points - points.mean(0)) / points.std(0).clamp_min(1e-30)
    return 2 * torch.pi * _rank(torch.atan2(ring[:, 1], ring[:, 0])) / len(points)


def path_coordinate(line: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Places 0 to 1 along a path, made uniform: the rank over n - 1. The direction is arbitrary."""
    return _rank(line.detach().double().cpu()) / max(len(line) - 1, 1)


def _rank(values: Tensor) -> Tensor:
    rank = torch.empty(len(values), dtype=torch.float64)
    rank[values.argsort(stable=True)] = torch.arange(len(values), dtype=torch.float64)
    return rank


def _checked(latents: Tensor, who: str) -> Tensor:
    points = latents.detach().to("cpu", torch.float64)
    if len(points) == 0 or not bool(torch.isfinite(points).all()):
        raise BadInput(f"{who}: wanted finite latents of at least one particle. Look at the training's loss.")
    return points
