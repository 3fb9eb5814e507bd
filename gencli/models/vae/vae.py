"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013). arXiv:1312.6114

Offers: sample, bound, encode, reconstruct

    loss = E_q(z|x)[−log p(x|z)] + KL(q(z|x) ‖ N(0, I)),   q(z|x) = N(μ(x), diag σ²(x)),   z = μ(x) + σ(x) ε

in nats, summed over an item's numbers, with one draw of ε an item and the KL divergence in closed form. The encoder makes μ
and log σ², the decoder the parameters of p(x|z): `bernoulli` and `gaussian` are the paper's, `logistic` that of Kingma et
al. (arXiv:1606.04934), `logistic-mixture` that of PixelCNN++ (arXiv:1701.05517) with all pixels given z. A sample is the mean
of p(x|z) at a z from the prior, as in the paper's figures, without the noise of p(x|z). Latents are flat, `(N, dim)`.

Bound: `log_prob(x, rng, 1)` is the ELBO, with k > 1 draws the importance-weighted bound of Burda et al. (arXiv:1509.00519).
It is one of probabilities (`mass`) for data on a grid: a gaussian decoder is then integrated over the grid's bins too, and is
a density only where data have no grid.

Besides: `objective = "iwae"` trains on that bound with `draws` draws; `prior` is a learned one (`_priors.py`), with which KL is
log q(z|x) − log p(z) at the draw of z; with `classes` encoder and decoder are told the label, and nothing may leave it out;
`kl_warmup` raises the weight of KL from 0.

Paper: 500 tanh units in one hidden layer of encoder and decoder, Adagrad, 100 images a step, bernoulli decoders for MNIST.
Ours: networks of any role `map`, Adam, images made binary by chance at every step, scales for every number.

Raises GencliError for a bernoulli decoder of data that have not two values, a logistic one of data without a grid, a mixture
of logistics of what is no image on a grid, classes that data or networks do not have, and a warm-up of the objective iwae.
"""

from __future__ import annotations

from gencli.models.vae._family import GaussianVAE


class VAE(GaussianVAE):
    """One Gaussian latent between an encoder and a decoder."""
