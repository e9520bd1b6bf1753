"""How Sphinx builds the documentation; `make docs` runs it. Every page also reads well as plain Markdown."""

project = "glyphrec"
html_title = "glyphrec"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# index.rst includes README.md, so that the folder and the site begin with the same page.
exclude_patterns = ["README.md", "study/notes", "embeddings/notes"]
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["site"]
html_css_files = ["site.css"]
# Headings get the anchors that a forge gives them, and a link to an anchor that does not exist is an error.
myst_heading_anchors = 4
nitpicky = True
highlight_language = "text"
