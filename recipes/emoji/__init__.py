"""The programs that made the embedded model. Each stage is a module with a command, `python -m recipes.emoji.STAGE`."""
