"""Pages for people: one self-contained HTML file about a run, an output or a checkpoint.

From facts to a page in three steps: `report` gathers, `charts` and `shading` turn numbers and tokens into what is
drawn, `page` writes it down.
"""
