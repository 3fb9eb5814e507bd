"""CVAE: a constant condition gives the VAE, the hybrid objective, conditions as images and labels, and digits as asked."""

import math

import pytest
import torch
from tiny import opened, smoke, trained
from torch.distributions import Normal, kl_divergence

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, labels_for, samples
from gencli.models.vae.cvae import CVAE, halves
from gencli.models.vae.vae import VAE

IMAGE = Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0))
LABEL = Field("label", (), vocab=10)
LABELLED = Spec(IMAGE, {"label": LABEL})
SKETCHED = Spec(IMAGE, {"sketch": Field("image", (2, 8, 8), range=(-1.0, 1.0))})
BOTH = Spec(IMAGE, {"label": LABEL, **SKETCHED.cond})
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}
HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 2}
CONV = {"encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "mlp", "width": 16}}


def made(kind=CVAE, spec=LABELLED, **settings):
    torch.manual_seed(0)
    return kind.make({"dim": 4, **NETS, **settings}, spec)


def batch(n, spec=LABELLED, seed=0):
    g = torch.Generator().manual_seed(seed)
    cond = {key: torch.rand((n, *field.shape), generator=g) * 2 - 1 for key, field in spec.cond.items() if field.shape}
    label = {"label": torch.randint(10, (n,), generator=g)} if "label" in spec.cond else {}
    return {"x": torch.randint(17, (n, 1, 8, 8), generator=g) / 8.0 - 1, **label, **cond}


def turn(n, key=0):
    return Turn("main", 0, 10, Rng.batch("cvae", key, total=n))


# ----------------------------------------------------------------------------------------------------------- a constant


def pair(shift, log_scale, objective):
    """A VAE, and a CVAE whose prior is N(m, s²) whatever the class, with latents m + s z of the VAE's."""
    vae, cvae = (made(kind, objective=objective).double() for kind in (VAE, CVAE))
    dim = 4
    with torch.no_grad():
        for of, to in ((vae.encoder.body, cvae.encoder.body), (vae.decoder.body, cvae.decoder.body)):
            for p, q in zip(of.parameters(), to.parameters(), strict=True):
                q.copy_(p)
        for net in (cvae.encoder, cvae.decoder):
            net.label.weight.zero_()
        last = cvae.over_latents.net.body[-1]
        last.weight.zero_()
        last.bias.copy_(torch.cat([shift, 2 * log_scale]))
        head, scale = cvae.encoder.body[-1], log_scale.exp()
        head.weight[:dim] *= scale[:, None]
        head.bias.copy_(torch.cat([scale * head.bias[:dim] + shift, head.bias[dim:] + 2 * log_scale]))
        first = cvae.decoder.body[0]
        first.weight /= scale
        first.bias -= first.weight @ shift
    return vae, cvae


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("size", [0.0, 0.8])
def test_a_constant_condition_gives_the_vae(objective, size):
    g = torch.Generator().manual_seed(1)
    shift, log_scale = size * torch.randn(2, 4, generator=g, dtype=torch.float64)
    vae, cvae = pair(shift, log_scale, objective)
    some = batch(6)
    some = {**some, "x": some["x"].double()}
    one, other = (model.loss(some, turn(6)) for model in (vae, cvae))
    for key in ("each", "recon", "kl"):
        torch.testing.assert_close(other[key], one[key], rtol=1e-9, atol=1e-6)
    told = {"label": some["label"]}
    bounds = [model.log_prob(some["x"], Rng.batch("b", total=6), k, **told) for model in (vae, cvae) for k in (1, 4)]
    torch.testing.assert_close(bounds[2:], bounds[:2], rtol=1e-9, atol=1e-6)
    made = [model.decode(model.prior(6, Rng.rows(range(6)), **told), **told) for model in (vae, cvae)]
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        cvae.over_latents.net.body[-1].bias += 0.1
    assert (cvae.loss(some, turn(6))["each"] - one["each"]).abs().min() > 1e-3, "the control: a prior that does not fit"


def test_the_divergence_is_from_the_conditions_own_gaussian_in_closed_form():
    model, some = made(), batch(8)
    told = {"label": some["label"]}
    p, q = model.over_latents.of(told), model.posterior(some["x"], **told)
    normal = [Normal(one.mean, (0.5 * one.log_var).exp()) for one in (q, p)]
    torch.testing.assert_close(model.loss(some, turn(8))["kl"], kl_divergence(*normal).sum(1).mean())
    assert model.over_latents.kl(p, **told).abs().max() == 0
    z = q.mean
    torch.testing.assert_close(model.log_prior(z, **told), normal[1].log_prob(z).sum(1))
    drawn = model.prior(4000, Rng.rows(range(4000)), label=torch.full((4000,), 3)).detach()
    three = model.over_latents.of({"label": torch.tensor([3])})
    assert ((drawn.mean(0) - three.mean) / (0.5 * three.log_var).exp()).abs().max() < 4 / math.sqrt(4000)


# ------------------------------------------------------------------------------------------------------------ the hybrid


def test_the_hybrid_is_the_weighted_sum_and_gsnn_draws_from_the_prior():
    some = batch(6)
    whole, half, none = (made(alpha=alpha).loss(some, turn(6)) for alpha in (1.0, 0.25, 0.0))
    torch.testing.assert_close(half["each"], 0.25 * whole["each"] + 0.75 * none["each"])
    torch.testing.assert_close(none["loss"], none["gsnn"])
    assert "gsnn" not in whole
    model = made(alpha=0.0)
    z = model.over_latents.draw(6, turn(6).rng.at("gsnn"), label=some["label"])
    made_of_it = model.decoder(z, label=some["label"])
    torch.testing.assert_close(none["each"], -model.observed.log_prob(made_of_it, some["x"]))


def test_gsnn_trains_prior_and_decoder_and_leaves_the_encoder():
    model = made(alpha=0.0)
    model.loss(batch(6), turn(6))["loss"].backward()
    told = {name: sum(float(p.grad.abs().sum()) for p in part.parameters()) for name, part in model.named_children()}
    assert told["decoder"] > 0 and told["over_latents"] > 0 and told["encoder"] == 0


# ------------------------------------------------------------------------------------------------------------ conditions


@pytest.mark.parametrize("spec", [LABELLED, SKETCHED, BOTH], ids=["label", "image", "both"])
@pytest.mark.parametrize("nets", [NETS, CONV], ids=["mlp", "conv"])
def test_encoder_decoder_and_prior_are_told_every_condition(spec, nets):
    model, some, other = made(spec=spec, **nets).eval(), batch(5, spec), batch(5, spec, seed=1)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for key in spec.cond:
            told = {name: some[name] for name in spec.cond}
            changed = {**told, key: other[key]}
            moved = some[key] != other[key] if key == "label" else torch.ones(5, dtype=torch.bool)
            for what in (
                lambda cond: model.encode(some["x"], **cond),
                lambda cond: model.decode(z, **cond),
                lambda cond: model.over_latents.of(cond).mean,
            ):
                apart = (what(told) - what(changed)).flatten(1).abs().amax(1)
                assert torch.equal(apart > 0, moved), key
    losses = model.loss(some, turn(5))
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not isinstance(model, Autoencoder), "a latent without its condition is no code of x"


def test_what_cannot_be_a_condition_is_refused():
    with pytest.raises(GencliError, match="the data have none"):
        made(spec=Spec(IMAGE))
    with pytest.raises(GencliError, match=r"cannot take the condition 'text' \(tokens of shape \(7,\)\)"):
        made(spec=Spec(IMAGE, {"text": Field("tokens", (7,), vocab=50)}))
    with pytest.raises(GencliError, match=r"cannot take the condition 'small' \(image of shape \(1, 4, 4\)\)"):
        made(spec=Spec(IMAGE, {"small": Field("image", (1, 4, 4))}))
    with pytest.raises(GencliError, match="trained with the condition 'label', which was not given"):
        made().decode(torch.zeros(2, 4))
    with pytest.raises(GencliError, match="has no setting 'prior'"):
        made(prior="flow")


# --------------------------------------------------------------------------------------------------------------- learnt


def test_a_few_seconds_of_digits_are_drawn_as_the_class_that_was_asked_for(tmp_path):
    from sklearn.svm import SVC

    nets = {"encoder": {"width": 128}, "decoder": {"width": 128}, "prior_net": {"width": 32}}
    train = {"steps": 250, "batch_size": 64, "lr": 3e-3, "save_every": 250, "warmup": 0}
    tables = merge(smoke("cvae"), {"model": {"dim": 8, **nets}, "train": train})
    data = opened(tables["data"])
    run = Run.load(trained(tmp_path, tables))
    real = data.split("train")
    judge = SVC(gamma="scale").fit(real.x.reshape(len(real), -1) / 255.0, real.cond["label"].numpy())
    seeds = range(200)
    asked = labels_for(run, seeds, None)
    drawn = samples(run, Request(seeds, asked))
    seen = torch.from_numpy(judge.predict(drawn.reshape(200, -1).numpy() / 255.0))
    assert float((seen == asked["label"]).float().mean()) > 0.9
    torch.manual_seed(0)
    blank = samples(Run.build(tables, data.spec), Request(seeds, asked))
    wrong = torch.from_numpy(judge.predict(blank.reshape(200, -1).numpy() / 255.0))
    assert float((wrong == asked["label"]).float().mean()) < 0.3, "the control: a model that was not trained"
    assert drawn.float().std(0).mean() > 0.5 * torch.from_numpy(real.x).float().std(0).mean(), "and they vary"


# -------------------------------------------------------------------------------------------------------------- completion


def given(some, n, which):
    keep = torch.zeros(n, 1, 8, 8, dtype=torch.bool)
    keep[:, :, which] = True
    return {"known": some["x"], "keep": keep}


TOP, BOTTOM, NONE = slice(0, 4), slice(4, 8), slice(0, 0)


@pytest.mark.parametrize("nets", [NETS, CONV], ids=["mlp", "conv"])
def test_what_is_hidden_enters_nowhere_and_what_is_known_does(nets):
    model, some, other = made(completes=True, **nets).eval(), batch(5), batch(5, seed=1)
    label = {"label": some["label"]}
    halves_of = {"x": torch.cat([some["x"][:, :, TOP], other["x"][:, :, BOTTOM]], 2)}
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for what in (
            lambda known: model.prior(5, Rng.rows(range(5)), **label, **known),
            lambda known: model.decode(z, **label, **known),
            lambda known: model.encode(some["x"], **label, **known),
        ):
            mine, mixed, theirs = (what(given(one, 5, TOP)) for one in (some, halves_of, other))
            assert torch.equal(mine, mixed)
            assert (mine - theirs).flatten(1).abs().amax(1).min() > 0
            nothing, unknown = what(given(some, 5, NONE)), what({})
            torch.testing.assert_close(nothing, unknown)


def test_the_likelihood_counts_what_is_hidden_alone_and_all_of_an_image_of_which_nothing_is_known():
    model, some = made(completes=True), batch(6)
    told = model.given({"label": some["label"], **given(some, 6, TOP)})
    made_of_it = model.decoded(torch.zeros(6, 4), told)
    logs = [model.likely(made_of_it, some["x"], {**told, "keep": given(some, 6, one)["keep"]}) for one in (TOP, BOTTOM)]
    whole = model.observed.log_prob(made_of_it, some["x"])
    torch.testing.assert_close(logs[0] + logs[1], whole)
    torch.testing.assert_close(model.likely(made_of_it, some["x"], model.given({"label": some["label"]})), whole)
    torch.testing.assert_close(logs[0], model.observed.each(made_of_it, some["x"])[:, :, 4:].flatten(1).sum(1))


def test_every_half_and_nothing_are_known_as_often():
    x = torch.zeros(5000, 2, 7, 6)
    keep = halves(x, Rng.batch("half", total=5000))
    assert torch.equal(keep[:, 0], keep[:, 1])
    corners = torch.stack([keep[:, 0, 0, 0], keep[:, 0, 0, -1], keep[:, 0, -1, 0], keep[:, 0, -1, -1]], 1)
    seen, counts = corners.long().unique(dim=0, return_counts=True)
    assert {tuple(row) for row in seen.tolist()} == {
        (1, 1, 0, 0),
        (0, 0, 1, 1),
        (1, 0, 1, 0),
        (0, 1, 0, 1),
        (0, 0, 0, 0),
    }
    assert counts.min() > 850 and set(keep[:, 0].sum((1, 2)).tolist()) == {0.0, 18.0, 21.0}, (
        "3 of 7 rows, 3 of 6 columns"
    )


def test_without_conditions_and_images_a_model_may_complete_or_not():
    alone = made(spec=Spec(IMAGE), completes=True)
    assert alone.log_prob(batch(3)["x"], Rng.batch("b", total=3)).shape == (3,)
    with pytest.raises(GencliError, match=r"completes is true, but points of shape \(2,\) have no halves"):
        made(spec=Spec(Field("points", (2,))), completes=True, likelihood="gaussian")


def test_completed_halves_go_with_what_is_known(tmp_path):
    nets = {"encoder": {"width": 128}, "decoder": {"width": 128}, "prior_net": {"width": 64}}
    train = {"steps": 300, "batch_size": 64, "lr": 3e-3, "save_every": 300, "warmup": 0}
    run = Run.load(trained(tmp_path, merge(smoke("cvae-halves"), {"model": {"dim": 8, **nets}, "train": train})))
    items = opened(run.config["recipe"]["data"]).split("test")
    some = run.encode(items.batch(torch.arange(150)), Rng.batch("c", total=150))
    x, rng = some["x"], Rng.rows(range(150))
    with torch.no_grad():
        apart = {}
        for name, known in (("own", x), ("another's", x.roll(1, 0))):
            told = {"label": some["label"], **given({"x": known}, 150, TOP)}
            drawn = run.model.decode(run.model.prior(150, rng, **told), **told)
            apart[name] = float((drawn - x)[:, :, BOTTOM].square().mean())
    assert apart["own"] < 0.85 * apart["another's"], apart
