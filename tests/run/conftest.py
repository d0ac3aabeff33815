import pytest
import training_runs


@pytest.fixture
def start(tmp_path):
    """A function that begins a run in tmp_path / "run"; its arguments are those of `start_run`."""

    def start(resume=None, *, folder=tmp_path / "run", **changes):
        return training_runs.start_run(folder, resume, **changes)

    return start


@pytest.fixture
def listening():
    yield from training_runs.listen()
