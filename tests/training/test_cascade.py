"""Cascades: noise on the small image in training and sampling, levels that change nothing, stages drawn from one seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffused import NET, Told
from PIL import Image
from shell import Shell
from tiny import smoke, trained

from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, labels_for, samples
from gencli.models.diffusion.sr3 import Sr3

FIELD = Field("image", (1, 4, 4), vocab=256, range=(-1.0, 1.0))
SPEC = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)), {"image": FIELD})


def made(**settings: Any) -> Any:
    torch.manual_seed(0)
    return Sr3.make({"net": {**NET, "attention": ()}, **settings}, SPEC)


def seen(model: Any) -> Any:
    """The model with a network that remembers what it was shown beside x."""
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x[:, :1]), torch.float32)
    return model


# ------------------------------------------------------------------------------------------------------------ augmentation


def test_without_augmentation_and_at_level_0_nothing_is_changed() -> None:
    image = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, noisy = made(), made(augment=0.5)
    assert plain.net.conv_in.in_channels == 2 and noisy.net.conv_in.in_channels == 3
    assert plain.supplied({"image": image}, Rng.rows(range(6)), {})["image"] is image
    given = noisy.supplied({"image": image}, Rng.rows(range(6)), {})["image"]
    assert torch.equal(given[:, :1], image) and not given[:, 1].any()
    x, sigma = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(1.0)
    assert torch.equal(noisy.denoise(x, sigma, image=given), noisy.denoise(x, sigma, image=image)), (
        "0 where none is told"
    )
    more = made(augment=0.5, level=0.3).supplied({"image": image}, Rng.rows(range(6)), {})["image"]
    assert not torch.equal(more[:, :1], image) and torch.allclose(more[:, 1], torch.tensor(0.3))


@pytest.mark.parametrize("level", [0.1, 0.6])
def test_an_image_in_sampling_is_noisy_exactly_as_in_training(level: float) -> None:
    """Mean, spread and the plane that tells them, of training batches whose share lies about the level, within 1 %."""
    n = 8000
    image = torch.full((n, 1, 4, 4), 0.5)
    model = seen(made(augment=0.7, level=level))
    model.train()(({"x": torch.zeros(n, 1, 8, 8), "image": image}), Turn("main", 0, 1, Rng.batch("t", total=n)))
    told = model.net.asked[0][:, 2, 0, 0]
    assert 0 <= told.min() < 0.001 and 0.699 < told.max() <= 0.7 and abs(float(told.mean()) - 0.35) < 0.01
    _, cond = model.prepared({"x": torch.zeros(n, 1, 8, 8), "image": image}, Rng.batch("t", total=n))
    sigma = model.sigma_at(cond["image"][:, 1, 0, 0])[:, None, None]
    white = (
        cond["image"][:, 0] * (1 + sigma**2).sqrt() - 0.5
    ) / sigma  # what is left is the noise alone, at every level
    assert abs(float(white.mean())) < 0.01 and abs(float(white.std()) - 1) < 0.01
    drawn = model.supplied({"image": image}, Rng.rows(range(n)), {})["image"]
    at = float(model.sigma_at(torch.tensor(level)))
    root = 1 / math.sqrt(1 + at**2)
    assert abs(float(drawn[:, 0].mean()) - 0.5 * root) < 0.01 * 0.5
    assert float(drawn[:, 0].std()) == pytest.approx(at * root, rel=0.01)
    assert torch.allclose(drawn[:, 1], torch.tensor(level))


def test_noise_on_the_image_is_each_rows_own_and_not_that_of_another_stage() -> None:
    model, image = made(augment=0.5, level=0.5), torch.zeros(3, 1, 4, 4)
    whole = model.supplied({"image": image}, Rng.rows([4, 5, 6]), {})["image"]
    alone = model.supplied({"image": image[:1]}, Rng.rows([5]), {})["image"]
    assert torch.equal(whole[1:2], alone) and not torch.equal(whole[0, 0], whole[2, 0])


# ------------------------------------------------------------------------------------------------------------------ stages


def enlarging(side: int, **model: Any) -> dict[str, Any]:
    tables = merge(smoke("sr3"), {"model": model, "train": {"steps": 2}})
    return merge(tables, {"data": {"image_size": str(side), "factor": 2}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `small` (8×8), `middle` (16×16, of noisy small ones) and `large` (32×32)."""
    place = tmp_path_factory.mktemp("stages")
    small = Run.load(trained(place, smoke("ddpm"), name="small"))
    middle = trained(place, enlarging(16, augment=0.5, level=0.2), name="middle", sources={"image": small})
    trained(place, enlarging(32), name="large", sources={"image": Run.load(middle)})
    return place


def test_three_stages_are_drawn_from_one_seed_and_row_by_row(root: Path) -> None:
    run = Run.load(root / "large")
    seeds = range(3)
    cond = labels_for(run, seeds, [3, 5])
    drawn = samples(run, Request(seeds, cond))
    assert drawn.shape == (3, 1, 32, 32) and drawn.dtype == torch.uint8
    alone = samples(run, Request([1], labels_for(run, [1], [3, 5])))
    assert (drawn[1:2].int() - alone.int()).abs().max() <= 1
    assert not torch.equal(drawn, samples(run, Request(range(3, 6), labels_for(run, range(3, 6), [3, 5]))))
    middle = run.sources["image"]
    small = middle.sources["image"]
    label, rng = torch.tensor([5]), Rng.rows([1])
    one = small.decode(small.draw(rng.at("source", "image").at("source", "image"), {"label": label}))["x"]
    two = middle.decode(middle.draw(rng.at("source", "image"), {"label": label, **middle.pictures({"image": one})}))[
        "x"
    ]
    assert one.shape == (1, 1, 8, 8) and two.shape == (1, 1, 16, 16)
    by_hand = run.sample(rng, {"label": label, **run.pictures({"image": two})})["x"]
    assert torch.equal(by_hand, run.sample(rng, {"label": label})["x"]), "each stage gets the picture of the one before"


def test_a_truncated_source_stops_at_the_level_and_says_so(root: Path, tmp_path: Path) -> None:
    small = Run.load(root / "small")
    tables = enlarging(16, augment=0.6, level=0.5, truncated=True)
    run = Run.load(trained(tmp_path, tables, name="cut", sources={"image": small}))
    model: Any = run.model
    until, label, rng = model.until("image"), torch.tensor([2]), Rng.rows([7])
    drawn = small.draw(rng.at("source", "image"), {"label": label}, small.guidance, until)
    assert 0 < float(drawn["sigma"]) <= until
    asked = (1, rng.at("source", "image"), {"label": label}, small.guidance)
    frames = list(small.sampler().frames(small.model, small.spec, *asked))
    first = next(frame for frame in frames if frame.info["sigma"] <= until)
    assert torch.equal(drawn["x"], first.info["noisy"]) and first.index < len(frames) - 1
    given = run._supplied(rng, {"label": label})["image"]
    assert torch.equal(given[:, :1], drawn["x"].to(given))
    torch.testing.assert_close(model.sigma_at(given[0, 1, 0, 0]), drawn["sigma"][0], rtol=1e-5, atol=1e-6)
    assert run.sample(rng, {"label": label})["x"].shape == (1, 1, 16, 16)


def test_sources_of_other_images_are_refused(root: Path, tmp_path: Path) -> None:
    small = Run.load(root / "small")
    with pytest.raises(GencliError, match=r"'image' is image \(1, 16, 16\), the run makes image \(1, 8, 8\)"):
        trained(tmp_path, enlarging(32), name="no", sources={"image": small})
    painter = Run.load(
        trained(tmp_path, merge(smoke("gan"), {"data": {"name": "digits", "image_size": 8}}), name="gan")
    )
    with pytest.raises(GencliError, match="is to stop at a level of noise, and model gan has none"):
        cut = enlarging(16, augment=0.5, level=0.2, truncated=True)
        trained(tmp_path, cut, name="no", sources={"image": painter})
    assert not (tmp_path / "no").exists()
    free = trained(tmp_path, enlarging(16), name="free", sources={"image": painter})
    assert Run.load(free).sample(Rng.rows([0]))["x"].shape == (1, 1, 16, 16), "any model may be the first stage"


def test_a_small_picture_is_enlarged_and_without_one_the_cascade_draws_its_own(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shell import empty

    with empty(tmp_path, capsys) as shell:
        sampled(shell, root)


def sampled(shell: Shell, root: Path) -> None:
    """A file, items of the run's data, and neither."""
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(levels).save("small.png")

    def drawn(*args: str) -> list[np.ndarray]:
        folder = Path(shell.fine("sample", str(root / "middle"), *args, "--seed", "4", "-q").out.strip())
        return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png")) if file.stem.isdigit()]

    painted, items, own = (
        drawn("--input", "small.png", "-n", "2"),
        drawn("--input", "test:0", "-n", "1"),
        drawn("-n", "2"),
    )
    assert [len(part) for part in (painted, items, own)] == [2, 1, 2]
    assert all(image.shape == (16, 16) for part in (painted, items, own) for image in part)
    assert not np.array_equal(painted[0], own[0])
    Image.fromarray(levels[:4]).save("other.png")
    shell("sample", str(root / "middle"), "--input", "other.png").fails("other.png is 8×4", "8×8", "--fit")
