"""npz files: what is written is what NumPy reads, and what comes from elsewhere is read with suspicion."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from library.files.npz_files import MAX_HEADER_BYTES, read_npz, write_npz

ARRAYS = {
    "latents": np.random.default_rng(0).standard_normal((4, 8, 6)).astype(np.float32),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "size": np.array([640, 480]),
    "text": np.array("a caption"),
    "none": np.zeros((0, 3), np.float64),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
}
ROOM = 1 << 20


def member(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy with any header."""
    text = header.encode("latin1")
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def refusal(path: Path, max_bytes: int = ROOM) -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        read_npz(path, max_bytes)
    return str(caught.value)


def same(found: dict[str, np.ndarray]) -> None:
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


def test_numpy_and_we_read_what_is_written(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        same({name: file[name] for name in file.files} | {"big_endian": file["big_endian"].astype("=f4")})
    same(read_npz(tmp_path / "a.npz", ROOM))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    same(read_npz(tmp_path / "a.npz", ROOM))


def test_equal_arrays_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    write_npz(tmp_path / "b.npz", dict(reversed(ARRAYS.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("object.npz", latents=np.array([Bomb()], dtype=object))
    assert "pickle" in refusal(tmp_path / "object.npz")
    raw = archive(tmp_path / "raw.npz", {"latents.npy": pickle.dumps(Bomb())})
    refusal(raw)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10**9,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
        "{'shape': (3,)}",
        "[" * 3000,
    ],
    ids=range(8),
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str) -> None:
    refusal(archive(tmp_path / "lying.npz", {"latents.npy": member(header, bytes(12))}))


def test_a_huge_header_is_refused(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }" + " " * MAX_HEADER_BYTES
    assert "header" in refusal(archive(tmp_path / "huge.npz", {"latents.npy": member(text, bytes(12))})).lower()
    claims = b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little")
    refusal(archive(tmp_path / "claims.npz", {"latents.npy": claims}))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with io.BytesIO() as stream:
        np.save(stream, np.zeros(50 << 20, np.uint8))
        bomb = archive(tmp_path / "bomb.npz", {"latents.npy": stream.getvalue()}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 17
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    assert "unpack to" in refusal(bomb)


def test_too_many_or_double_members_are_refused(tmp_path: Path) -> None:
    assert "members" in refusal(archive(tmp_path / "many.npz", {f"{i}.npy": b"" for i in range(300)}))
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "double.npz", "w") as file:
        file.writestr("a.npy", b"")
        file.writestr("a.npy", b"")
    assert "twice" in refusal(tmp_path / "double.npz")
    assert "no array" in refusal(archive(tmp_path / "other.npz", {"readme.txt": b""}))


def test_every_way_of_cutting_a_file_short_is_found(tmp_path: Path) -> None:
    write_npz(tmp_path / "whole.npz", {"latents": ARRAYS["latents"]})
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in {0, 1, 30, len(whole) // 2, *range(len(whole) - 60, len(whole))}:
        (tmp_path / "short.npz").write_bytes(whole[:length])
        refusal(tmp_path / "short.npz")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    write_npz(tmp_path / "whole.npz", {"latents": ARRAYS["latents"]})
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.npz").write_bytes(data)
    assert "CRC" in refusal(tmp_path / "changed.npz")


def test_a_missing_file_a_folder_and_a_picture_are_named(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    refusal(tmp_path / "folder.npz")
    (tmp_path / "picture.npz").write_bytes(b"\x89PNG\r\n" + bytes(100))
    assert "zip" in refusal(tmp_path / "picture.npz")
