"""A plan loads no training library, and what it binds instead does what the thing itself would do.

Oracle: `sys.modules` of a process of its own, and the same plan with imports as they are written.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAN = """
import sys
from flows.cli.main import main
sys.argv = ["olmo2", "plan", "{recipe}", "--store", "{store}", "--json"]
if {written}:
    import torch
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
loaded = sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "aiohttp", "ray", "prefect", "transformers"}})
sys.stderr.write(",".join(name for name in loaded if vars(sys.modules[name]).get("__file__")))
"""


def in_process(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("recipe", ["smoke", "laptop"])
def test_a_plan_loads_no_training_library_and_says_the_same(recipe: str, tmp_path: Path):
    said = [
        in_process(PLAN.format(recipe=recipe, store=tmp_path / "store", written=written), tmp_path)
        for written in (False, True)
    ]
    assert said[0].stderr == ""
    assert "torch" in said[1].stderr
    assert json.loads(said[0].stdout) == json.loads(said[1].stdout)


@pytest.mark.slow
def test_a_plan_of_a_finished_recipe_loads_no_training_library(finished_smoke: Path, tmp_path: Path):
    """Every stage is reused, so records are read, files are measured and the code of each stage is compared."""
    done = in_process(PLAN.format(recipe="smoke", store=finished_smoke, written=False), tmp_path)
    assert {row["action"] for row in json.loads(done.stdout)} == {"reused"}
    assert done.stderr == ""


def test_what_is_used_is_the_thing_itself(tmp_path: Path):
    """A call, an attribute, a base class and a module of a package, each first in a process of its own."""
    uses = {
        "a call": "print(losses.cached_rows(1 << 22))",
        "a class": "print(isinstance(torch.zeros(1), Tensor))",
        "a base": "class Own(nn.Module): x = 1\nprint(issubclass(Own, __import__('torch').nn.Module), Own.x)",
        "a module": "print(functional.relu(torch.tensor([-1.0, 2.0])).tolist())",
    }
    said = {}
    for what, use in uses.items():
        program = f"""
from flows.cli.deferred_imports import defer_imports
defer_imports()
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from model.training import losses
from tasks.training.fitting import fit
import sys
assert "torch._C" not in sys.modules
{use}
from model.training.loop import training
assert fit.training is training and fit.nn is sys.modules["torch.nn"] and "torch._C" in sys.modules
"""
        said[what] = in_process(program, tmp_path).stdout.strip()
    assert said == {
        "a call": "1",
        "a class": "True",
        "a base": "True 1",
        "a module": "[0.0, 2.0]",
    }


def test_a_package_that_is_not_there_is_missed_as_always(tmp_path: Path):
    program = """
from flows.cli.deferred_imports import defer_imports
defer_imports()
try:
    import torch.no_such_module
except ModuleNotFoundError as error:
    print(error)
"""
    assert "no_such_module" in in_process(program, tmp_path).stdout


def test_another_package_gets_the_thing_itself_and_the_rest_goes_on_waiting(tmp_path: Path):
    """S3's client names errors of aiohttp in `except`, where Python takes nothing but a class of errors."""
    program = """
from flows.cli.deferred_imports import defer_imports
defer_imports()
{first}
import sys
from aiobotocore import httpsession
from infra.language_models import client
errors = (httpsession.ClientSSLError, httpsession.aiohttp.ClientPayloadError, client.aiohttp.ClientPayloadError)
print(all(issubclass(error, Exception) for error in errors), client.aiohttp is sys.modules["aiohttp"])
from tasks.training.fitting import fit
print("torch._C" in sys.modules)
"""
    said = {
        in_process(program.format(first=first), tmp_path).stdout
        for first in ("", "import infra.language_models.client")
    }
    assert said == {"True True\nFalse\n"}
