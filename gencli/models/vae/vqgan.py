"""Taming Transformers for High-Resolution Image Synthesis: VQGAN (Esser, Rombach & Ommer, 2020). arXiv:2012.09841

Offers: encode, reconstruct

    generator       L_rec + L_codes + λ w L_gan,   L_rec = |x − x̂| + p d(x, x̂),   L_gan = −D(x̂)
    discriminator   ½ max(0, 1 − D(x)) + ½ max(0, 1 + D(x̂))
    λ = |∇_G L_rec| / (|∇_G L_gan| + 10⁻⁶), at most 10⁴, a number without a gradient; ∇_G is by the decoder's last weight

with L_codes as of `vqvae`, d a perceptual distance and D(x) the mean over the scores of patches. Means over an item's
numbers, then over items. λ belongs to a micro-batch: an item's loss depends on its batch-mates. Where no gradients are kept,
the adversarial term is left out.

The perceptual distance is LPIPS where `perceptual` is the path of its weights; otherwise that of the bundled features, which
know small grey images only and whose numbers are larger. What is logged is called `lpips` or `gencli_features`
accordingly. The network is read when training begins: a finished run does without the file.

The discriminator is listened to from `disc_start` on, and learns alone for `disc_lead` before. Until then the generator's
loss is that of a VQ-VAE with a perceptual term. A reconstruction that becomes worse by the adversarial term is seen in
`recon_jump`, its running mean over that at the start; past 1.5 a warning is given once.

Constants are the released code's: w 0.8, p 1, β 0.25 on the encoder's term (there, by an acknowledged mistake, on the
codebook's). Ours: the start from k-means and the restarts of `vqvae`; the discriminator's lead (there none); `distance`
l2, as of MaskGIT's tokeniser.

Raises GencliError as of `vqvae`, and for images of a number of channels that no perceptual network takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Phase, Spec, Turn
from gencli.models.vae._judged import Judged, JudgedConfig, Made
from gencli.models.vae._quantised import CodebookAutoencoder


class VQGAN(Judged, CodebookAutoencoder):
    """Encoder, codebook, decoder, and a discriminator of patches."""

    training_only: ClassVar[tuple[str, ...]] = ("quantiser.statistics.", "discriminator.", "watch.")

    @dataclass(frozen=True)
    class Config(JudgedConfig, CodebookAutoencoder.Config):
        codebook: Literal["ema", "gradient"] = opt(
            "gradient", "how the codes learn: moving averages, or the paper's loss"
        )
        encoder: Part = part("networks", "vqgan-encoder", "network from x to the codebook's space", role="map")
        decoder: Part = part("networks", "vqgan-decoder", "network from the codebook's space to x", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.judge_by(config, spec)

    def phases(self) -> list[Phase]:
        return [
            Phase("generator", (self.encoder, self.quantiser, self.decoder)),
            Phase("discriminator", (self.discriminator,)),
        ]

    def made_of(self, x: Tensor, turn: Turn) -> Made:
        quantised = self.quantiser(self.encoder(x), turn.rng)
        made = self.decoder(quantised.values).to(x.dtype)
        with core.full_precision(x.device):
            extra = self.pulled(quantised.commitment.new_zeros(len(x)), quantised)
            logged = {"commitment": quantised.commitment.mean().detach()}
        return Made(made, extra, logged | self.use_of(quantised.codes, self.quantiser.usage()))

    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        if turn.phase != "discriminator":
            self.quantiser.update()
