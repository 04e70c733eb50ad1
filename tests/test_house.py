"""The house rules of the project, checked: what stands where, who imports whom, what the README owes its reader."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from starfish_lab import __main__ as command_line
from starfish_lab import settings
from starfish_lab.execution import BACKENDS
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.models import PAPER_MODELS
from starfish_lab.pruning import BUDGETS, PATTERNS, PERMUTATIONS, SCORES, SOLVERS, STARTS
from starfish_lab.recipe import Recipe

README = (ROOT / "README.md").read_text()
TORCH_FREE = [
    "settings", "errors", "registry", "recipe", "report", "store", "whatif", "ledger", "presets", "token_schedule", "certificate_bounds",
    "progress", "literature", "models", "healing", "pruning", "calibration", "checks", "healing.healers", "bakeoff.plan",
    "execution", "execution.choice", "latency.plan", "latency.results_file", "latency.comparable", "latency.importing", "prediction.card",
    "sweep.plan", "sensitivity.stored", "sensitivity.spending", "sensitivity.layer_ms", "artefacts", "jobs.accelerators", "exporting.contents",
    "gallery.plan", "gallery.groups",
]  # fmt: skip


def _imports(path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in found | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}}


def test_visible_top_level_is_as_agreed():
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - {"__pycache__"}
    assert visible == {"app", "starfish_lab", "assets", "tests", "requirements.txt", "README.md"}


def test_library_never_imports_the_app():
    for path in (ROOT / "starfish_lab").rglob("*.py"):
        assert not _imports(path) & {"streamlit", "plotly", "app"}, path


def test_app_never_imports_torch_and_charts_never_streamlit():
    for path in (ROOT / "app").rglob("*.py"):
        assert not _imports(path) & {"torch", "timm", "torchvision"}, path
    for path in (ROOT / "app" / "charts").rglob("*.py"):
        assert "streamlit" not in _imports(path), path


def test_what_the_web_process_imports_brings_no_torch():
    code = "import sys\n" + "".join(f"import starfish_lab.{name}\n" for name in TORCH_FREE)
    code += "from starfish_lab.recipe import Recipe; Recipe()\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_library_runs_without_the_apps_packages():
    """A GPU machine may have torch, timm, scipy and pandas only."""
    code = "import sys\nsys.modules |= dict.fromkeys(['streamlit', 'plotly', 'sqlalchemy', 'sklearn', 'tqdm'])\n"  # None: not importable
    code += "import starfish_lab.experiment, starfish_lab.export, starfish_lab.profile, starfish_lab.__main__\n"
    code += "sys.exit(starfish_lab.__main__.main(['spectra', '--set', 'model.name=vit_tiny_patch16_224', '--set', 'model.weights=random']))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "blocks.11.mlp.fc2" in answer.stdout


@pytest.mark.parametrize("setting", settings.ALL, ids=lambda s: s.name)
def test_every_setting_is_documented(setting):
    assert f"| `{setting.name}` |" in README and f"| {setting.meaning} |" in README


def test_every_setting_read_anywhere_is_listed():
    listed = {setting.name for setting in settings.ALL}
    for path in [*(ROOT / "starfish_lab").rglob("*.py"), *(ROOT / "app").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("STARFISH_LAB_"):
                assert node.value in listed, f"{node.value} in {path} is not in settings.ALL"


def test_every_command_is_documented():
    actions = next(a for a in command_line._parser()._actions if a.dest == "command")
    assert actions.choices
    for name, parser in actions.choices.items():
        assert f"`{name}`" in README, f"command {name}"
        assert any("--json" in action.option_strings for action in parser._actions), f"{name} takes no --json"


@pytest.mark.parametrize("registry", [METHODS, REPAIRS, SCORES, SOLVERS, BUDGETS, PATTERNS, PERMUTATIONS, STARTS, BACKENDS], ids=lambda r: r.kind)
def test_every_method_is_documented(registry):
    assert registry.names()
    for name in registry.names():
        assert f"`{name}`" in README, f"{registry.kind} {name}"
        assert registry.describe(name).endswith("."), f"{registry.kind} {name} needs a docstring whose first line is a sentence"


def test_every_recipe_field_is_documented():
    for part in dataclasses.fields(Recipe):
        assert f"`{part.name}`" in README, part.name
        for field in dataclasses.fields(part.default) if dataclasses.is_dataclass(part.default) else ():
            assert f"`{field.name}`" in README, f"{part.name}.{field.name}"


def test_the_readmes_python_prunes_and_heals_any_module():
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU())).eval()
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    names = {"module": module, "images": torch.randn(32, 3, 32, 32), "others": torch.randn(8, 3, 32, 32)}
    exec(code, names)
    assert names["result"].steps == 60
    before, after = (sum(row["cosine_distance"] for row in names[when]) for when in ("before", "after"))
    assert after < 0.9 * before  # the loss is the mean over blocks: a single one may give way a little


def test_the_papers_models_are_named():
    for name in PAPER_MODELS:
        assert name in README
