"""What the README and the pages of docs/ point to is there."""

import importlib.util
import re

import pytest
from helpers import ROOT

PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  ROOT / "CHANGELOG.md",
  ROOT / "SECURITY.md",
  *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]


def text_of(page):
  return page.read_text(encoding="utf-8")


def anchors(page):
  """The names by which headings are linked to: lower case, hyphens for spaces, no punctuation."""
  headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  broken = []
  for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
    if link.startswith("http"):
      continue
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists() or (anchor and anchor not in anchors(target)):
      broken.append(link)
  assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_programs_that_exist(page):
  programs = set(re.findall(r"python -m ([\w.]+)", text_of(page)))
  assert all(importlib.util.find_spec(program) for program in programs), programs
  scripts = set(re.findall(r"(?:\./|python )((?:\w+/)?\w+\.(?:py|sh))\b", text_of(page))) - {"examples/NAME.py"}
  assert all((ROOT / script).is_file() for script in scripts), scripts


# Flags of other programs, and of shell scripts.
FOREIGN = {"help", "logdir", "no-deps", "quick"} | {
  f"xla_{name}" for name in ("cpu_enable_concurrency_optimized_scheduler", "dump_hlo_as_text", "dump_to")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_are_those_of_the_programs(page):
  programs = [ROOT / "tests" / name for name in ("fuzz.py", "gpu_check.py", "torture.py")]
  programs += (ROOT / "examples").glob("*.py")
  sources = [*ROOT.glob("run_*.py"), *(ROOT / "resnet").rglob("*.py"), *programs]
  code = "".join(text_of(source) for source in sources)
  defined = set(re.findall(r"(?:DEFINE_\w+|define_bytes|add_argument)\(\s*\"(?:--)?(\w+)\"", code)) | FOREIGN
  defined |= {f"no{name}" for name in re.findall(r"DEFINE_bool\(\s*\"(\w+)\"", code)}
  shown = set(re.findall(r"(?<![\w-])--(\w[\w-]*)", text_of(page)))
  assert shown <= defined, shown - defined
