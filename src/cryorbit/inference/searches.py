"""Exhaustive searches within a run, block by block, each image against the map of its half."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cryorbit.inference.engine import Progress, Workers
from cryorbit.inference.known_map import PoseSearch
from cryorbit.inference.ranks import Deal
from cryorbit.inference.rounds import PoseTable


@dataclass(frozen=True, eq=False)
class Searches:
    """One search for each half set, and how to tell of them."""

    of_half: tuple[PoseSearch, PoseSearch]
    halves: Int[Tensor, "n"]
    """0 or 1 per particle."""
    team: Workers
    label: str
    share: float
    """Of the whole run's time."""
    known: bool = False
    """Whether the pose that an image has competes with what is found."""

    def through(self, rows: Int[Tensor, "m"], state: dict[str, Any], poses: PoseTable) -> Iterator[Progress]:
        """Search some images and put what is found into `poses`; goes on at `state["block"]`."""
        if state["block"] == 0:
            # Kept, so that a run goes on with other threads or processes.
            state |= {"block_rows": 64 * self.team.count, "seen": (0, 0.0, 0.0)}
        blocks = rows.split(state["block_rows"])

        def work(part: tuple[Tensor, int]) -> None:
            chosen, h = part
            before = (poses.rotation[chosen], poses.shift_px[chosen]) if self.known else None
            poses.put(chosen, self.of_half[h](chosen, known=before))

        deal = Deal(self.team.ranks, blocks, state["block"], columns=list(vars(poses).values()))
        for hand in deal:
            sides = self.halves[hand.mine]
            parts = [(p, h) for h in (0, 1) for p in hand.mine[sides == h].split(16) if len(p)]
            self.team.map(work, parts)
            state |= {"block": hand.done, "visits": state["visits"] + len(hand.every), **poses.state()}
            seen, sure, entropy = state["seen"]
            seen += len(hand.mine)
            sure += float(poses.confidence[hand.mine].sum())
            entropy += float(poses.entropy[hand.mine].sum())
            state["seen"] = (seen, sure, entropy)
            metrics = {
                "image_visits": float(state["visits"]),
                "confidence": sure / max(seen, 1),
                "entropy_nats": entropy / max(seen, 1),
            }
            done = state["fraction"] + self.share * hand.done / len(blocks)
            yield Progress(self.label, hand.done, len(blocks), done, metrics, **deal.kept(hand, state))
