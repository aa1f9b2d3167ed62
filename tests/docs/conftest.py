"""Working folders of the pages, and the option `--as-written`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT
from tests.docs import server
from tests.helpers import write_idx_folder
from working_folder import CLASS_NAMES, prepare_folder, read_clothes

N_TRAIN, N_TEST = 600, 200  # images of the stand-in for Fashion-MNIST


def pytest_addoption(parser):
    parser.addoption("--as-written", action="store_true", help="train as the pages say, in build/docs-run; takes hours")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--as-written", default=False):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def as_written(request) -> bool:
    return request.config.getoption("--as-written", default=False)


@pytest.fixture(scope="session")
def published_data() -> Path | None:
    """The folder of Fashion-MNIST, or None if it is missing."""
    from fmcli.data.sources.fashion_mnist import find_fashion_mnist

    return find_fashion_mnist(None)


@pytest.fixture(scope="session")
def environment(as_written, published_data, tmp_path_factory):
    """Environment of the commands, in which `fmcli` is the fast one of `server.py` unless pages run as written."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    values = {**os.environ, "PYTHONPATH": str(ROOT)}
    if as_written:
        yield values | {"PATH": os.pathsep.join(path)}
        return
    folder = tmp_path_factory.mktemp("server")
    clothes = read_clothes().first(N_TRAIN, N_TEST)
    images = write_idx_folder(folder / "images", *clothes.train, test=clothes.test, classes=CLASS_NAMES)
    if published_data is not None:
        values["FMCLI_DATA"] = str(published_data)
    values["XDG_CACHE_HOME"] = str(folder / "cache")
    (folder / "bin").mkdir()
    process = server.install(folder / "bin", images)
    yield values | {"PATH": os.pathsep.join([str(folder / "bin"), *path])}
    process.stop()


@pytest.fixture(scope="session")
def prepared_folder(as_written, environment, tmp_path_factory):
    """A folder with the files that every page may use; tests must copy it."""
    if as_written:
        folder = ROOT / "build" / "docs-run" / "prepared"
        prepare_folder(folder, ROOT / "checkpoints" / "quick")
        return folder
    folder = tmp_path_factory.mktemp("pages") / "prepared"
    prepare_folder(folder, None, read_clothes().first(N_TRAIN, N_TEST))
    small_batches = "trainer.batch_size=16"  # one epoch must be enough to learn something
    train = ["fmcli", "train", "--recipe", "quick", "--threads", "1", "--quiet", "--set", small_batches]
    subprocess.run(train, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture
def copy_folder(as_written, prepared_folder, tmp_path):
    """A function that returns the working folder of a page; with `--as-written`, the one of an earlier run."""

    def copy(page: Path) -> Path:
        folder = (prepared_folder.parent if as_written else tmp_path) / page.stem
        if not folder.exists():
            shutil.copytree(prepared_folder, folder)
            if page.stem == "tutorial":  # it trains the run itself
                shutil.rmtree(folder / "checkpoints")
        return folder

    return copy
