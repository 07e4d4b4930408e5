"""The pages and the API reference as a site, by Sphinx: tests/check_docs.sh builds it.

Its sources are the repository's pages where they are, from README.md on: links are the same on a forge, too.
A link to a file that is no page becomes a download.
"""

import inspect
import pathlib

from sphinx.util.inspect import stringify_signature

from resnet import __version__

project = "RevNet for TensorFlow 2"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
autodoc_inherit_docstrings = False
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "data", "logs", "results", "docs/_build", "resnet", "tests", "examples"]
html_theme = "furo"
html_title = f"RevNet {release}"
myst_heading_anchors = 4

# Docstrings are in Google's style; what stands between backticks is code.
default_role = "literal"
napoleon_custom_sections = [("Call arguments", "params_style")]
napoleon_use_rtype = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# Types of other packages, whose references are elsewhere.
nitpick_ignore_regex = [("py:.*", r"(keras|tensorflow|tf|np|numpy|collections|contextlib|os|typing|abc)\b.*")]

FIRST = (
  "reversible",
  "training",
  "gpu",
  "benchmark",
  "mixed_precision",
  "xla",
  "results",
  "fidelity",
  "reliability",
)
PAGES = [*FIRST, *sorted({page.stem for page in pathlib.Path(__file__).parent.glob("*.md")} - {*FIRST})]
CONTENTS = """
```{{toctree}}
:hidden:
:glob:
:caption: {caption}
{pages}
```
"""


def add_contents(app, name, source):
  """Gives the front page its contents, which the README does not show."""
  if name == root_doc:
    decide = "\n".join(f"docs/{page}" for page in PAGES)
    source[0] += CONTENTS.format(caption="Decide", pages=decide)
    source[0] += CONTENTS.format(caption="Reference", pages="docs/api/index\nCHANGELOG\nCONTRIBUTING\nSECURITY")
    source[0] += CONTENTS.format(caption="Notes", pages="docs/notes/*")


def signature_of_layer(app, what, name, value, options, signature, returned):
  """The arguments of `__init__`; Sphinx would show those of Keras' `__new__`, which takes any."""
  if what == "class" and "__init__" in vars(value):
    return stringify_signature(inspect.signature(value), show_annotation=False), None


def setup(app):
  app.connect("source-read", add_contents)
  app.connect("autodoc-process-signature", signature_of_layer)
