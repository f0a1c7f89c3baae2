"""Work space of `tiles`: scores of one image and one block of views, made in place so that they stay in cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.inference.search import SearchPlan, Templates


class Desk:
    """Work space for the scores of one image and one block, made once.

    The products lie in `store` behind some room, so that the odd half of the series may overwrite the even products,
    which have been used by then, and the weights all of them.
    """

    def __init__(self, rows: Tensor, plan: SearchPlan, n_views: int) -> None:
        m, s, half_psi, n_even = plan.n_orders, plan.n_shifts, plan.n_psi // 2, plan.even.shape[1]
        poses = s * n_views
        room = max(0, half_psi - n_even, plan.n_psi - 2 * m)
        store = rows.new_empty(room + 2 * m, poses)
        products = store[room:]
        self.product = products.view(m, 2 * s, n_views)
        by_shift = products.view(m, 2, s, n_views)
        self.norm_terms = [by_shift[0, 0], *by_shift[1:]]
        self.even_products, self.odd_products = products[:n_even], products[n_even:]
        self.odd = store[:half_psi]
        self.weight = store[: plan.n_psi].view(-1)
        both = rows.new_empty(2, half_psi, poses)
        self.first, self.second = both.unbind()
        self.scores = both.view(-1)
        self.by_view, self.first_by_view = both.view(-1, n_views), self.first.view(-1, n_views)

    def highest(
        self,
        rows: Tensor,
        block: Templates,
        plan: SearchPlan,
        norm: Sequence[Tensor],
        out: Float[Tensor, "v"],
    ) -> None:
        """The highest score of every view; `norm` holds what to add to the products of orders 0, 2, ..

        Half a turn apart, scores are the sum and the difference of an even and an odd series: the higher of the two
        is the even one plus the size of the odd one.
        """
        self._multiply(rows, block, norm)
        torch.mm(plan.odd, self.odd_products, out=self.first)
        self.first.abs_().addmm_(plan.even, self.even_products)
        torch.amax(self.first_by_view, 0, out=out)

    def all_scores(
        self,
        rows: Tensor,
        block: Templates,
        plan: SearchPlan,
        norm: Sequence[Tensor],
        out: Float[Tensor, "v"],
    ) -> None:
        """All `scores`, and the highest one of every view."""
        self._multiply(rows, block, norm)
        torch.mm(plan.even, self.even_products, out=self.second)
        torch.mm(plan.odd, self.odd_products, out=self.odd)
        torch.add(self.second, self.odd, out=self.first)
        self.second.sub_(self.odd)
        torch.amax(self.by_view, 0, out=out)

    def _multiply(self, rows: Tensor, block: Templates, norm: Sequence[Tensor]) -> None:
        torch.bmm(rows, block.matrix, out=self.product)
        for products, term in zip(self.norm_terms, norm, strict=False):
            products.add_(term)
