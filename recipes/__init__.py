"""How what ships with fewstep was made; run from the folder of the repository."""
