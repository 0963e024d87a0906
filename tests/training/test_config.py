"""Configs: faults name file, line, key and the names there are; recipes are defaults."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from eecompile_training.config import differences, dump_config, load_config
from eecompile_training.settings import RunConfig

from eecompile.errors import UsageError

pytestmark = pytest.mark.torch
MINIMAL = "model: m\noutput: o\ndata:\n  files: [a.jsonl]\n"


def written(path: Path, text: str) -> Path:
    (path / "c.yaml").write_text(text)
    return path / "c.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "  lenght: 3\n", ["line 5", "data.lenght", "length", "held_out"]),
        (MINIMAL + "stepz: 3\n", ["line 5", "stepz", "steps"]),
        (MINIMAL + "steps: 0\n", ["line 5", "steps", "greater than or equal to 1"]),
        (MINIMAL + "optimizer:\n  betas: [0.1, 2]\n", ["line 6", "optimizer.betas.1"]),
        (MINIMAL + "steps: 1\nsteps: 2\n", ["line 6", "steps stands twice"]),
        ("model: m\noutput: o\n", ["data is missing"]),
        (MINIMAL + "recipe: layerskop\n", ["layerskop", "layerskip"]),
        ("- 1\n", ["not a mapping"]),
        ("a: [\n", ["not YAML"]),
    ],
)
def test_a_fault_says_where_and_what_there_is(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        load_config(written(tmp_path, text), RunConfig, {"layerskip": {}})
    assert all(part in str(e.value) for part in ["c.yaml", *said]), str(e.value)


def test_own_keys_win_over_the_recipe_key_by_key(tmp_path: Path) -> None:
    recipes = {"r": {"steps": 7, "optimizer": {"lr": 0.5, "clip": None}}}
    text = MINIMAL + "recipe: r\noptimizer: {lr: 2e-3}\n"
    config = load_config(written(tmp_path, text), RunConfig, recipes)
    assert (config.steps, config.optimizer.lr, config.optimizer.clip) == (7, 2e-3, None)


def test_a_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL), RunConfig)
    again = load_config(written(tmp_path, dump_config(config)), RunConfig)
    assert again == config
    other = config.model_copy(update={"steps": 3})
    assert list(differences(config.model_dump(), other.model_dump())) == ["steps: 200 before, 3 now"]
