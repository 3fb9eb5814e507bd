"""What all denoisers share: formulations, null labels, the loss."""

import pytest
import torch
from diffused import LABEL, NET, SPEC, Told

from gencli.core import Field, Rng, Turn
from gencli.models.diffusion import _schedules as schedules
from gencli.models.diffusion._family import FORMULATIONS, drop_labels, with_null
from gencli.models.diffusion.ddpm import Ddpm


def tiny(seed=0, **settings):
    """A small model with random weights everywhere."""
    model = Ddpm.make({"net": NET, **settings}, SPEC)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            scale = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def test_every_formulation_gives_back_x0_from_its_exact_target():
    generator = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, 6, 1, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    sigma = torch.tensor([1e-2, 0.1, 1.0, 10.0, 157.0, 1e4], dtype=torch.float64)
    x = x0 + sigma.reshape(-1, 1, 1, 1) * n
    for name, make in FORMULATIONS.items():
        model = tiny(prediction=name)
        model.net = Told(make(model.index).target(x0, n, sigma))
        assert (model.denoise(x, sigma) - x0).abs().max() < 1e-10, name


def test_targets_are_the_papers():
    generator = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).unbind(0)
    sigma = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    alpha = (1 / (1 + sigma**2)).sqrt()[:, None]
    expected = {"eps": n, "x0": x0, "v": alpha * n - (1 - alpha**2).sqrt() * x0}
    for name, make in FORMULATIONS.items():
        assert (make(torch.ones_like).target(x0, n, sigma) - expected[name]).abs().max() < 1e-11, name


def test_the_network_sees_unit_variance_and_the_nearest_trained_index():
    model = tiny()
    model.net = Told(torch.zeros(3, 1, 4, 4), torch.float32)
    x = torch.ones(3, 1, 4, 4, dtype=torch.float64)
    sigma = model.levels[[0, 500, 999]] * torch.tensor([1.3, 1.0001, 0.7], dtype=torch.float64)
    out = model.denoise(x, sigma)
    seen, level, cond = model.net.asked
    assert seen.dtype == torch.float32 and out.dtype == torch.float64
    assert level.tolist() == [999, 499, 0]
    assert torch.allclose(seen[:, 0, 0, 0].double(), (1 + sigma**2) ** -0.5, rtol=1e-6)
    assert cond["label"].tolist() == [10, 10, 10]


def test_every_trained_level_is_told_by_its_own_index():
    for settings in ({}, {"schedule": "cosine"}, {"schedule": "sigmoid"}, {"zero_terminal": True, "prediction": "v"}):
        model = tiny(**settings)
        assert torch.equal(model.index(model.levels), torch.arange(999, -1, -1)), settings


def test_the_start_has_the_variance_of_data_and_noise():
    noise = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(tiny().start(noise, torch.tensor(3.0)), noise * 10**0.5, rtol=1e-12)


def test_an_absent_label_is_the_null_label():
    model = tiny()
    x, sigma = torch.randn(3, 1, 4, 4), torch.tensor(1.0)
    null = model.denoise(x, sigma, label=torch.full((3,), 10))
    assert torch.equal(model.denoise(x, sigma), null)
    assert (model.denoise(x, sigma, label=torch.arange(3)) - null).abs().flatten(1).max(1).values.min() > 1e-3
    made = with_null({"label": torch.tensor([1])}, {"label": LABEL, "other": LABEL}, x[:1])
    assert made["label"].tolist() == [1] and made["other"].tolist() == [10]


def test_the_null_replaces_labels_in_the_asked_share_of_rows():
    rng = Rng.batch("share", total=10_000)
    label = torch.arange(10_000) % 10
    cond = {"label": label, "image": torch.zeros(10_000)}
    fields = {"label": LABEL, "image": Field("image", (1,))}
    made = drop_labels(cond, fields, 0.1, rng)
    dropped = made["label"] == 10
    assert abs(dropped.float().mean() - 0.1) < 0.01
    assert torch.equal(made["label"][~dropped], label[~dropped]) and made["image"] is cond["image"]
    assert torch.equal(drop_labels(cond, fields, 0.0, rng)["label"], label)
    assert torch.equal(label, torch.arange(10_000) % 10)


def test_labels_are_dropped_in_training_only():
    model = tiny(label_dropout=1.0)
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x))
    batch = {"x": torch.zeros(5, 1, 4, 4), "label": torch.arange(5)}
    model.train()(batch, Turn("main", 0, 1, Rng.batch(0, total=5)))
    assert model.net.asked[2]["label"].tolist() == [10] * 5
    model.eval()(batch, Turn("main", 0, 1, Rng.batch(0, total=5)))
    assert model.net.asked[2]["label"].tolist() == [0, 1, 2, 3, 4]


def test_the_loss_is_the_mean_squared_error_of_the_target():
    model = tiny()
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x))  # so the loss is the mean square of the noise
    turn = Turn("main", 0, 1, Rng.batch(0, total=64))
    losses = model({"x": torch.rand(64, 1, 4, 4), "label": torch.zeros(64, dtype=torch.long)}, turn)
    noise = turn.rng.at("noise").normal((64, 1, 4, 4))
    assert torch.allclose(losses["each"], noise.square().mean((1, 2, 3)))
    assert torch.allclose(losses["loss"], losses["each"].mean())


def test_all_levels_are_drawn_equally_often():
    model = tiny(timesteps=4)
    drawn = model.draw_sigma(40_000, Rng.batch(0, total=40_000))
    counts = torch.stack([(drawn == level).sum() for level in model.levels])
    assert counts.sum() == 40_000 and (counts - 10_000).abs().max() < 450  # five standard errors


def test_every_parameter_has_a_gradient_and_the_loss_falls_on_a_fixed_batch():
    torch.manual_seed(0)
    model = Ddpm.make({"net": NET, "label_dropout": 0.5}, SPEC)
    batch = {"x": torch.rand(16, 1, 4, 4) * 2 - 1, "label": torch.arange(16) % 10}
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    seen = []
    for _ in range(60):
        loss = model(batch, Turn("main", 0, 60, Rng.batch(0, total=16)))["loss"]
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimiser.step()
        seen.append(loss.item())
    assert seen[0] > 0.8 and seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_an_item_does_not_depend_on_its_batch_mates(prediction):
    model = tiny(prediction=prediction).eval()
    x, label = torch.randn(7, 1, 4, 4), torch.arange(7)
    sigma = model.levels[::150]
    whole = model.denoise(x, sigma, label=label)
    alone = torch.cat([model.denoise(x[i : i + 1], sigma[i], label=label[i : i + 1]) for i in range(7)])
    assert ((whole - alone).abs().flatten(1).max(1).values / (1 + sigma)).max() < 1e-5


# ------------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [10, 1000, 4000])
@pytest.mark.parametrize("side", [16, 64, 256])
def test_log_snr_falls_strictly_in_every_schedule(name, steps, side):
    table = schedules.shifted(schedules.SCHEDULES[name](steps), side)
    log_snr = table.log() - torch.log1p(-table)
    assert table.dtype == torch.float64 and len(table) == steps
    assert (log_snr.diff() < 0).all() and torch.isfinite(log_snr).all()


def betas_of(alpha_bar):
    return 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])


def test_linear_schedule_has_the_official_values():
    table = schedules.linear(1000)
    beta = betas_of(table)
    assert float(table[-1]) == pytest.approx(4.035829765375676e-05, rel=1e-10)
    assert float(beta[0]) == pytest.approx(1e-4, rel=1e-9) and float(beta[-1]) == pytest.approx(0.02, rel=1e-9)
    assert float(schedules.linear(4000)[-1]) == pytest.approx(4.246652275802249e-05, rel=1e-10)


def test_cosine_schedule_has_the_official_values():
    beta = betas_of(schedules.cosine(1000))
    assert float(beta[0]) == pytest.approx(4.128422482196914e-05, rel=1e-9)
    assert float(beta[-1]) == pytest.approx(0.999, rel=1e-9)
    assert float(schedules.cosine(1000)[499]) == pytest.approx(0.494, abs=5e-4)
    assert float(schedules.cosine(1000)[-1]) == pytest.approx(2.4287669070348567e-09, rel=1e-6)


def test_sigmoid_schedule_is_half_way_at_half_time():
    table = schedules.sigmoid(1000)
    assert float(table[499]) == pytest.approx(0.5, abs=1e-9)
    assert float(table[249]) == pytest.approx((0.9525741 - 0.1824255) / (0.9525741 - 0.0474259), abs=1e-6)


def test_shift_is_the_identity_at_64_and_moves_log_snr_by_twice_the_log_of_the_ratio():
    table = schedules.cosine(1000)
    assert torch.equal(schedules.shifted(table, 64), table)
    for side in (16, 128):
        other = schedules.shifted(table, side)
        moved = (other.log() - torch.log1p(-other)) - (table.log() - torch.log1p(-table))
        assert torch.allclose(moved, 2 * torch.tensor(64 / side, dtype=torch.float64).log(), atol=1e-9)


def test_zero_terminal_snr_ends_without_signal_and_keeps_the_first_level():
    table = schedules.zero_terminal(schedules.linear(1000))
    assert table[-1] == 0 and float(table[0]) == pytest.approx(0.9999, rel=1e-12)
    levels = schedules.sigmas(table, "v")
    assert torch.isfinite(levels).all() and levels[0] >= 1e4 and (levels.diff() < 0).all()
