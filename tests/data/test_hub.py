"""Data sets of the hub, as `datasets` reads them, from a folder in their layout; names, and what is not to be had."""

import datasets
import pytest

from fewstep.configs.conditions import parsed
from fewstep.data.sources import hub, list_samples
from fewstep.data.sources.filters import Filters
from fewstep.data.sources.hub import DataSetName, data_set_name
from fewstep.errors import FewstepError
from tests.data.kinds import PICTURES, errors, expected, listed, parquet


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in the place of a data set `owner/name`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(hub, "data_set_name", lambda given: DataSetName(str(tmp_path / "data"), None, "train"))
    monkeypatch.setattr(hub, "takes", lambda given: given.startswith("owner/"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("hub:owner/name@v1.0:test", ("owner/name", "v1.0", "test")),
        ("owner/my.set-2@refs/pr/1", ("owner/my.set-2", "refs/pr/1", "train")),
        ("owner/name:train[:10%]", ("owner/name", None, "train[:10%]")),
        ("owner/table.csv", None),
        ("owner/some/deeper", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("s3://owner/name", None),
        ("name", None),
    ],
)
def test_names(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_set_name(name) == (place and DataSetName(*place))
    (tmp_path / "owner").mkdir()
    assert data_set_name(name) == (DataSetName(*place) if name.startswith("hub:") else None)


def test_rows_are_samples(place):
    parquet(place, PICTURES)
    assert listed("owner/name") == expected(PICTURES)
    assert [image for image, _ in listed("owner/name", captioned=False)] == [p.png for p in PICTURES]
    assert listed("owner/name", filters=Filters(condition=parsed("score > 5"))) == expected(PICTURES[1:])
    samples = list_samples("owner/name").samples
    assert samples[3].open() == PICTURES[3].png
    assert samples[1].key == f"{place}:train row 2"
    assert [s.stamp for s in list_samples("owner/name").samples] == [s.stamp for s in samples]


def test_what_is_missing_is_named(place):
    parquet(place, (PICTURES[0], PICTURES[1]._replace(captions=())))
    assert errors("owner/name") == {f"{place}:train row 2": f"{place}:train row 2 has no caption"}
    parquet(place, PICTURES[:1], column="sound")
    with pytest.raises(FewstepError, match=r"^data not found: /absent/x is no path here, and no data set that the hub"):
        hub.loaded(DataSetName("/absent/x", None, "train"))
    with pytest.raises(FewstepError, match=r'no data set that the hub gives \(Unknown split "other"'):
        hub.loaded(DataSetName(str(place), None, "other"))


def test_without_the_package_or_the_network(fewstep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = fewstep("data", "check", "owner/absent")
    assert done.code == 1
    assert done.error.startswith("data not found: owner/absent is no path here, and no data set that the hub gives (")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    done = fewstep("data", "check", "owner/absent")
    assert done.error == "owner/absent is no path here, and data sets of the hub need the package datasets"
    assert done.hint == "check the path, or pip install fewstep[data]"
