"""Settings: one parser for TOML and flags, with types, bounds, choices and suggestions."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gencli import registry
from gencli.config import Part, as_dict, choose, merge, opt, parse, part, settings
from gencli.errors import GencliError
from gencli.training.settings import TrainConfig

COMPONENTS = [(kind, name) for kind in registry.KINDS for name in registry.entries(kind)]


@dataclass(frozen=True)
class Knobs:
    count: int = opt(3, "how many", low=1, high=9)
    rate: float = opt(0.5, "how fast", low=0)
    mode: Literal["slow", "fast"] = opt("slow", "which")
    on: bool = opt(False, "whether")
    sides: tuple[int, ...] = opt((1, 2), "which sides")
    limit: int | None = opt(None, "at most")
    word: str = opt("a", "a word")
    net: Part = part("networks", "dit", "the network", role="denoise", width=32)


def refused(values: dict[str, Any], *says: str) -> GencliError:
    with pytest.raises(GencliError) as caught:
        parse(Knobs, values, "knobs")
    for text in says:
        assert text in f"{caught.value.message} | {caught.value.hint}"
    assert caught.value.code == 2 and "\n" not in caught.value.message and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("count", "4", 4), ("count", 4.0, 4), ("count", "1_0", None), ("rate", "1e-3", 0.001), ("rate", 2, 2.0),
        ("mode", "fast", "fast"), ("on", "yes", True), ("on", "off", False), ("on", True, True),
        ("sides", "3,4", (3, 4)), ("sides", [5], (5,)), ("sides", "", ()), ("limit", "none", None), ("limit", "7", 7),
        ("word", "b", "b"),
    ],
)  # fmt: skip
def test_flags_and_toml_give_the_same_values(key: str, given: Any, expected: Any) -> None:
    if key == "count" and expected is None:
        refused({key: given}, "10", "the most is 9")
        return
    value = getattr(parse(Knobs, {key: given}), key)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": 0}, ["knobs: count is 0", "the least is 1"]),
        ({"count": "many"}, ["'many'", "a whole number"]),
        ({"count": 2.5}, ["'2.5'", "a whole number"]),
        ({"count": True}, ["'True'", "a whole number"]),
        ({"rate": -0.25}, ["rate is -0.25", "the least is 0"]),
        ({"count": 10}, ["count is 10", "the most is 9"]),
        ({"rate": "quick"}, ["'quick'", "a number"]),
        ({"mode": "fats"}, ["'fats'", "did you mean fast", "slow, fast"]),
        ({"on": "maybe"}, ["'maybe'", "true or false"]),
        ({"sides": "1,b"}, ["'b'", "a whole number"]),
        ({"limit": "x"}, ["'x'"]),
        ({"cuont": 1}, ["no setting 'cuont'", "did you mean count", "it has count, rate"]),
        ({"net": "ditt"}, ["'ditt'", "dit"]),
        ({"net": "pixelcnn"}, ["pixelcnn"]),
        ({"net": {"widht": 3}}, ["'widht'", "did you mean width"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values: dict[str, Any], says: list[str]) -> None:
    refused(values, *says)


def test_a_part_takes_defaults_of_its_owner_only_while_it_is_the_default() -> None:
    assert parse(Knobs, {}).net.config.width == 32
    assert parse(Knobs, {"net": {"depth": 2}}).net.config.width == 32
    other = parse(Knobs, {"net": "unet"}).net
    assert other.name == "unet" and other.config == registry.load("networks", "unet").Config()


def test_underscores_and_hyphens_are_the_same() -> None:
    assert parse(TrainConfig, {"batch-size": 8}) == parse(TrainConfig, {"batch_size": 8})


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[f"{k}/{n}" for k, n in COMPONENTS])
def test_the_settings_of_every_component_survive_a_round_trip(kind: str, name: str) -> None:
    cls = registry.load(kind, name).Config
    if any(
        item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        for item in dataclasses.fields(cls)
    ):
        pytest.skip("a setting is required")
    made = parse(cls, {})
    assert parse(cls, as_dict(made)) == made == cls()


@pytest.mark.parametrize(("kind", "name"), [*COMPONENTS, ("", "train")], ids=str)
def test_every_setting_has_a_help_without_a_full_stop_and_a_default_in_its_bounds(kind: str, name: str) -> None:
    cls = registry.load(kind, name).Config if kind else TrainConfig
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for row in settings(cls):
        assert row.help and not row.help.endswith("."), row.path
        if row.choices and row.default is not dataclasses.MISSING:
            assert row.default in row.choices, row.path
        if isinstance(row.default, (int, float)) and not isinstance(row.default, bool):
            assert row.low is None or row.default >= row.low, row.path
            assert row.high is None or row.default <= row.high, row.path


def test_settings_of_a_chosen_part_are_listed_one_dot_deep() -> None:
    paths = {row.path: row for row in settings(Knobs)}
    assert paths["net"].part == "networks" and {"dit", "unet"} <= {*paths["net"].choices}
    assert "pixelcnn" not in paths["net"].choices, "a network of another role"
    assert paths["net.width"].default == 32
    other = {row.path: row for row in settings(Knobs, chosen={"net": {"name": "unet", "width": 24}, "count": 5})}
    assert other["net.width"].default == 24 and other["count"].default == 5 and "net.patch" not in other


def test_merging_keeps_what_is_not_named_and_swaps_whole_components() -> None:
    base = {"model": {"name": "ddpm", "net": {"name": "unet", "width": 8}}, "train": {"steps": 5, "lr": 1.0}}
    made = merge(base, {"train": {"steps": 9}, "model": {"net": {"width": 16}}})
    assert made["train"] == {"steps": 9, "lr": 1.0} and made["model"]["net"] == {"name": "unet", "width": 16}
    assert merge(base, {"model": {"net": "dit"}})["model"]["net"] == {"name": "dit"}
    assert merge({"net": "unet"}, {"net": {"width": 4}})["net"] == {"name": "unet", "width": 4}
    assert merge({"net": {"name": "gated-pixelcnn", "width": 4}}, {"net": "gated_pixelcnn"})["net"]["width"] == 4
    assert base["train"] == {"steps": 5, "lr": 1.0}, "the base is left alone"


def test_choosing_needs_a_name_that_exists() -> None:
    assert choose("samplers", "ddim").config.steps == 50
    with pytest.raises(GencliError, match="unknown sampler 'dimm'"):
        choose("samplers", "dimm")


def test_hints_of_every_config_resolve() -> None:
    for kind, name in COMPONENTS:
        assert typing.get_type_hints(registry.load(kind, name).Config) is not None


def test_another_component_brings_none_of_the_old_ones_settings() -> None:
    digits = {"name": "digits", "image_size": 8}
    assert merge(digits, {"name": "toy2d"}) == {"name": "toy2d"}
    assert merge({"data": digits}, {"data": {"name": "fashion-mnist"}}) == {"data": {"name": "fashion-mnist"}}
    assert merge(digits, {"name": "digits", "unconditional": True}) == {**digits, "unconditional": True}
    assert merge({"net": "unet"}, {"net": {"width": 8}}) == {"net": {"name": "unet", "width": 8}}
