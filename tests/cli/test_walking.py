"""`gencli sample --between`, `--traverse`, `--latents`: pictures on disk, a receipt, one line for what does not go."""

import json

import pytest
from shell import copied, empty
from tiny import smoke, table, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walking")
    trained(folder / "checkpoints", table("vae", steps=4, save_every=2, lr=0.01))
    trained(folder / "checkpoints", table("pixelcnn", steps=1))
    trained(folder / "checkpoints", table("realnvp", steps=1))
    trained(folder / "checkpoints", smoke("maf-toy2d"))
    return folder


@pytest.fixture
def there(place, tmp_path, capsys):
    with empty(tmp_path, capsys) as made:
        copied(place, tmp_path)
        yield made


def test_each_makes_its_picture_and_the_report_shows_them(there, tmp_path):
    there.fine("sample", "vae-digits", "--between", "3,7", "-n", "3", "--trajectory")
    there.fine("sample", "vae-digits", "--traverse", "test:1", "-n", "3")
    there.fine("sample", "vae-digits", "--latents")
    made = tmp_path / "samples" / "vae-digits"
    walk = made / "between-3-7"
    assert {path.name for path in walk.iterdir()} >= {
        "interpolation.png",
        "trajectory.webp",
        "00-00.png",
        "samples.json",
    }
    told = json.loads((walk / "samples.json").read_text())
    assert told["walk"] == {"kind": "between", "ends": ["3", "7"], "steps": 3} and len(told["items"]) == 6
    assert (made / "traverse-test-1" / "traversal.png").is_file() and (made / "latents" / "latents.png").is_file()
    page = there.fine("report", "vae-digits", "--json").document
    assert "trajectory" in page["sections"] and not page["notes"]
    text = (tmp_path / "checkpoints" / "vae-digits" / "report.html").read_text()
    for words in ("What the latent carries", "What each number of the latent does", "beside the prior"):
        assert words in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--between", "3"), ("--between", "'3'")),
        (("--traverse", "1,2"), ("--traverse", "'1,2'")),
        (("--between", "1,2", "--latents"), ("--between", "--latents")),
        (("--between", "1,2", "-n", "1"), ("-n is 1",)),
        (("--between", "test:0,9999"), ("9999",)),
    ],
)
def test_what_does_not_go_is_one_line(there, args, words):
    there("sample", "vae-digits", *args).fails(*words)


def test_a_model_without_a_latent_is_refused(there):
    there("sample", "pixelcnn-digits", "--latents").fails("pixelcnn-digits", "no latent to walk in")


def test_a_flow_shows_its_levels_and_its_density(there, tmp_path):
    there.fine("sample", "realnvp-digits", "--resample", "test:3", "-n", "3")
    folder = tmp_path / "samples" / "realnvp-digits" / "resample-test-3"
    assert (folder / "resampled.png").is_file() and (folder / "01-02.png").is_file()
    made = there.fine("sample", "maf-toy2d", "--density", "-n", "50")
    folder = tmp_path / "samples" / "maf-toy2d" / "density"
    told = json.loads((folder / "samples.json").read_text())["density"]
    assert (folder / "density.png").is_file() and (folder / "points.csv").is_file()
    assert f"density: {told['integral']:.5f} over [" in made.err and 0.9 < told["integral"] < 1.1
    there("sample", "realnvp-digits", "--density").fails("run realnvp-digits makes image")
    there("sample", "vae-digits", "--resample", "3").fails("--resample", "one level")
