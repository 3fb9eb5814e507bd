"""Features of samples are drawn once: nothing is called again, a killed evaluation goes on, and any change draws anew."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import shaken, table, trained
from torch import nn

from gencli import files, home
from gencli.bundle import Run
from gencli.evaluation import cache, evaluate
from gencli.evaluation.evaluate import Plan, features_of_run, outstanding, request_of
from gencli.guidance._base import Guidance
from gencli.metrics._features import Extractor, extractor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), table("ddpm", steps=2, lr=0.05))


@pytest.fixture
def run(place: Path) -> Run:
    return Run.load(place)


@pytest.fixture
def by() -> Extractor:
    return extractor("pixels")


@contextmanager
def counted(kind: str = "Unet") -> Iterator[list[int]]:
    """How often a network is called, and with how many rows."""
    calls: list[int] = []

    def saw(module: nn.Module, args: Any, output: Any) -> None:
        if type(module).__name__.lower() == kind.lower():
            calls.append(len(args[0]))

    handle = nn.modules.module.register_module_forward_hook(saw)
    try:
        yield calls
    finally:
        handle.remove()


def plan(run: Run, n: int = 20, **over: Any) -> Plan:
    return Plan(n, sampler=run.sampler("ddim", {"steps": 2}), batch=8, **over)


def test_a_second_evaluation_calls_no_network_and_has_the_same_bits(run: Run, by: Extractor) -> None:
    request = request_of(run, plan(run))
    with counted() as first:
        made, receipt = features_of_run(run, by, request)
    with counted() as second:
        again, same = features_of_run(run, by, request)
    assert len(first) == 6 and second == [], "3 micro-batches of 2 steps, then nothing"
    assert np.array_equal(made.x, again.x) and receipt == same and made.fingerprint == again.fingerprint
    assert outstanding(run, by, request) is None


def test_what_comes_from_the_cache_is_what_would_be_drawn(run: Run, by: Extractor) -> None:
    from gencli.evaluation.generate import samples

    request = request_of(run, plan(run))
    features_of_run(run, by, request)
    kept, _ = features_of_run(run, by, request)
    drawn = by.extract(samples(run, request).split(request.micro))
    assert np.array_equal(kept.x, drawn.x) and np.ptp(kept.x) > 0


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_where_it_was(run: Run, by: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(run, plan(run))

    def kill(step: int) -> None:
        if step > 4:
            raise Killed

    with pytest.raises(Killed), counted() as before:
        features_of_run(run, by, request, kill)
    rest = outstanding(run, by, request)
    assert rest is not None and list(rest.seeds) == [16, 17, 18, 19], "two of three micro-batches are kept"
    with counted() as after:
        found, _ = features_of_run(run, by, request)
    assert len(before) == 5 and len(after) == 2
    monkeypatch.setenv("GENCLI_HOME", str(home.home() / "another"))
    whole, _ = features_of_run(run, by, request)
    assert np.array_equal(found.x, whole.x)


def test_a_lost_micro_batch_in_the_middle_is_drawn_alone(run: Run, by: Extractor) -> None:
    request = request_of(run, plan(run))
    whole, _ = features_of_run(run, by, request)
    cache.Kept(run, by, request).path(1).unlink()
    with counted() as calls:
        found, _ = features_of_run(run, by, request)
    assert calls == [8, 8] and np.array_equal(found.x, whole.x)


def test_more_samples_reuse_the_fewer(run: Run, by: Extractor) -> None:
    features_of_run(run, by, request_of(run, plan(run, 16)))
    with counted() as calls:
        many, _ = features_of_run(run, by, request_of(run, plan(run, 32)))
    assert len(calls) == 4 and len(many) == 32


@pytest.mark.parametrize("what", ["seed", "batch", "steps", "sampler", "guidance", "condition"])
def test_another_request_is_drawn_anew(run: Run, by: Extractor, what: str) -> None:
    request = request_of(run, plan(run))
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seeds": range(1, 21)},
        "batch": {"micro": 4},
        "steps": {"sampler": run.sampler("ddim", {"steps": 3})},
        "sampler": {"sampler": run.sampler("heun", {"steps": 2})},
        "guidance": {"guidance": Guidance(2.0)},
        "condition": {"cond": {key: value.flip(0) for key, value in request.cond.items()}},
    }
    features_of_run(run, by, request)
    assert request.cond and outstanding(run, by, dataclasses.replace(request, **changes[what])) is not None


def test_another_extractor_other_weights_and_other_meaning_are_drawn_anew(
    run: Run, by: Extractor, tmp_path: Path
) -> None:
    request = request_of(run, plan(run))
    features_of_run(run, by, request)
    assert outstanding(run, extractor("random"), request) is not None
    other = trained(tmp_path / "other", table("ddpm", steps=1, seed=5))
    assert outstanding(Run.load(other), by, request) is not None
    meaning = Run.load(run.path or "")
    meaning.config = json.loads(json.dumps(meaning.config))
    meaning.config["recipe"]["model"]["timesteps"] = 21
    assert outstanding(meaning, by, request) is not None
    same = Run.load(run.path or "")
    same.config = {**same.config, "name": "renamed", "command": "another"}
    assert outstanding(same, by, request) is None, "a name changes nothing"


def test_changed_code_and_versions_are_drawn_anew(run: Run, by: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(run, plan(run))
    features_of_run(run, by, request)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_own_code", lambda: b"another")
        assert outstanding(run, by, request) is not None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.1")
        assert outstanding(run, by, request) is not None
    assert outstanding(run, by, request) is None


def test_the_code_that_draws_is_every_layer_from_networks_to_models() -> None:
    from test_layers import LAYERS

    flat = [name for names in LAYERS for name in names]
    layers = {*flat[flat.index("nn") : flat.index("codecs") + 1]}
    assert layers | {"core.py", "bundle.py"} <= {*cache.DRAWING}


def test_a_source_s_weights_are_part_of_what_a_run_is(place: Path) -> None:
    run, source = Run.load(place), Run.load(place)
    alone = cache.identity(run)
    run.sources = {"low": source}
    assert cache.identity(run) != alone and alone[0] in cache.identity(run)[-1]["low"]


def test_a_damaged_file_is_refused_by_name_and_is_listed_and_cleared_as_a_cache(run: Run, by: Extractor) -> None:
    request = request_of(run, plan(run))
    features_of_run(run, by, request)
    kept = cache.Kept(run, by, request)
    features = next(c for c in home.CACHES if c.name == "features")
    assert kept.folder in features.items
    assert json.loads((kept.folder / "about.json").read_text())["features"] == [by.name, by.fingerprint]
    kept.path(0).write_bytes(kept.path(0).read_bytes()[:40])
    with pytest.raises(evaluate.GencliError, match=kept.path(0).name):
        features_of_run(run, by, request)
    features.clear()
    assert not kept.folder.exists() and outstanding(run, by, request) is not None


def test_features_keep_their_bits_in_half_the_space(run: Run) -> None:
    by = extractor("random")
    shaken(by.net)  # type: ignore[attr-defined]
    made, _ = features_of_run(run, by, request_of(run, plan(run)))
    kept = cache.Kept(run, by, request_of(run, plan(run))).read()
    assert kept[0].dtype == np.float32 and np.array_equal(np.concatenate(kept).astype(np.float64), made.x)


def test_the_sets_used_longest_ago_make_room(run: Run, by: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request_of(run, Plan(8, sampler=run.sampler("ddim", {"steps": k}), batch=8)) for k in (1, 2, 3, 4)]
    folders = [cache.Kept(run, by, request).folder for request in requests]
    for i, request in enumerate(requests[:3]):
        features_of_run(run, by, request)
        os.utime(folders[i], (i, i))  # long ago
    features_of_run(run, by, requests[0])
    monkeypatch.setenv("GENCLI_CACHE_GB", f"{2.5 * files.space(folders[0]).size / 1e9:.9f}")
    features_of_run(run, by, requests[3])
    assert [folder.exists() for folder in folders] == [True, False, False, True], "the first was used since"
    monkeypatch.setenv("GENCLI_CACHE_GB", "0")
    made, _ = features_of_run(run, by, requests[3])
    assert len(made) == 8 and [folder.exists() for folder in folders] == [False, False, False, True]
