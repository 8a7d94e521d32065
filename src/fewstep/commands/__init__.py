"""The commands. Each takes its config, sends events and returns a value. None prints anything."""
