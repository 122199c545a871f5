"""The optimiser Muon (Jordan et al. 2024), computed in float32.

torch.optim.Muon does the same in bf16, in which many processors multiply more slowly.
"""

import math
from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the iteration, as published
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Moves matrices, and kernels of convolutions as matrices of a row per output channel, by their
    momentum with all singular values set to about 1.

    The size of an update is that of AdamW's (Liu et al. 2025), so that both can share lr and
    weight_decay.
    """

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            of_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    of_shape[p.shape].append(p)
            for params in of_shape.values():
                self._move(params, group)

    def _move(self, params, group):
        """One step of parameters of equal shape."""
        momentum, lr = group["momentum"], group["lr"]
        updates = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(buffer, momentum).flatten(1))  # Nesterov's momentum

        directions = orthogonal(torch.stack(updates))
        scale = 0.2 * math.sqrt(max(directions.shape[1:]))
        for p, direction in zip(params, directions):
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(direction.view_as(p), alpha=-lr * scale)


def orthogonal(matrices):
    """(n rows columns) -> the same, with singular values between about 0.7 and 1.2 in place of any
    that are not tiny, by Newton and Schulz's iteration x <- (a + b x x^T + c (x x^T)^2) x.

    All factors before x are polynomials of the first x x^T, which is smaller than x: they are
    multiplied with each other first.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    factor = product = factor_of(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = factor_of(gram)
        product = factor @ product
    x = product @ x
    return x.mT if is_tall else x


def factor_of(gram):
    """a + b gram + c gram^2, of a batch (n m m)."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
