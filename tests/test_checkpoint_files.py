"""Finding a checkpoint in a folder or an archive, and refusing archives that are not one."""

import pathlib
import tarfile
import tempfile

import pytest
from parity_cases import FOLDER
from tf1_files import write, write_archive

from resnet.original import checkpoint_files
from resnet.original.checkpoint_files import checkpoint_prefix
from resnet.utils.errors import UserError

FILES = {
  name: (FOLDER / "revnet-test" / name).read_bytes()
  for name in ("checkpoint", "model.ckpt-0.index", "model.ckpt-0.data-00000-of-00001")
}


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
  """Where archives are unpacked."""
  folder = tmp_path / "temporary"
  folder.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(folder))
  return folder


def test_a_prefix_and_a_folder():
  prefix = str(FOLDER / "revnet-test" / "model.ckpt-0")
  for path in (prefix, pathlib.Path(prefix), FOLDER / "revnet-test"):
    with checkpoint_prefix(path) as found:
      assert found == prefix


def test_the_newest_of_several_in_a_folder_is_what_its_state_names(tmp_path):
  for step in (9, 10, 20):
    write(tmp_path / f"model.ckpt-{step}", {"x": 1.0})
  with pytest.raises(UserError, match=r"has 3 checkpoints.*: model.ckpt-10, model.ckpt-20, model.ckpt-9$"):
    checkpoint_prefix(tmp_path).__enter__()
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-10"')
  with checkpoint_prefix(tmp_path) as found:
    assert found == str(tmp_path / "model.ckpt-10")
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../model.ckpt-30"')
  with pytest.raises(UserError, match="has 3 checkpoints"):
    checkpoint_prefix(tmp_path).__enter__()


def test_no_checkpoint(tmp_path):
  (tmp_path / "notes.txt").write_text("not a checkpoint")
  for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "model.ckpt-1"):
    with pytest.raises(UserError, match=f"no checkpoint (in|at) {path}"):
      checkpoint_prefix(path).__enter__()


@pytest.mark.parametrize("prefix", ["", "./", "revnet-104/", "a/b/"])
def test_an_archive_is_unpacked_for_a_while(tmp_path, temporary_folder, prefix):
  members = [(prefix + name, content) for name, content in FILES.items()]
  path = write_archive(tmp_path / "revnet.tar.gz", members)
  with checkpoint_prefix(path) as found:
    assert pathlib.Path(found).is_relative_to(temporary_folder)
    assert pathlib.Path(f"{found}.index").read_bytes() == FILES["model.ckpt-0.index"]
  assert not list(temporary_folder.iterdir())


def _member(name, **fields):
  info = tarfile.TarInfo(name)
  for field, value in fields.items():
    setattr(info, field, value)
  return info


MALICIOUS = {
  "a path up": (("../evil.index", b"x"), "path out"),
  "a path down and up": (("a/../../evil.index", b"x"), "path out"),
  "a symbolic link": (_member("model.ckpt-0.index", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither"),
  "a hard link": (_member("model.ckpt-0.index", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "neither"),
  "a device": (_member("model.ckpt-0.index", type=tarfile.CHRTYPE), "neither"),
  "a pipe": (_member("model.ckpt-0.index", type=tarfile.FIFOTYPE), "neither"),
  "a file twice": (("checkpoint", b"x"), "whole tar archive"),
  "a file as a folder": (("checkpoint/model.ckpt-0.index", b"x"), "whole tar archive"),
}


@pytest.mark.parametrize(("member", "message"), MALICIOUS.values(), ids=MALICIOUS.keys())
def test_a_malicious_archive_is_refused(tmp_path, temporary_folder, member, message):
  path = write_archive(tmp_path / "evil.tar.gz", [("checkpoint", FILES["checkpoint"]), member])
  with pytest.raises(UserError, match=message):
    checkpoint_prefix(path).__enter__()
  assert sorted(file.name for file in tmp_path.rglob("*")) == ["evil.tar.gz", "temporary"]


def test_an_absolute_path_is_refused(tmp_path, temporary_folder):
  path = write_archive(tmp_path / "evil.tar.gz", [(f"{tmp_path}/evil.index", b"x")])
  with pytest.raises(UserError, match="path out"):
    checkpoint_prefix(path).__enter__()
  assert not (tmp_path / "evil.index").exists()


def test_a_folder_that_is_a_link_is_refused_before_anything_is_written_through_it(tmp_path, temporary_folder):
  outside = tmp_path / "outside"
  outside.mkdir()
  link = _member("a", type=tarfile.SYMTYPE, linkname=str(outside))
  path = write_archive(tmp_path / "evil.tar.gz", [link, ("a/model.ckpt-0.index", b"x")])
  with pytest.raises(UserError, match="neither"):
    checkpoint_prefix(path).__enter__()
  assert not list(outside.iterdir())


def test_an_archive_that_is_too_large_is_refused(tmp_path, temporary_folder, monkeypatch):
  monkeypatch.setattr(checkpoint_files, "MAX_ARCHIVE_BYTES", 1000)
  path = write_archive(tmp_path / "large.tar.gz", [("a", bytes(600)), ("b", bytes(600))])
  with pytest.raises(UserError, match="more than 1,000 bytes"):
    checkpoint_prefix(path).__enter__()


@pytest.mark.parametrize("length", [0, 1, 10, 100, 5000, -5000])
def test_a_truncated_archive(tmp_path, temporary_folder, length):
  path = write_archive(tmp_path / "cut.tar.gz", list(FILES.items()))
  content = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(content[:length])
  with pytest.raises(UserError, match=f"no checkpoint at {path}: .*whole tar archive"):
    checkpoint_prefix(path).__enter__()
  assert not list(temporary_folder.iterdir())


def _pax(**headers):
  info = _member("other")
  info.pax_headers = headers
  return info.tobuf(tarfile.PAX_FORMAT)


STRANGE = {
  "a negative size": (_pax(size="-1024"), "size -1024"),
  "holes": (_pax(**{"GNU.sparse.major": "0", "GNU.sparse.size": str(2**30), "GNU.sparse.map": "0,0"}), "holes"),
  "holes of the old format": (
    _member("other", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT),
    "'other' has holes",
  ),
  "a name without end": (
    _member("x", type=tarfile.GNUTYPE_LONGNAME, size=2**32).tobuf(tarfile.GNU_FORMAT),
    "4294967296 bytes of",
  ),
  "an extension that is damaged": (
    _pax(comment="x").replace(b"13 comment=", b"00 comment="),
    "header is damaged",
  ),
  "no end": (b"", "cut off"),
}


@pytest.mark.parametrize(("blocks", "message"), STRANGE.values(), ids=STRANGE.keys())
def test_an_archive_with_a_strange_second_header_is_refused(tmp_path, temporary_folder, blocks, message):
  content = FILES["model.ckpt-0.index"]
  data = _member("model.ckpt-0.index", size=len(content)).tobuf() + content + bytes(-len(content) % 512)
  (tmp_path / "strange.tar").write_bytes(data + blocks + bytes(1024 if blocks else 0))
  with pytest.raises(UserError, match=f"no checkpoint at .*strange.tar: .*{message}"):
    checkpoint_prefix(tmp_path / "strange.tar").__enter__()
  assert not list(temporary_folder.iterdir())
