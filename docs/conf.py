"""Configuration of the book; what depends on the language is set by ``_ext/site_html.py``."""

import doctest
import sys
import warnings
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS / "_tools"), str(DOCS.parent)]

import llm_study

# The release for Python 3.11 still calls a method that Sphinx 10 will drop; Sphinx is pinned below 10.
warnings.filterwarnings("ignore", module=r"sphinx_autodoc_typehints\._parser")

author = "LLM Study contributors"
copyright = "LLM Study contributors"
version = release = llm_study.__version__
language = "zh_CN"  # of the sources; each build says its own with -D language=…

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    # our own, one idea per file
    "external",
    "field_dashes",
    "issue_link",
    "katex_math",
    "latest_updates",
    "line_breaks",
    "plot_figure",
    "roadmap",
    "search_grams",
    "site_html",
    "site_i18n",
    "sound_catalogs",
    "source_listing",
    "term_hints",
    "termbase",
    "translation_status",
    "untranslated",
    "verified",
]
exclude_patterns = ["_*", "figures", "data", "node_modules"]
nitpicky = True
show_warning_types = True

# Numbers: one sequence of chapters, so that "(1.2.3)" means one equation of the book.
numfig = True
math_numfig = True
numfig_secnum_depth = 2

# Languages: catalogs without line numbers, dates or names, so that a change of one paragraph is a diff of one message.
locale_dirs = ["../locale"]
gettext_compact = False
gettext_location = False
gettext_uuid = False
gettext_additional_targets = {"index", "literal-block", "doctest-block"}
gettext_last_translator = gettext_language_team = ""

# Code: chapters use directives; the examples of docstrings run under pytest.
doctest_test_doctest_blocks = ""
doctest_default_flags = doctest.DONT_ACCEPT_TRUE_FOR_1  # neither "..." nor the message of an error is a wild card
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
typehints_use_rtype = True  # else the type becomes part of the message of "Returns"
typehints_defaults = None
always_use_bars_union = True
copybutton_exclude = ".linenos, .gp, .go"
copybutton_copy_empty_lines = False

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["lang.js"]
html_favicon = "_static/favicon.svg"
html_math_renderer = "katex"
templates_path = ["_templates"]
html_show_sphinx = False
html_copy_source = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/language.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
