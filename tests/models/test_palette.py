"""The palette: k-means it is, idempotent, of any number of channels."""

import pytest
import torch
from tiny import smoke, trainer

from gencli.config import merge
from gencli.core import Autoencoder, Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.vae.palette import Palette, spread_out


def made(codes=8, channels=3, vocab=256):
    torch.manual_seed(0)
    model = Palette.make({"codes": codes}, Spec(Field("image", (channels, 6, 5), vocab=vocab, range=(-1.0, 1.0))))
    model.quantiser.codebook.copy_(torch.rand(codes, channels) * 2 - 1)
    return model.eval()


def images(channels, n=20):
    grey = torch.randint(256, (n, channels, 6, 5), generator=torch.Generator().manual_seed(1))
    return grey / 127.5 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("codes", "vocab"), [(8, 256), (300, 17), (512, 256)])
def test_what_is_in_the_palettes_colours_stays_as_it_is(channels, codes, vocab):
    model = made(codes, channels, vocab)
    assert isinstance(model, Autoencoder)
    z = model.encode(images(channels))
    assert z.shape == (20, 6, 5) and z.dtype == torch.long and int(z.max()) < codes
    x = model.decode(z)
    assert torch.equal(model.encode(x), z) and torch.equal(model.reconstruct(x), x)
    level = (x + 1) / 2 * (vocab - 1)
    torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-4)
    bytes_back = ((x + 1) * 127.5).round() / 127.5 - 1  # as a file stores it
    assert torch.equal(model.decode(model.encode(bytes_back)), x)


def test_each_pixel_becomes_the_nearest_colour():
    model, x = made(), images(3)
    rows, colours = x.movedim(1, -1).flatten(0, -2), model.colours
    want = torch.cdist(rows, colours, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(model.encode(x).flatten(), want)


def test_first_colours_are_pixels_far_from_one_another():
    grid = torch.tensor([[i // 4, i % 4] for i in range(16)]).float() * 10
    crowd = torch.cat([grid, grid[:1] + torch.rand(1000, 2) * 0.1])
    chosen = spread_out(crowd, 16, Rng.batch(3, total=1))
    assert len((chosen / 10).round().unique(dim=0)) == 16, "one from each group, not sixteen from the crowd"
    assert all((row == crowd).all(1).any() for row in chosen)
    few = spread_out(torch.tensor([[0.0], [1.0]]), 5, Rng.batch(3, total=1))
    assert sorted(few.unique().tolist()) == [0.0, 1.0] and len(few) == 5


def test_training_finds_the_colours_of_the_data_and_is_lloyds_step():
    tables = merge(smoke("palette"), {"train": {"steps": 30, "batch_size": 32}, "model": {"codes": 4}})
    one = trainer(tables)
    start = one.model.quantiser.codebook.clone()
    batch = one._micro_batches()[0][2]["x"]
    rows = batch.movedim(1, -1).flatten(0, -2)
    nearest = (rows - start.T).abs().argmin(1)
    want = torch.stack([rows[nearest == k].mean(0) if (nearest == k).any() else start[k] for k in range(4)])
    first = one.take_step().losses
    torch.testing.assert_close(one.model.quantiser.codebook, want, rtol=0, atol=1e-4)
    for _ in range(29):
        last = one.take_step().losses
    assert float(last["loss"]) < 0.95 * float(first["loss"])
    pixels = next(one._endless())["x"].flatten()
    error = (pixels[:, None] - one.model.colours.flatten()).square().min(1).values.mean()
    evenly = (pixels[:, None] - torch.linspace(-0.75, 0.75, 4)).square().min(1).values.mean()
    assert error < 0.8 * evenly, "better than even steps, which are the best without knowing the data"


def test_data_without_a_range_are_refused_by_name():
    with pytest.raises(GencliError, match="palette needs images"):
        Palette.make({}, Spec(Field("codes", (4, 4), vocab=8)))
