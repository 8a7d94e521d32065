"""How the embedded model was made: each stage a module with a command, `python -m recipes.emoji.STAGE`."""
