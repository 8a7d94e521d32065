"""Train, draw, measure, write the page."""

from fewstep.data.cache import encode
from fewstep.data.framing import Framing
from fewstep.data.sources import list_samples
from fewstep.errors import FewstepError
from fewstep.io import write_bytes, write_json
from fewstep.models.load import load_model, pick_device
from studies.methods.config import MethodsConfig
from studies.methods.measures import measure
from studies.methods.page import page
from studies.methods.students import chosen, run_of
from studies.trainings import drawings, inputs, train


def run(config: MethodsConfig) -> None:
    """Train what is not trained, draw, measure, write the page."""
    students = chosen(config.students)
    data = config.data or drawings()
    model, samples = load_model(config.model, device=pick_device(config.device)), list_samples(data).samples
    encode(samples, model, Framing(model.size, model.multiple))  # once, before several runs would all do it
    runs = [run_of(student, config, data, inputs(model, data)) for student in students]
    del model
    train(runs, config.processes)
    failed = [run for run in runs if not run.mark.is_file()]
    if not config.only_train:
        trained = [(student, run) for student, run in zip(students, runs, strict=True) if run not in failed]
        document = measure(config, trained, len(samples))
        write_json(config.out.with_suffix(".json"), document)
        write_bytes(config.out, page(document).encode())
        print(config.out)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise FewstepError(f"left out, because training failed: {names}", f"see {failed[0].log}, and run this again")
