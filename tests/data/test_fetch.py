import functools
import hashlib
import http.server
import os
import shutil
import socketserver
import threading
from pathlib import Path

import pytest

from fmcli.data import fetch_source as fetch
from fmcli.data.cache import cache_folder
from fmcli.data.sources import fashion_mnist as fashion_mnist_source
from fmcli.data.sources.fashion_mnist import FASHION_MNIST_FILES, find_fashion_mnist, verify_fashion_mnist
from fmcli.errors import DataError, Remedy
from tests.helpers import draw_quadrants, idx_bytes, write_idx

FILES = sorted(f"{name}.gz" for name in FASHION_MNIST_FILES)


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch, tmp_path):
    """Keep these tests away from the system's copy, the network and apt."""
    monkeypatch.setattr(fashion_mnist_source, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "*")
    set_mirrors(monkeypatch)


def set_mirrors(monkeypatch, *mirrors):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", list(mirrors))


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Folder of four small files whose digests replace the published ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    arrays = [*draw_quadrants(20, seed=6), *draw_quadrants(8, seed=7)]
    for name, array in zip(FASHION_MNIST_FILES, arrays, strict=True):
        monkeypatch.setitem(FASHION_MNIST_FILES, name, hashlib.sha256(idx_bytes(array)).hexdigest())
        write_idx(folder / name, array, gz=True)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Garbage(Quiet):
    """Return a web page for every file, as a captive portal does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><title>Please sign in</title>")


class Cut(Quiet):
    """Close the connection in the middle of a file."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")


class Nonsense(socketserver.StreamRequestHandler):
    """Do not speak HTTP."""

    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"SSH-2.0-not-a-web-server\r\n")


@pytest.fixture
def serve():
    """Start a server on this machine and return its address."""
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mirror(serve):
    return lambda folder: serve(functools.partial(Quiet, directory=str(folder)))


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Put a fake apt-get and dpkg-deb on the PATH that provide the files of a folder and log their calls."""
    tools = tmp_path / "bin"

    def install(folder, *, needs_update=False, downloads=True, unpacks=True):
        tools.mkdir()
        scripts = {
            "apt-get": f"""
                echo "apt-get $*" >> {tmp_path}/calls
                case "$*" in
                    *update) touch {tmp_path}/updated; exit 0;;
                    *"download dataset-fashion-mnist") ;;
                    *) exit 100;;
                esac
                {f"[ -e {tmp_path}/updated ] || exit 100" if needs_update else ""}
                {"echo package > dataset-fashion-mnist_0.0_all.deb" if downloads else "exit 100"}
                """,
            "dpkg-deb": f"""
                echo "dpkg-deb $1" >> {tmp_path}/calls
                {"" if unpacks else "exit 2"}
                [ "$1" = -x ] && [ -e "$2" ] || exit 2
                mkdir -p "$3/usr/share/datasets/fashion-mnist"
                cp {folder}/* "$3/usr/share/datasets/fashion-mnist"
                """,
        }
        for name, script in scripts.items():
            (tools / name).write_text(f"#!/bin/sh\nPATH={os.defpath}\n{script}")
            (tools / name).chmod(0o755)

    install.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return install


def assert_whole(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    verify_fashion_mnist(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # temporary folders are removed


def assert_nothing_written(folder):
    assert not folder.exists() or not [path for path in folder.rglob("*") if not path.is_dir()]


# --- existing files ------------------------------------------------------------------------------------------


def test_existing_files_are_not_downloaded_again(published, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in published.iterdir()}
    said = []
    assert fetch("fashion-mnist", data_root=published, log=said.append) == published
    assert {path: path.stat().st_mtime_ns for path in published.iterdir()} == before
    assert said == [f"fashion-mnist is in {published} (verified)"]
    assert_nothing_written(cache_folder())


def test_real_files_are_recognized(fashion_mnist):
    assert fetch("fashion-mnist") == fashion_mnist


def test_altered_files_are_refused_and_kept(published, mirror, monkeypatch, tmp_path):
    here = tmp_path / "here" / "fashion-mnist"
    shutil.copytree(published, here)
    write_idx(here / "t10k-labels-idx1-ubyte", draw_quadrants(8, seed=8)[1], gz=True)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    set_mirrors(monkeypatch, mirror(published))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is not the published file") as caught:
        fetch("fashion-mnist", data_root=here.parent)
    assert caught.value.hint == "remove the file, then run: fmcli data fetch fashion-mnist"
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("name", ["fashion-mnits", "idx:here", "", "\x1b[31m"])
def test_unknown_dataset_is_refused(name):
    with pytest.raises(
        DataError, match=r"no built-in dataset '.*'; (did you mean|choose from:) .?fashion-mnist"
    ) as caught:
        fetch(name)
    assert "\x1b" not in str(caught.value)


# --- mirrors ------------------------------------------------------------------------------------------------


def test_real_files_come_from_a_mirror_into_the_cache(fashion_mnist, mirror, monkeypatch, tmp_path):
    if not all((fashion_mnist / name).is_file() for name in FILES):
        pytest.skip("the files here are not gzipped")
    monkeypatch.delenv("FMCLI_DATA")
    set_mirrors(monkeypatch, mirror(fashion_mnist))
    assert find_fashion_mnist(None) is None
    folder = fetch("fashion-mnist")
    assert folder == cache_folder() / "fashion-mnist" == find_fashion_mnist(None)
    assert_whole(folder)


def test_files_come_into_the_data_root_once(published, mirror, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, mirror(published))
    root = tmp_path / "new" / "root"
    said = []
    assert fetch("fashion-mnist", data_root=root, log=said.append) == root / "fashion-mnist"
    assert_whole(root / "fashion-mnist")
    assert said[0].startswith("downloading from http://127.0.0.1")
    assert said[-1] == f"fashion-mnist is in {root / 'fashion-mnist'} (verified)"
    set_mirrors(monkeypatch)
    assert fetch("fashion-mnist", data_root=root) == root / "fashion-mnist"


def test_files_have_the_usual_permissions(published, mirror, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, mirror(published))
    folder = fetch("fashion-mnist", data_root=tmp_path / "root")
    made = tmp_path / "as-usual"
    made.mkdir()
    assert folder.stat().st_mode == made.stat().st_mode


def test_incomplete_folder_is_completed_and_keeps_its_other_files(published, mirror, monkeypatch, tmp_path):
    here = tmp_path / "root" / "fashion-mnist"
    here.mkdir(parents=True)
    (here / "notes.txt").write_text("mine")
    (here / "train-images-idx3-ubyte").write_bytes(b"an interrupted download")
    set_mirrors(monkeypatch, mirror(published))
    assert fetch("fashion-mnist", data_root=tmp_path / "root") == here
    assert (here / "notes.txt").read_text() == "mine"
    verify_fashion_mnist(here)


@pytest.mark.parametrize("handler", [Garbage, Cut, Nonsense])
def test_bad_mirror_is_skipped(handler, published, serve, mirror, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, serve(handler), mirror(published))
    assert_whole(fetch("fashion-mnist", data_root=tmp_path / "root"))


def test_mirror_with_other_files_is_skipped(published, mirror, monkeypatch, tmp_path):
    other = shutil.copytree(published, tmp_path / "other")
    write_idx(other / "t10k-images-idx3-ubyte", draw_quadrants(8, seed=8)[0], gz=True)
    set_mirrors(monkeypatch, mirror(other), mirror(published))
    assert_whole(fetch("fashion-mnist", data_root=tmp_path / "root"))


def test_endless_file_is_cut_off(published, mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist_source, "MAX_DOWNLOAD_BYTES", 100)
    set_mirrors(monkeypatch, mirror(published))
    with pytest.raises(DataError, match="is larger than 100 bytes"):
        fetch("fashion-mnist", data_root=tmp_path / "root")
    assert_nothing_written(tmp_path / "root")


# --- the Debian package ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad_mirror",
    [
        None,
        lambda serve: serve(Garbage),
        lambda serve: serve(Nonsense),
        lambda serve: serve(functools.partial(Quiet, directory="/dev/null")),  # 404
        lambda serve: "http://127.0.0.1:1/",  # no server listens
        lambda serve: "ftp:no address",
    ],
    ids=["no mirror", "page", "no HTTP", "404", "refused", "no address"],
)
def test_the_debian_package_is_used_if_no_mirror_works(bad_mirror, published, serve, apt, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, *([bad_mirror(serve)] if bad_mirror else []))
    apt(published)
    said = []
    assert_whole(fetch("fashion-mnist", data_root=tmp_path / "root", log=said.append))
    assert apt.calls() == ["apt-get download dataset-fashion-mnist", "dpkg-deb -x"]
    assert any("no mirror works" in line for line in said)
    assert any("dataset-fashion-mnist" in line for line in said)


def test_package_lists_are_downloaded_if_the_system_has_none(published, apt, tmp_path):
    apt(published, needs_update=True)
    assert_whole(fetch("fashion-mnist", data_root=tmp_path / "root"))
    first, update, again, _ = apt.calls()
    assert first == "apt-get download dataset-fashion-mnist"
    assert update.endswith(" update")
    assert again.endswith(" download dataset-fashion-mnist")
    for call in (update, again):
        assert f"Dir::State::Lists={tmp_path}" in call  # never the lists of the system, which need root rights
        assert f"Dir::Cache={tmp_path}" in call


def test_package_of_other_files_is_refused(published, apt, tmp_path):
    other = shutil.copytree(published, tmp_path / "other")
    write_idx(other / "t10k-images-idx3-ubyte", draw_quadrants(8, seed=8)[0], gz=True)
    apt(other)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is not the published file"):
        fetch("fashion-mnist", data_root=tmp_path / "root")
    assert_nothing_written(tmp_path / "root")


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [None, {"downloads": False}, {"unpacks": False}], ids=["none", "no file", "broken"])
def test_when_every_download_fails_the_error_has_a_hint(tools, published, serve, apt, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, serve(Garbage))
    if tools is not None:
        apt(published, **tools)
    with pytest.raises(DataError, match="cannot download Fashion-MNIST: no mirror works") as caught:
        fetch("fashion-mnist")
    assert ("apt is not installed" if tools is None else "apt cannot download") in caught.value.message
    assert caught.value.remedies == (Remedy("data-root"),)
    assert "apt-get install dataset-fashion-mnist" in caught.value.hint
    assert_nothing_written(cache_folder().parent)


def test_failed_fetch_keeps_existing_files(serve, monkeypatch, tmp_path):
    here = tmp_path / "root" / "fashion-mnist"
    here.mkdir(parents=True)
    (here / "train-labels-idx1-ubyte").write_bytes(b"half")
    set_mirrors(monkeypatch, serve(Garbage))
    with pytest.raises(DataError):
        fetch("fashion-mnist", data_root=tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").rglob("*")] == ["fashion-mnist", "train-labels-idx1-ubyte"]


def test_unwritable_target_is_named(published, mirror, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, mirror(published))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write .*file/fashion-mnist") as caught:
        fetch("fashion-mnist", data_root=tmp_path / "file")
    assert caught.value.remedies == (Remedy("data-root"),)


def test_read_only_target_is_named(published, mirror, monkeypatch, tmp_path):
    root = tmp_path / "root"
    if os.geteuid() == 0:  # root can write everywhere except here
        root = Path("/proc")
    else:
        root.mkdir(mode=0o500)
    set_mirrors(monkeypatch, mirror(published))
    with pytest.raises(DataError, match=r"cannot write .*fashion-mnist"):
        fetch("fashion-mnist", data_root=root)


def test_interrupted_fetch_leaves_nothing(published, mirror, monkeypatch, tmp_path):
    def interrupt(text):
        assert text.startswith("downloading")
        raise KeyboardInterrupt

    set_mirrors(monkeypatch, mirror(published))
    with pytest.raises(KeyboardInterrupt):
        fetch("fashion-mnist", data_root=tmp_path / "root", log=interrupt)
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("where", ["tempfile.TemporaryDirectory", "pathlib.Path.replace"])
def test_full_disk_is_a_one_line_error(where, published, mirror, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    set_mirrors(monkeypatch, mirror(published))
    monkeypatch.setattr(where, full)
    with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
        fetch("fashion-mnist", data_root=tmp_path / "root")
    assert find_fashion_mnist(tmp_path / "root") is None
