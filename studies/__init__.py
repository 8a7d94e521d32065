"""The studies that make the pages of docs/. Each is a module with a command, `python -m studies.NAME`.

Run them from the repository's folder. They write docs/NAME.md, its figures to docs/NAME.json, and its pictures.
"""

from fewstep.events import hush

hush()
