"""RealNVP: the authors' networks, an exact inverse, an exact density."""

import dataclasses
import math
import tomllib
from importlib import resources

import numpy as np
import pytest
import torch
from flow_laws import holds_one, mass, slogdet
from safetensors.torch import load_file
from tiny import hashes, resumed, smoke, table
from tiny import trained as trained_folder

from gencli.bundle import Run
from gencli.config import merge, parse
from gencli.core import Field, Rng, Spec, Turn
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.metrics.bpd import Bpd
from gencli.models.flow.realnvp import RealNVP
from gencli.nn.moving_norm import EPSILON, MovingNorm
from gencli.training.session import Session, resolve

RESNET = {"name": "coupling-resnet", "width": 4, "blocks": 1}
MLP = {"name": "mlp", "width": 32, "layers": 1}


def images(*shape, vocab=256):
    return Spec(Field("image", shape, vocab=vocab, range=(0.0, 1.0)))


def points(dim=2):
    return Spec(Field("points", (dim,)))


def flow(spec, scale=1.0, **settings):
    """A flow in evaluation, in float64, where nothing is as it starts: weights, factors of s, running statistics."""
    torch.manual_seed(0)
    model = RealNVP.make({"net": RESNET, **settings}, spec).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.1 * scale)
        for name, p in model.named_parameters():
            if name.endswith("factor"):
                p.copy_(scale * torch.tensor(0.7))
        for module in model.modules():
            if isinstance(module, MovingNorm):
                module.mean.copy_(0.3 * torch.randn(module.mean.shape, generator=g))
                module.var.copy_(0.5 + torch.rand(module.var.shape, generator=g))
    return model.eval().requires_grad_(False)


def data(spec, n=4):
    g = torch.Generator().manual_seed(2)
    shape = (n, *spec.x.shape)
    uniform = torch.rand(shape, generator=g, dtype=torch.float64)
    return uniform if spec.x.range else torch.randn(shape, generator=g, dtype=torch.float64)


SPACES = [
    (images(3, 16, 16), {"scales": 3}),
    (images(1, 8, 8, vocab=17), {"scales": 2, "norm": "none"}),
    (images(1, 8, 8, vocab=17), {"scales": 2, "norm": "actnorm"}),
    (images(1, 6, 6), {"scales": 2, "couplings": 2}),
    (Spec(Field("latent", (4, 4, 4))), {"scales": 1}),
    (points(3), {"net": MLP}),
]


# ------------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("shape", "scales", "width", "blocks", "count", "tensors"),
    [
        ((3, 32, 32), 2, 64, 8, 19_609_545, 830),
        ((3, 32, 32), 4, 32, 4, 46_220_359, 1034),
        ((3, 64, 64), 5, 32, 2, 96_363_237, 812),
    ],
)
def test_the_authors_networks_have_as_many_parameters(shape, scales, width, blocks, count, tensors):
    net = {"name": "coupling-resnet", "width": width, "blocks": blocks}
    with torch.device("meta"):
        model = RealNVP.make({"scales": scales, "net": net}, images(*shape))
    parameters = list(model.parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == (count, tensors)


def test_the_cifar10_recipe_is_the_paper_s_network():
    table = tomllib.loads((resources.files("gencli") / "recipes" / "realnvp-cifar10.toml").read_text())["model"]
    assert table.pop("name") == "realnvp"
    with torch.device("meta"):
        model = RealNVP(parse(RealNVP.Config, table), images(3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 19_609_545


def test_a_coupling_of_the_first_and_of_the_last_kind_has_the_authors_shapes():
    with torch.device("meta"):
        model = RealNVP.make({"net": {"name": "coupling-resnet", "width": 64, "blocks": 8}}, images(3, 32, 32))
    board, half, last = model.net.boards[0], model.net.halves[0], model.net.rest.boards[3]
    assert [sum(p.numel() for p in c.parameters()) for c in (board, half, last)] == [634_448, 2_528_799, 2_529_951]
    assert len(model.net.rest.boards) == 4 and model.net.rest.rest is None


# -------------------------------------------------------------------------------------------------------------- the inverse


@pytest.mark.parametrize(("spec", "settings"), SPACES)
def test_round_trips_through_the_whole_model(spec, settings):
    model, x = flow(spec, **settings), data(spec)
    z, _ = model.forward_flow(x)
    assert z.shape == x.shape and not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(model.inverse(z), x, rtol=0, atol=1e-9)
    single = model.float()
    z, _ = single.forward_flow(x.float())
    assert (single.inverse(z) - x.float()).abs().max() < 1e-4


@pytest.mark.parametrize(("spec", "settings"), SPACES[1:])
def test_the_log_determinant_is_that_of_the_jacobian(spec, settings):
    model, x = flow(spec, **settings), data(spec, 2)
    _, log_det = model.forward_flow(x)
    torch.testing.assert_close(log_det, slogdet(lambda v: model.forward_flow(v)[0], x), rtol=0, atol=1e-8)


def test_with_classes_it_is_a_density_of_each_class():
    spec = dataclasses.replace(images(1, 4, 4), cond={"label": Field("label", (), vocab=3)})
    model, x = flow(spec, classes=True), data(spec, 2)
    one, other = (model.log_prob(x, Rng.batch("t", total=2), label=torch.full((2,), k)) for k in (0, 2))
    assert (one - other).abs().min() > 1e-3, "the label changes nothing"
    label = torch.tensor([0, 2])
    z, log_det = model.forward_flow(x, label=label)
    torch.testing.assert_close(model.decode(z, label=label), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.stages(z, label=label)[-1], x, rtol=0, atol=1e-9)
    assert (model.decode(z, label=label.flip(0)) - x).abs().max() > 1e-3
    for i in range(2):
        exact = slogdet(lambda v, k=label[i : i + 1]: model.forward_flow(v, label=k)[0], x[i : i + 1])
        torch.testing.assert_close(log_det[i : i + 1], exact, rtol=0, atol=1e-8)
    turn = Turn("main", 0, 1, Rng.batch("t", total=2))
    each = model.loss({"x": x, "label": label}, turn)["each"]
    nats = model.log_prob(x, Rng.batch("t", total=2), label=label)
    torch.testing.assert_close(each - model.penalty(), -nats, rtol=0, atol=1e-9)


def test_classes_are_refused_where_nobody_can_be_told_of_them():
    with pytest.raises(GencliError, match="the data have no labels"):
        flow(images(1, 4, 4), classes=True)
    spec = dataclasses.replace(points(2), cond={"label": Field("label", (), vocab=3)})
    with pytest.raises(GencliError, match="network residual-mlp takes no class label"):
        flow(spec, net={"name": "residual-mlp"}, classes=True)


def test_every_part_of_the_log_determinant_is_needed():
    """Were a term forgotten, the test above would notice."""
    spec, x = images(1, 6, 6), data(images(1, 6, 6), 2)
    model = flow(spec)
    y, logit = model._unbounded(x)
    assert logit.abs().min() > 1
    _, whole = model.transform(y)
    for module in model.modules():
        if isinstance(module, MovingNorm):
            module.var.fill_(1 - EPSILON)
    assert (model.transform(y)[1] - whole).abs().min() > 1


def test_one_coupling_is_what_the_paper_writes():
    """The checkerboard on points and the halves of channels, in numpy from their parameters."""
    model = flow(points(4), couplings=1, net={"name": "mlp", "layers": 0})
    for index, coupling in enumerate(model.net.boards):
        x = data(points(4), 5)
        made, log_det = coupling(x)
        free = np.arange(4) % 2 == 1 - index
        fixed, v = x.numpy() * ~free, {key: value.numpy() for key, value in coupling.state_dict().items()}
        seen = (fixed - v["norm_in.mean"]) / np.sqrt(v["norm_in.var"] + 1e-4) + v["norm_in.bias"]
        h = 2 * np.maximum(np.concatenate([seen, -seen], 1), 0)
        shift, raw = np.split(h @ v["net.body.0.weight"].T + v["net.body.0.bias"], 2, axis=1)
        s = v["factor"] * np.tanh(raw) - 0.5 * np.log(v["norm_out.var"] + 1e-4)
        z = (x.numpy() + shift) * np.exp(v["factor"] * np.tanh(raw))
        z = (z - v["norm_out.mean"]) / np.sqrt(v["norm_out.var"] + 1e-4)
        np.testing.assert_allclose(made.numpy(), np.where(free, z, x.numpy()), atol=1e-12)
        np.testing.assert_allclose(log_det.numpy(), (s * free).sum(1), atol=1e-12)


def test_couplings_change_one_part_and_take_turns():
    model = flow(images(1, 6, 6))
    x = data(images(1, 6, 6))
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    for i, coupling in enumerate(model.net.boards):
        changed = (coupling(x)[0] != x)[0, 0]
        assert torch.equal(changed, (rows + columns + i) % 2 == 1)
    wide = torch.cat([x] * 4, dim=1)[..., :3, :3]
    for i, coupling in enumerate(model.net.halves):
        changed = (coupling(wide)[0] != wide)[0].flatten(1).all(1)
        assert changed.tolist() == ([False, False, True, True] if i % 2 == 0 else [True, True, False, False])


def test_half_of_the_numbers_leave_after_the_first_scale():
    """Their latents do not depend on how the inner scale is set; the others do."""
    model, x = flow(images(1, 6, 6)), data(images(1, 6, 6))
    before, _ = model.forward_flow(x)
    for coupling in model.net.rest.boards:
        coupling.factor.add_(0.3)
    changed = (model.forward_flow(x)[0] != before)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    assert torch.equal(changed, (rows + columns) % 2 == 0)


def test_in_training_what_a_coupling_changes_is_normalised():
    model = RealNVP.make({"net": RESNET}, images(1, 6, 6)).double()
    for coupling in (model.net.boards[0], model.net.halves[1]):
        x = 3 + 2 * torch.randn(64, 1 if coupling.changes is not None else 4, 6, 6, dtype=torch.float64)
        stays, made = coupling.parts(coupling(x)[0])
        inside = made if coupling.changes is None else made[..., coupling.changes[0] == 1].unsqueeze(-1)
        torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(inside.shape[1]).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(inside.var((0, 2, 3)), torch.ones(inside.shape[1]).double(), atol=1e-2, rtol=0)
        assert torch.equal(stays, coupling.parts(x)[0])


# -------------------------------------------------------------------------------------------------------------- the density


@pytest.mark.parametrize("norm", ["batch", "actnorm", "none"])
def test_a_density_of_the_plane_integrates_to_one(norm):
    model = flow(points(), norm=norm, couplings=4, net=MLP)
    holds_one(lambda grid: model.log_prob(grid, Rng.rows([0])), side=201)
    flipped = mass(lambda grid: model.log_prob(grid, Rng.rows([0])) - 2 * model.forward_flow(grid)[1], side=201)
    assert abs(flipped - 1) > 0.05, "with the sign of the log-determinant turned it does not"


def test_the_logit_keeps_the_mass_and_noise_on_levels_only_bounds_it():
    """Two numbers of four levels: the mass of all sixteen bins by integration, and E[log p] of the noise below it."""
    vocab, fine = 4, 30
    model = flow(Spec(Field("points", (2,), vocab=vocab, range=(0.0, 1.0))), net=MLP)
    over = 0.5 / 0.9  # the constraint leaves the density a little room outside [0, 1]
    side = 0.5 + torch.linspace(-over, over, 241, dtype=torch.float64)
    side = (side[1:] + side[:-1]) / 2
    density = model.log_prob(torch.cartesian_prod(side, side), Rng.rows([0])).exp()
    assert density.sum() * (2 * over / 240) ** 2 == pytest.approx(1, abs=0.01)
    inside = (torch.arange(vocab * fine, dtype=torch.float64) + 0.5) / (vocab * fine)
    log_p = model.log_prob(torch.cartesian_prod(inside, inside), Rng.rows([0]))
    bins = log_p.view(vocab, fine, vocab, fine).transpose(1, 2).flatten(2)
    exact, bound = bins.exp().mean(2).log() - 2 * math.log(vocab), bins.mean(2) - 2 * math.log(vocab)
    assert 0.5 < exact.exp().sum() < 1 and (bound < exact).all()
    assert (bins.amax(2) - 2 * math.log(vocab) > exact).all(), "a density at one point of a bin is no bound"


def test_stages_go_from_the_latent_to_the_sample_a_coupling_at_a_time():
    spec = images(1, 8, 8, vocab=17)
    model = flow(spec)
    z = model.prior(3, Rng.rows([1, 2, 3]))
    shown = model.stages(z)
    assert len(shown) == 1 + 3 + 3 + 4 and all(x.shape == z.shape and x.isfinite().all() for x in shown)
    assert torch.equal(shown[-1], model.decode(z)) and not torch.equal(shown[-2], shown[-1])
    torch.testing.assert_close(shown[0], ((z.sigmoid() - 0.5) / 0.9 + 0.5))
    assert torch.equal(model.prior(1, Rng.rows([2]))[0], z[1])


def test_the_loss_is_minus_the_log_density_and_the_penalty():
    spec = images(1, 6, 6, vocab=17)
    model, x = flow(spec, penalty=0.1), data(spec, 8)
    losses = model.loss({"x": x}, Turn("main", 0, 1, Rng.batch("x", total=8)))
    lengths = [p for n, p in model.named_parameters() if "magnitude" in n or "factor" in n]
    assert len(lengths) == 10 * 5, "four layers with lengths and a factor in each coupling"
    nats = model.log_prob(x, Rng.rows(range(8)))
    torch.testing.assert_close(losses["each"], 0.1 * sum(p.square().sum() for p in lengths) - nats)
    bits = -nats.mean() / (36 * math.log(2)) + math.log2(17)
    torch.testing.assert_close(losses["bits_per_dim"], bits)


@pytest.mark.parametrize(
    ("spec", "settings", "says"),
    [
        (Spec(Field("image", (1, 8, 8), vocab=256)), {}, "whole numbers"),
        (images(1, 6, 6), {"scales": 3}, "not divisible"),
        (images(1, 4, 4), {"scales": 3}, "too few pixels"),
        (points(1), {"net": MLP}, "two or more"),
        (points(), {}, "coupling-resnet works on images"),
    ],
)
def test_what_does_not_fit_is_refused(spec, settings, says):
    with pytest.raises(GencliError, match=says):
        RealNVP.make({"net": RESNET, **settings}, spec)


# ------------------------------------------------------------------------------------------------------------------ training


def trained(tables, root):
    made = resolve(tables)
    session = Session(made, open_table(made["data"]), root)
    for _ in session.events():
        pass
    return Run.load(session.folder), session.data


def gaussian_nats(train, x):
    """−log N(x) of the Gaussian with the mean and covariance of `train`, mean over rows."""
    fit = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov() + 1e-6 * torch.eye(train.shape[1]))
    return float(-fit.log_prob(x).mean())


@pytest.mark.parametrize("norm", [{"norm": "batch"}, {"norm": "batch", "lag": 0.9}, {"norm": "none"}])
def test_points_are_learned_far_better_than_by_a_gaussian(norm, tmp_path):
    net = {**MLP, "width": 64, "activation": "silu"}
    tables = {
        "model": {"name": "realnvp", "couplings": 7, **norm, "net": net},
        "data": {"name": "toy2d", "shape": "moons"},
        "train": {"steps": 150, "batch_size": 256, "lr": 5e-3, "schedule": "cosine", "save_every": 150},
    }
    run, points_ = trained(tables, tmp_path)
    train, test = (torch.from_numpy(points_.split(split).x[:5000]) for split in ("train", "test"))
    nats = float(-run.model.log_prob(test, Rng.rows([0])).mean())
    assert nats < gaussian_nats(train, test) - 0.5
    made = run.sample(Rng.rows(range(300)))["x"].float()
    g = torch.Generator().manual_seed(0)
    control = torch.randn(300, 2, generator=g) @ torch.linalg.cholesky(train.T.cov()).T + train.mean(0)
    apart = [float(torch.cdist(drawn, test).min(1).values.mean()) for drawn in (made, control)]
    assert apart[0] < 0.5 * apart[1]


def test_eval_bpd_says_that_the_number_is_a_bound(tmp_path):
    run, digits = trained(merge(smoke("realnvp"), {"train": {"precision": "fp32"}}), tmp_path)
    value = Bpd.make({"draws": 3})(run, digits.split("test"), Rng.batch("t", total=1), n=20)
    assert value.note == "dequantised bound, 3 draws" and value.kind == "bound" and value.name == "bpd"
    assert 0 < value.value < 20


@pytest.mark.slow
def test_digits_take_fewer_bits_than_a_gaussian_gives_them(tmp_path):
    tables = merge(smoke("realnvp"), {})
    tables["model"]["net"] = {"name": "coupling-resnet", "width": 16, "blocks": 1}
    tables["train"] |= {"steps": 250, "batch_size": 64, "lr": 3e-3, "warmup": 20, "save_every": 250}
    run, digits = trained(tables, tmp_path)
    bits = Bpd.make({"draws": 2})(run, digits.split("test"), Rng.batch("t", total=1)).value
    assert bits < gaussian_bits(digits)


def gaussian_bits(digits):
    """Bits a dimension of a Gaussian with full covariance, its dequantised bound."""
    g = torch.Generator().manual_seed(0)
    rows = [
        (torch.from_numpy(digits.split(split).x).flatten(1).double() * (16 / 255)).round()
        for split in ("train", "test")
    ]
    train, test = (x + torch.rand(x.shape, generator=g, dtype=torch.float64) for x in rows)
    return gaussian_nats(train, test) / (64 * math.log(2))


def test_actnorm_is_set_by_the_first_items_over_the_numbers_that_change():
    model = RealNVP.make({"net": RESNET, "norm": "actnorm", "scales": 2}, images(1, 8, 8, vocab=17)).double()
    x = data(images(1, 8, 8, vocab=17), 300)
    model.initialise(iter([{"x": part} for part in x.split(50)]), 10_000, Rng.rows([0]))
    seen = {}

    def note(coupling, given, made):
        seen[coupling] = coupling.parts(made[0])[1]

    for coupling in (*model.net.boards, *model.net.halves):
        coupling.register_forward_hook(note)
    model.eval().forward_flow(x[:256])
    assert len(seen) == 6
    for coupling, changed in seen.items():
        free = changed[:, :, coupling.changes[0] > 0] if coupling.changes is not None else changed.flatten(2)
        std, mean = torch.std_mean(free, dim=(0, 2), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-3)


def test_a_run_with_actnorm_and_a_learned_dequantiser_resumes_exactly_and_is_not_set_again(tmp_path):
    model = {"norm": "actnorm", "dequantiser": "variational", "dequantiser_width": 4}
    tables = merge(table("realnvp"), {"model": model, "data": {"unconditional": True}})
    whole = trained_folder(tmp_path / "whole", tables)
    half = trained_folder(tmp_path / "half", merge(tables, {"train": {"steps": 3}}))
    before = load_file(half / "model.safetensors")
    events = resumed(half, steps=6)
    assert events and hashes(half) == hashes(whole)
    moved = [key for key in before if "norm_out.log_scale" in key]
    assert moved and all(before[key].abs().max() > 0.01 for key in moved)
