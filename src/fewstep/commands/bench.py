"""`fewstep bench`: time and memory of a picture, beside diffusers and the floor of this machine."""

from fewstep.commands.result import Result
from fewstep.configs import BenchConfig
from fewstep.errors import FewstepError
from fewstep.evaluate.bench.run import bench as measure
from fewstep.evaluate.bench.table import chart, markdown
from fewstep.evaluate.plots import check_matplotlib
from fewstep.events import note
from fewstep.io import atomic_path, refuse_file, write_bytes, write_json


def bench(config: BenchConfig) -> Result:
    """The table and what its numbers rest on. config.out holds both, and a chart."""
    refuse_file(config.out)
    document = measure(config)
    write_json(config.out / "bench.json", document)
    write_bytes(config.out / "table.md", f"{markdown(document)}\n".encode())
    try:
        check_matplotlib()
        with atomic_path(config.out / "bench.png") as file:
            chart(file, document)
    except FewstepError as error:
        note(error.whole)
    note(f"written to {config.out}")
    return Result(document, markdown(document))
