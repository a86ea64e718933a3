"""Plain data into dataclasses and back, with errors that help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from longtake.config import from_dict, override, read_yaml, to_dict
from longtake.errors import UserError
from longtake.systems import system_class
from longtake.systems.base import ModelInfo
from longtake.systems.tats.config import SIZES, TATSConfig
from longtake.train.recipe import read_recipe


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    kind: Literal["hinge", "vanilla"] = "hinge"
    precision: Literal["32", "bf16"] = "32"


@dataclass(frozen=True)
class Outer:
    steps: int
    name: str = "x"
    on: bool = False
    size: tuple[int, int] = (1, 2)
    files: tuple[str, ...] = ()
    clip: float | None = None
    inner: Inner = Inner()
    init: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")


@pytest.mark.parametrize("size", SIZES)
def test_every_tats_size_survives_the_round_trip(size):
    data = yaml.safe_dump(to_dict(SIZES[size]))
    assert from_dict(TATSConfig, read_yaml(data, "x"), "x") == SIZES[size]


def test_absent_fields_come_from_the_base_at_every_depth():
    base = Outer(5, clip=2.0, inner=Inner(rate=0.5, kind="vanilla"))
    made = from_dict(Outer, {"name": "y", "inner": {"rate": 1}}, "x", base)
    assert made == Outer(5, "y", clip=2.0, inner=Inner(rate=1.0, kind="vanilla"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "nam": "y"}, r"file has no setting 'nam'; did you mean 'name'\?"),
        ({"steps": 1, "zzzzz": 1}, "file has no setting 'zzzzz'; it knows steps, name"),
        ({"steps": 1, "inner": {"rte": 1}}, r"file: inner has no setting 'rte'; did you mean 'rate'\?"),
        ({}, "file lacks the setting 'steps'"),
        ({"steps": "many"}, "file: steps must be int, got 'many'"),
        ({"steps": 1.0}, r"file: steps must be int, got 1\.0"),
        ({"steps": True}, "file: steps must be int, got True"),
        ({"steps": 1, "on": 1}, "file: on must be bool, got 1"),
        ({"steps": 1, "name": 3}, "file: name must be str, got 3"),
        ({"steps": 1, "size": [1]}, r"file: size must be tuple\[int, int\], got \[1\]"),
        ({"steps": 1, "size": [1, "a"]}, "file: size must be int, got 'a'"),
        ({"steps": 1, "files": "one.pt"}, r"file: files must be tuple\[str, ...\], got 'one.pt'"),
        ({"steps": 1, "clip": "no"}, r"file: clip must be float \| None, got 'no'"),
        ({"steps": 1, "inner": {"rate": True}}, "file: inner: rate must be float, got True"),
        ({"steps": 1, "inner": {"kind": "soft"}}, "file: inner: kind must be one of hinge, vanilla, got 'soft'"),
        ({"steps": 1, "inner": 3}, "file: inner must hold named settings, got 3"),
        ({"steps": 1, "init": {"a": 1}}, "file: init.a must be str, got 1"),
        ({"steps": -1}, "file: steps must not be negative, got -1"),
        ([1], r"file must hold named settings, got \[1\]"),
    ],
)
def test_errors_name_the_field_and_its_file(data, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(Outer, data, "file")
    assert caught.value.code == 2


def test_values_of_near_types_are_taken():
    made = from_dict(Outer, {"steps": 1, "clip": 3, "size": (4, 5), "files": ["a", "b"], "inner": {"rate": 2}}, "x")
    assert isinstance(made.clip, float)
    assert isinstance(made.inner.rate, float)
    assert made.files == ("a", "b")
    assert from_dict(Outer, {"steps": 1, "clip": None}, "x", Outer(1, clip=2.0)).clip is None
    assert from_dict(Inner, {"precision": 32}, "x").precision == "32"


def test_overrides_reach_any_depth():
    data: dict = {"config": {"a": 1}, "loop": None}
    for text in ("config.a=2", "config.b.c=[1, 2]", "loop.keep=3", "data=some/path", "clip=null", "rate=1e-4"):
        override(data, text)
    assert data == {
        "config": {"a": 2, "b": {"c": [1, 2]}},
        "loop": {"keep": 3},
        "data": "some/path",
        "clip": None,
        "rate": 1e-4,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config.a", "not of the form field.name=value"),
        ("=3", "not of the form field.name=value"),
        ("a.b=1", "goes into 'a', which is not a group of settings"),
        ("b=[1", "is not valid YAML"),
    ],
)
def test_bad_overrides(text, message):
    with pytest.raises(UserError, match=message):
        override({"a": 1}, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("9.0e-05", 9e-5),
        ("-2E3", -2000.0),
        (".5", 0.5),
        ("3", 3),
        ("'1e-4'", "1e-4"),
        ("v1e4", "v1e4"),
    ],
)
def test_yaml_numbers(text, value):
    read = read_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


def test_yaml_runs_nothing_and_says_where_it_is_wrong():
    with pytest.raises(UserError, match="x is not valid YAML at line 1"):
        read_yaml("!!python/object/apply:os.getcwd []", "x")
    with pytest.raises(UserError, match="x is not valid YAML at line 2"):
        read_yaml("a: 1\nb: [", "x")


@pytest.mark.parametrize("text", ["2020-13-45", "0b_", "9" * 5000, "!!bool x", "!!timestamp x", "[" * 1000])
def test_yaml_values_that_cannot_be_are_named(text):
    with pytest.raises(UserError, match="x is not valid YAML: a value in it cannot be read") as caught:
        read_yaml(text, "x")
    assert caught.value.code == 2


def write(path, **fields):
    path.write_text(yaml.safe_dump({"system": "tats", "size": "tiny", "data": "lib", **fields}))
    return path


def test_a_recipe_starts_from_the_named_size(tmp_path):
    path = write(tmp_path / "mine.yaml", config={"vqgan_stage": {"lr": "1e-4"}})
    path.write_text(path.read_text().replace("'1e-4'", "1e-4"))
    recipe = read_recipe(path, ["config.prior.heads=4", "loop.precision=bf16", "seed=9"], output="out")
    assert recipe.config.vqgan_stage.lr == 1e-4
    assert recipe.config.vqgan_stage.batch == SIZES["tiny"].vqgan_stage.batch
    assert recipe.config.prior.heads == 4
    assert (recipe.loop.precision, recipe.seed, recipe.output, recipe.data) == ("bf16", 9, "out", "lib")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_a_recipe_has_a_default_output(tmp_path):
    assert read_recipe(write(tmp_path / "mine.yaml")).output == "runs/mine"


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"system": "tat"}, [], "there is no system 'tat'"),
        ({"size": "huge"}, [], "size must be one of tiny, small, base, paper, got 'huge'"),
        ({"data": None}, [], "pass --data FOLDER"),
        ({}, ["config.vqgan_stage.lrr=1"], r"config: vqgan_stage has no setting 'lrr'; did you mean 'lr'\?"),
        ({}, ["config.prior.heads=5"], "a width of 32 cannot be split into 5 heads"),
        ({}, ["config.vqgan.compression=[3, 4, 4]"], "use powers of two"),
        ({}, ["loop.kep=1"], r"loop has no setting 'kep'; did you mean 'keep'\?"),
        ({"stage": 1}, [], "has no setting 'stage'"),
    ],
)
def test_bad_recipes(tmp_path, fields, overrides, message):
    with pytest.raises(UserError, match=message):
        read_recipe(write(tmp_path / "mine.yaml", **fields), overrides)


def test_unreadable_recipes(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recipe .*: No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="is not a recipe"):
        read_recipe(tmp_path / "list.yaml")


def numbers(value, path: tuple = ()):
    """Where numbers, or several of them, stand in plain data."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, (*path, name))
    elif isinstance(value, (int, float, list)) and not isinstance(value, bool):
        yield path, value


def put(data: dict, path: tuple, value) -> dict:
    name, *rest = path
    return data | {name: put(data[name], tuple(rest), value) if rest else value}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tats", "stylegan_v", "mocogan_sg2", "ccvs", "loong", "lencgan", "ar2", "r3"])
def test_no_number_in_a_recipe_ends_in_a_traceback(name):
    """Nothing, less than nothing, and no number at all, in each place in turn: a sentence, or a model."""
    cls = system_class(name)
    tiny = to_dict(cls.sizes["tiny"])
    for path, value in numbers(tiny):
        bad = (0, -1) if isinstance(value, int) else (0.0, -1.0, float("nan"))
        for wrong in ([], [0] * len(value), [-1] * len(value)) if isinstance(value, list) else bad:
            try:
                config = from_dict(cls.config_class, put(tiny, path, wrong), "recipe")
                cls(config, ModelInfo(10.0, tuple(config.size), ("a", "b"), (1, 1))).stages()
            except UserError as error:
                assert str(error)  # noqa: PT017 (any other error is what is looked for)
