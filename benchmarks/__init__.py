"""Speed and memory beside other tools. Each is a module with a command, `python -m benchmarks.NAME`."""

from fewstep.events import hush

hush()
