"""The packages of `resnet` build on each other in one direction."""

import ast

from helpers import ROOT

# Each package, and those of `resnet` that its modules may import.
BELOW = {
  "recomputation": set(),
  "reversible": {"recomputation"},
  "utils": set(),
  "configs": {"utils"},
  "data": {"configs", "utils"},
  "models": {"configs", "recomputation", "reversible"},
  "experiments": {"configs", "utils"},
  "training": {"configs", "data", "experiments", "models", "utils"},
  "original": {"configs", "training", "utils"},
  "training_flags": {"configs", "experiments", "original", "utils"},
  "trained": {"configs", "data", "experiments", "models", "original", "reversible", "training", "utils"},
  "tools": {
    "configs",
    "data",
    "experiments",
    "models",
    "original",
    "reversible",
    "trained",
    "training",
    "utils",
  },
}


def imported(path):
  """The modules that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are absolute"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
  wrong = []
  used: dict[str, set[str]] = {package: set() for package in BELOW}
  for path in sorted((ROOT / "resnet").rglob("*.py")):
    package = path.relative_to(ROOT / "resnet").parts[0].removesuffix(".py")
    if package == "__init__":
      continue
    for module in imported(path):
      top, _, rest = module.partition(".")
      below = rest.split(".")[0]
      if top == "resnet" and below != package:
        used[package].add(below)
        if below not in BELOW[package]:
          wrong.append(f"{path.relative_to(ROOT)} imports {module}")
  assert not wrong
  assert used == BELOW, "what is allowed is what is needed"


def test_no_package_is_above_and_below_another():
  order = list(BELOW)
  for package, below in BELOW.items():
    assert all(order.index(other) < order.index(package) for other in below), package
