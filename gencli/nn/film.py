"""FiLM: Visual Reasoning with a General Conditioning Layer (Perez et al., 2017). arXiv:1709.07871

    FiLM(h | c) = γ(c) ⊙ h + β(c)

with a γ and a β for each feature of each item, the same at every place. γ = 1 and β = 0 is the identity. Where h is what a norm
makes of features, it is the scale-shift norm of ADM (a block of `adm` with `scale-shift`, with γ = 1 + scale: group norm), what
DiT calls adaptive layer norm, and the adaptive instance normalisation of StyleGAN; without a norm it is what a `denoising-mlp`
does to its hidden units. All of them take γ and β as one linear map of what is told.
"""

from __future__ import annotations

from torch import Tensor


def film(h: Tensor, gamma: Tensor, beta: Tensor, dim: int = 1) -> Tensor:
    """γ ⊙ h + β.

    Args:
        h: `(N, …)`.
        gamma: a number for each feature, `(N, C)` or with dimensions of 1 more.
        beta: the same.
        dim: which of h's dimensions counts the C features.
    """
    shape = [-1, *[1] * (h.ndim - 1)]
    shape[dim] = h.shape[dim]
    return h * gamma.reshape(shape) + beta.reshape(shape)
