"""One file out of the layers of a container image, whatever else is in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.modules import rootfs, tar
from wherry_runner.modules.manifest import NotAModule
from wherry_runner.modules.rootfs import Image, Layer

WASM = b"\0asm\1\0\0\0 and more"
MIB = 1 << 20


def file(path: str, data: bytes = WASM) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.size = len(data)
    return info, data


def folder(path: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type = tarfile.DIRTYPE
    return info, b""


def link(path: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname = target
    return info, b""


def special(path: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type = kind
    return info, b""


def packed(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def image(*layers: bytes, max_unpacked_bytes: int = 64 * MIB, stop: threading.Event | None = None) -> Image:
    opened = [Layer(file=io.BytesIO(layer), size=len(layer)) for layer in layers]
    return Image(opened, max_unpacked_bytes=max_unpacked_bytes, stop=stop or threading.Event())


def taken(path: str, *layers: bytes, **more: Any) -> bytes:
    opened = image(*layers, **more)
    found = opened.find(path)
    data = b"".join(opened.chunks(found))
    assert len(data) == found.size
    return data


def refused(path: str, *layers: bytes, **more: Any) -> str:
    with pytest.raises(NotAModule) as error:
        taken(path, *layers, **more)
    return str(error.value)


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_file_among_others(format: int, pack: Callable[[bytes], bytes]) -> None:
    long_name = "folder/" * 14 + "a" * 90 + ".wasm"
    layer = pack(
        packed(folder("./"), file("./etc/motd", b"hi"), file("app.wasm"), file(long_name, b"long"), format=format)
    )
    assert taken("/app.wasm", layer) == WASM
    assert taken("/" + long_name, layer) == b"long"
    assert taken("/etc/../etc//./motd", layer) == b"hi"


def test_gzip_in_several_pieces_as_some_tools_write_it() -> None:
    whole = packed(file("a", b"x" * 5000), file("app.wasm"))
    assert taken("/app.wasm", gzip.compress(whole[:3000]) + gzip.compress(whole[3000:])) == WASM


def test_a_later_layer_covers_an_earlier() -> None:
    lower, upper = packed(file("app.wasm", b"old"), file("kept", b"kept")), packed(file("app.wasm", b"new"))
    assert taken("/app.wasm", lower, upper) == b"new"
    assert taken("/app.wasm", upper, lower) == b"old"
    assert taken("/kept", lower, upper) == b"kept"


def test_of_two_entries_with_one_name_the_last_counts() -> None:
    assert taken("/app.wasm", packed(file("app.wasm", b"first"), file("app.wasm", b"second"))) == b"second"


@pytest.mark.parametrize(
    "upper",
    [
        packed(file("srv/.wh.app.wasm", b"")),
        packed(file(".wh.srv", b"")),
        packed(folder("srv/"), file("srv/.wh..wh..opq", b"")),
        packed(file(".wh..wh..opq", b"")),
        packed(file("srv", b"a file where there was a folder")),
    ],
)
def test_what_a_later_layer_took_away_is_gone(upper: bytes) -> None:
    lower = packed(folder("srv/"), file("srv/app.wasm"))
    assert "which is not among its files" in refused("/srv/app.wasm", lower, upper)
    assert taken("/srv/app.wasm", upper, lower) == WASM, "it is about lower layers only"
    assert taken("/srv/app.wasm", lower, upper, lower) == WASM


def test_a_folder_made_anew_beside_its_whiteout_is_there() -> None:
    lower = packed(file("srv/app.wasm", b"old"), file("srv/other", b"other"))
    upper = packed(file("srv/app.wasm", b"new"), file("srv/.wh..wh..opq", b""), file(".wh.srv", b""))
    assert taken("/srv/app.wasm", lower, upper) == b"new"
    assert "not among its files" in refused("/srv/other", lower, upper)
    assert taken("/srv/app.wasm", packed(file("srv/.wh..wh.aufs", b"")), lower) == b"old", (
        "aufs's own names mean nothing"
    )


@pytest.mark.parametrize(
    "entries",
    [
        [link("app", "/srv/app.wasm")],
        [link("app", "srv/app.wasm")],
        [link("app", "/current/app.wasm"), link("current", "srv")],
        [link("app", "one/../srv/app.wasm"), folder("one")],
        [link("app", "deep/down/app.wasm"), link("deep/down", "../srv")],
        [link("app", "../../../../srv/app.wasm")],  # above the root is the root
        [link("app", "/../srv/app.wasm")],
        [link("app", "srv/app.wasm", hard=True)],
        [link("app", "/srv/app.wasm", hard=True)],
    ],
)
def test_links_are_followed_within_the_image(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    assert taken("/app", packed(file("srv/app.wasm"), *entries)) == WASM


def test_a_link_leads_to_what_is_there_in_the_end() -> None:
    lower = packed(file("one/app.wasm", b"one"), link("app", "current/app.wasm"), link("current", "one"))
    upper = packed(file("two/app.wasm", b"two"), file(".wh.current", b""), link("current", "/two"))
    assert taken("/app", lower) == b"one"
    assert taken("/app", lower, upper) == b"two"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], 'is to run "/app.wasm", which is not among its files'),
        ([folder("app.wasm")], 'is to run "/app.wasm", which is not a file in it'),
        ([special("app.wasm", tarfile.CHRTYPE)], "which is not a file in it"),
        ([special("app.wasm", tarfile.FIFOTYPE)], "which is not a file in it"),
        ([link("app.wasm", "app.wasm")], 'has too many links on the way to "/app.wasm"'),
        ([link("app.wasm", "b"), link("b", "app.wasm")], "has too many links"),
        ([link("app.wasm", "a/" * 60 + "x"), link("a", "a/a/a/a/a/a/a")], "has too many links"),
        ([link("app.wasm", "/etc/passwd")], "which is not among its files"),
        ([link("app.wasm", "../../etc/passwd")], "which is not among its files"),
        ([link("app.wasm", "/proc/self/exe", hard=True)], "which is not a file in it"),
        ([file("../app.wasm")], "which is not among its files"),
        ([file("srv/../app.wasm")], "which is not among its files"),
        ([link("app.wasm", "app.wasm", hard=True)], "which is not a file in it"),
    ],
)
def test_what_is_not_there_or_no_file(entries: list[tuple[tarfile.TarInfo, bytes]], message: str) -> None:
    assert message in refused("/app.wasm", packed(file("other"), *entries))


def test_a_path_without_end() -> None:
    assert "is too deep in its folders" in refused("/" + "a/" * 65 + "x", packed(file("x")))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (b"hello" * 200, "has a layer that is no good tar archive: a header has a number that can't be read"),
        (b"0" * 512, "has a layer that is no good tar archive: a header has a wrong checksum"),
        (packed(file("app.wasm"))[:520], "no good tar archive: it ends in the middle of a file"),
        (packed(file("app.wasm"))[:100], "no good tar archive: it ends in the middle of a header"),
        (gzip.compress(packed(file("app.wasm")))[:-20], "has a layer whose gzip data is damaged"),
        (gzip.compress(packed(file("app.wasm")))[:40] + b"\xff" * 200, "has a layer whose gzip data is damaged"),
        (b"\x1f\x8b\x08", "has a layer whose gzip data is damaged"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 100, "is a container image with layers compressed by zstd"),
        (packed(file("a" * 5000)), "a path in it is longer than 4096 characters"),
        (
            packed(file("a" * (2 * MIB)), format=tarfile.GNU_FORMAT),
            "a header in it has 2097153 bytes; at most 1048576 are",
        ),
        (packed(file("a" * (2 * MIB)), format=tarfile.PAX_FORMAT), "bytes; at most 1048576 are read"),
        (packed(link("x", "t" * 5000)), "a path in it is longer than 4096 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip's bytes have the time in them
)
def test_a_layer_that_is_no_archive(layer: bytes, message: str) -> None:
    assert message in refused("/app.wasm", layer)


def test_an_archive_may_end_without_its_end() -> None:
    whole = packed(file("app.wasm"))
    assert taken("/app.wasm", whole[: 512 + 512]) == WASM
    assert taken("/app.wasm", whole[: 512 + len(WASM)] + b"\0" * 10) == WASM, "padding cut off"


# --- bombs ------------------------------------------------------------------------------------------------------------


def zeros(size: int) -> bytes:
    """A gzip layer with one file of zeros before the module; a thousandth of its size."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6) as stream:
        info = tarfile.TarInfo("zeros")
        info.size = size
        stream.write(info.tobuf())
        for _ in range(size // MIB):
            stream.write(bytes(MIB))
        stream.write(packed(file("app.wasm")))
    return buffer.getvalue()


def test_what_unpacks_to_too_much_is_left_in_bounded_memory() -> None:
    bomb = zeros(96 * MIB)
    assert len(bomb) < MIB
    tracemalloc.start()
    try:
        message = refused("/app.wasm", bomb, max_unpacked_bytes=1 << 40)
        assert f"has a layer of {len(bomb)} bytes that unpacks to more than {64 * MIB}" in message
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert f"unpacks to more than {8 * MIB}" in refused("/app.wasm", bomb, max_unpacked_bytes=8 * MIB)


def test_layers_together_unpack_to_so_much() -> None:
    layer = gzip.compress(packed(file("app.wasm"), file("zeros", bytes(4 * MIB))))
    assert taken("/app.wasm", layer, layer, max_unpacked_bytes=9 * MIB) == WASM
    assert "unpacks to more than" in refused("/app.wasm", layer, layer, layer, max_unpacked_bytes=9 * MIB)


def test_headers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "MAX_HEADERS", 100)
    assert "it has too many entries" in refused("/app.wasm", packed(*[file(str(n), b"") for n in range(101)]))
    half = packed(*[file(str(n), b"") for n in range(51)])
    assert "it has too many entries" in refused("/app.wasm", half, half), "all layers together"
    # Of long names too, which are no entries.
    names = packed(file("a" * 101))[:1024] * 101
    assert "it has too many entries" in refused("/app.wasm", names)


def test_names_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "MAX_NAMES_CHARACTERS", 1000)
    assert "is a container image with too many files" in refused(
        "/x", packed(*[file("a" * 300 + str(n)) for n in range(4)])
    )


def test_a_file_that_says_it_is_endless() -> None:
    info = tarfile.TarInfo("app.wasm")
    info.size = 1 << 62  # written as a binary number
    assert "ends in the middle of a file" in refused("/app.wasm", info.tobuf(tarfile.GNU_FORMAT) + WASM)
    assert "a header has a negative number" in refused("/x", _with_size(b"\xff" * 12))
    assert "a header has a number that can't be read" in refused("/x", _with_size(b"99999999999\0"))


def _with_size(field: bytes) -> bytes:
    header = bytearray(packed(file("app.wasm"))[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "records",
    [
        b"0 path=x\n",
        b"99 path=x\n",
        b"9 path=x",
        b"path=x\n",
        b"-9 path=x\n",
        b"11 path=x\n",
        b"6 path\n",
        b"\xb2 path=x\n",
        b"30 size=12\n" + b"\0" * 20,
    ],
)
def test_an_extended_header_of_nonsense(records: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    layer = info.tobuf() + records.ljust(512, b"\0") + packed(file("app.wasm"))
    assert "an extended header in it can't be read" in refused("/app.wasm", layer)


def test_a_sparse_file_is_no_module() -> None:
    info, data = file("app.wasm")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    assert "is not a file in it" in refused("/app.wasm", packed((info, data), format=tarfile.PAX_FORMAT))


def test_who_no_longer_wants_it_is_not_kept_waiting() -> None:
    stop = threading.Event()
    stop.set()
    assert "no longer wanted" in refused("/app.wasm", packed(file("app.wasm")), stop=stop)


# --- anything ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_damaged_archive_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(packed(file("a" * 120, b"x"), link("b", "app.wasm"), file("app.wasm"), format=tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        taken("/b", gzip.compress(cut) if data.draw(st.booleans()) else cut)
    except NotAModule as error:
        assert str(error)


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(layer: bytes) -> None:
    assert refused("/app.wasm", layer)
    assert refused("/app.wasm", b"\x1f\x8b" + layer)


_PATHS = st.lists(st.sampled_from(["a", "b", "..", ".", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4).map("/".join)
_ENTRIES = st.one_of(
    st.builds(file, _PATHS, st.binary(max_size=3)),
    st.builds(folder, _PATHS),
    st.builds(link, _PATHS, _PATHS, hard=st.booleans()),
)


@given(st.lists(st.lists(_ENTRIES, max_size=6), min_size=1, max_size=3), _PATHS)
def test_any_image_gives_a_file_of_its_own_or_nothing(
    layers: list[list[tuple[tarfile.TarInfo, bytes]]], path: str
) -> None:
    own = {data for layer in layers for _, data in layer}
    try:
        assert taken("/" + path, *(packed(*layer) for layer in layers)) in own
    except NotAModule as error:
        assert "which is" in str(error) or "too many links" in str(error)


def test_names_are_kept_and_no_contents() -> None:
    big = packed(*[file(f"{n}.bin", bytes(MIB)) for n in range(32)], file("app.wasm"))
    tracemalloc.start()
    try:
        opened = image(gzip.compress(big))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        digest = hashlib.sha256(b"".join(opened.chunks(opened.find("/app.wasm")))).digest()
        assert tracemalloc.get_traced_memory()[1] - before < 4 * MIB
    finally:
        tracemalloc.stop()
    assert digest == hashlib.sha256(WASM).digest()
    assert tar.MAX_HEADER_BYTES == MIB
