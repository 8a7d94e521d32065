"""What the commands do: each takes its config, tells events, and gives a value back; nothing is printed."""
