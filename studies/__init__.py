"""What the pages of docs/ are made by: each study a module with a command, `python -m studies.NAME`.

Run them from the repository's folder. They write docs/NAME.md, its figures beside it as .json, and its pictures.
"""
