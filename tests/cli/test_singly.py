"""What is said and drawn while metrics of items are measured on a run."""

from types import SimpleNamespace

import pytest
from tiny import opened, smoke, trained

from gencli.bundle import Run
from gencli.cli import singly
from gencli.config import choose
from gencli.errors import GencliError
from gencli.evaluation import items
from gencli.evaluation.evaluate import Plan
from gencli.metrics._features import extractor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(trained(tmp_path_factory.mktemp("runs"), smoke("vae")))


def measured(run, *names, data=None, shipped=False):
    metrics = items.metrics_of([choose("metrics", name) for name in names])
    data = data or opened(smoke("vae")["data"])
    found = SimpleNamespace(name=run.name, shipped=shipped)
    return singly.measure(metrics, found, run, data, extractor("gencli"), Plan(24, batch=12))


def test_samples_are_counted_and_the_nearest_are_drawn_beside_the_receipts(run, capsys, tmp_path, monkeypatch):
    results = measured(run, "memorisation")
    said = capsys.readouterr().err
    assert len(results) == 4 and results[0].value.n == 24
    assert "24 samples" in said and "train items and 169 test items" in said
    assert (run.path / "nearest.png").stat().st_size > 100 and "nearest.png" in said
    monkeypatch.chdir(tmp_path)
    measured(run, "memorisation", shipped=True)
    assert "0 network evaluations" in capsys.readouterr().err, "the samples were kept"
    assert (tmp_path / "samples" / run.name / "nearest.png").exists(), "a shipped run is not written to"


def test_data_of_another_kind_are_refused_before_anything_is_drawn(run):
    with pytest.raises(GencliError, match="'memorisation' measures image, data set 'toy2d'"):
        measured(run, "memorisation", data=opened({"name": "toy2d"}))
