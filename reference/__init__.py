"""Pages of the documentation's reference, made from the code when the site is built (`make docs`).

`site_hooks` gives them to mkdocs. A page is Markdown; nothing is written into docs/.
"""
