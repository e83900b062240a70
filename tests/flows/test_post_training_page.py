"""What docs/post-training.md shows can be used. Oracle: the recipe's own checks, on the 7B's recipe with what a block says."""

import re
from pathlib import Path

import pytest
import yaml

from flows.config.files import load
from flows.config.recipe_config import RecipeConfig
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.preferences import PreferencesConfig

PAGE = Path(__file__).resolve().parents[2] / "docs/post-training.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def with_block(folder: Path, number: int) -> RecipeConfig:
    path = folder / f"block-{number}.yaml"
    path.write_text(yaml.safe_dump({"extends": "olmo2-7b"} | yaml.safe_load(BLOCKS[number])))
    return load(str(path))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_a_recipe(tmp_path: Path, number: int):
    said, config = yaml.safe_load(BLOCKS[number]), with_block(tmp_path, number)
    for section in said.keys() - {"execution"}:
        for field, value in said[section].items():
            if not isinstance(value, dict | list):
                assert getattr(getattr(config, section), field) == value, (section, field)


def test_the_pool_of_the_page_has_an_endpoint_for_each_model(tmp_path: Path):
    (number,) = (i for i, block in enumerate(BLOCKS) if "pool:" in block)
    config = with_block(tmp_path, number)
    how = config.preferences
    assert isinstance(how, PreferencesConfig) and how.pool and isinstance(how.judge, LanguageModelJudge)
    asked = {member.model.model for member in how.pool.served} | {how.judge.model.model}
    assert asked == config.execution.endpoints.keys()
    assert config.execution.endpoints[how.judge.model.model].max_cost == 900
