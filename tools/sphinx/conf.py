"Sphinx settings of the offline documentation. Called by tools/build_docs.py, which prepares the pages."
import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

facts = ConfigParser(delimiters=["="])
facts.read(Path(__file__).resolve().parents[2] / "settings.ini", encoding="utf-8")
facts = facts["DEFAULT"]

project, author, release = facts["title"], facts["author"], facts["version"]
project_copyright = facts["copyright"]
extensions = ["myst_nb"]
root_doc = "index"
exclude_patterns = ["_build", "jupyter_execute"]

# Pages hold the outputs that are stored in the notebooks; nothing is run here.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"  # tables and formulas that a cell wrote, too
suppress_warnings = ["mystnb.unknown_mime_type"]  # the trace that opening a licensed data set leaves has no page to show
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Hide source"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

html_theme = "furo"
html_title = f"{facts['title']} {release}"
html_static_path = ["_static"]
html_css_files = ["kit.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


# Formulas become MathML, which browsers draw by themselves: no script, no font and no network.
html_math_renderer = "mathml"
REWRITE = [(r"\\[td]?frac(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\tag\{([^}]*)\}", r"\\qquad (\1)"), (r"\\[bB]igg?(?=[^\w])|\\limits", "")]
logger = logging.getLogger(__name__)


def mathml(self, node, block):
    "MathML of a formula; one that the converter does not know is shown as it is written, with a warning."
    tex = node.astext()
    for pattern, replacement in REWRITE:
        tex = re.sub(pattern, replacement, tex)
    try:
        return tex2mathml(tex, as_block=block)
    except (MathError, IndexError) as error:
        logger.warning("formula not understood (%s): %s", error, tex, location=node)
        return f"<code>{self.encode(tex)}</code>"


def visit_inline(self, node):
    self.body.append(mathml(self, node, False))
    raise nodes.SkipNode


def visit_block(self, node):
    self.body.append(f'<div class="formula">{mathml(self, node, True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
