"""Images per second and core: decoding the source, our shards, PNG shards, copying memory; and the converter.

    python benchmarks/data.py [--images 6] [--rows 1024 --cols 832] [--out FILE]

Full-size synthetic mammograms (3328 x 2704, 12 bit, noise as strong as that of real ones) are written as DICOM in the
transfer syntaxes of the public archives and read back; everything runs in one process with one thread, each figure is the
median over the images after one warm-up, and all figures of a table come from the same run. ``--real DIR`` uses the DICOM
files below a folder instead.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
SYNTAXES = ("ExplicitVRLittleEndian", "JPEG2000Lossless", "JPEGLosslessSV1", "RLELossless")
SCALE = 8  # the phantom is drawn at an eighth of a full frame


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in seconds, after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_sources(folder: Path, images: int) -> dict[str, list[Path]]:
    """Full-size synthetic mammograms per transfer syntax."""
    from PIL import Image

    from data_tools import phantom_breast
    from data_tools.phantom_dicom import DicomFacts, write_mammogram

    paths: dict[str, list[Path]] = {name: [] for name in SYNTAXES}
    for number in range(images):
        rng = np.random.default_rng(number)
        breast = phantom_breast.make_breast(rng, number % 4)
        small = phantom_breast.render(breast, "ffdm_cc" if number % 2 else "ffdm_mlo", (), rng).astype(np.float32)
        size = (small.shape[1] * SCALE, small.shape[0] * SCALE)
        large = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        tissue = large > 60
        noisy = large + tissue * rng.normal(0, 10, large.shape)  # air of presentation images is flat
        pixels = np.clip(noisy, 0, 4095).astype(np.uint16)
        for name in SYNTAXES:
            path = folder / name / f"{number}.dcm"
            facts = DicomFacts(
                "1", "", "1.2.3", "1.2.3.4", f"1.2.3.4.{number + 1}", "2000-01-01", "101500", "", "", "L", "CC", "F",
                "HOLOGIC, Inc.", "Selenia Dimensions", 12, ((2047, 4096),), name,
            )  # fmt: skip
            write_mammogram(path, pixels, facts)
            paths[name].append(path)
    return paths


def bare(path: Path, rows: int, cols: int) -> np.ndarray:
    """The least anyone can do: decode and resize."""
    from PIL import Image
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    stored = pixel_array(dcmread(path)).astype(np.float32)
    return np.asarray(Image.fromarray(stored).resize((cols, rows), Image.Resampling.BOX))


def convert_one(path: Path, rows: int, cols: int) -> Any:
    """The converter's whole work for one image, encoding included."""
    from data_tools.view import SampleTask, convert_sample

    meta = {"key": "embed-0000000000000000-l", "group": "", "dataset": "embed", "side": "l", "vendor": "", "labels": {}}
    result = convert_sample(SampleTask(meta, {"ffdm_cc": (str(path),)}, rows, cols, "b2"))
    if result.bad:
        raise SystemExit(f"an image was refused: {result.bad[0][1]}")
    return result


def codec_rows(pixels: Sequence[np.ndarray], repeats: int) -> tuple[list[list[str]], dict[str, float]]:
    """Size and decoding time of the shard codecs on the converted images, per image."""
    import blosc2
    import cv2

    from m4oe_ds.data import codecs

    candidates: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[Any], Any]]] = {
        "b2 (ours): row delta, bit shuffle, zstd": (lambda a: codecs.encode(a, "b2"), lambda d: codecs.decode(d, "b2")),
        "PNG-16 through OpenCV": (
            lambda a: cv2.imencode(".png", a)[1],
            lambda d: cv2.imdecode(d, cv2.IMREAD_UNCHANGED),
        ),
        "PNG-16 through Pillow (portable option)": (
            lambda a: codecs.encode(a, "png"),
            lambda d: codecs.decode(d, "png"),
        ),
        "Blosc2 bit shuffle, lz4, no delta": (
            lambda a: blosc2.compress2(
                a, codec=blosc2.Codec.LZ4, clevel=5, typesize=2, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1
            ),
            lambda d: blosc2.decompress2(d, nthreads=1),
        ),
        "raw bytes (memcpy limit)": (lambda a: a.tobytes(), lambda d: np.frombuffer(d, np.uint16).copy()),
    }
    try:
        import imagecodecs as ic

        candidates |= {
            "JPEG-LS": (ic.jpegls_encode, ic.jpegls_decode),
            "JPEG XL, effort 1": (lambda a: ic.jpegxl_encode(a, effort=1, lossless=True), ic.jpegxl_decode),
            "HTJ2K": (lambda a: ic.htj2k_encode(a), ic.htj2k_decode),
            "LERC lossless": (lambda a: ic.lerc_encode(a), ic.lerc_decode),
        }
    except ImportError:
        print("imagecodecs is not installed: its codecs are left out (pip install imagecodecs)", file=sys.stderr)
    rows, seconds = [], {}
    for name, (encode, decode) in candidates.items():
        try:
            data = [encode(image) for image in pixels]
            for image, one in zip(pixels, data, strict=True):
                back = (
                    np.frombuffer(decode(one), np.uint16) if isinstance(decode(one), bytes) else np.asarray(decode(one))
                )
                assert np.array_equal(back.reshape(image.shape), image), f"{name} is not lossless"
        except (RuntimeError, TypeError, ValueError) as error:
            print(f"{name}: left out ({type(error).__name__})", file=sys.stderr)
            continue
        size = statistics.mean(len(one) for one in data) / 1e6
        encoding = statistics.median(median_seconds(partial(encode, image), 1) for image in pixels)
        seconds[name] = statistics.median(median_seconds(partial(decode, one), repeats) for one in data)
        rows.append(
            [name, f"{size:.2f}", f"{1000 * encoding:.1f}", f"{1000 * seconds[name]:.2f}", f"{1 / seconds[name]:.0f}"]
        )
    png = seconds["PNG-16 through OpenCV"]
    for row, name in zip(rows, seconds, strict=True):
        row.append(f"{png / seconds[name]:.1f}")
    return rows, seconds


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=832)
    parser.add_argument("--real", type=Path, default=None, help="folder of DICOM mammograms instead of synthetic ones")
    parser.add_argument("--out", type=Path, default=None, help="also write the tables to this file")
    options = parser.parse_args()
    from data_tools.dicom import quiet, read_mammogram
    from m4oe_ds.data import codecs

    with tempfile.TemporaryDirectory() as scratch, quiet():
        if options.real:
            sources = {
                "real files": sorted(path for path in options.real.rglob("*") if path.is_file())[: options.images]
            }
        else:
            sources = write_sources(Path(scratch), options.images)
        pixels = []
        rows = []
        for name, paths in sources.items():
            decode = statistics.median(median_seconds(lambda p=path: read_mammogram(p), 1) for path in paths)
            least = statistics.median(
                median_seconds(lambda p=path: bare(p, options.rows, options.cols), 2) for path in paths
            )
            whole = statistics.median(
                median_seconds(lambda p=path: convert_one(p, options.rows, options.cols), 2) for path in paths
            )
            rows.append(
                [name, f"{1 / decode:.1f}", f"{1 / least:.1f}", f"{1 / whole:.1f}", f"{100 * least / whole:.0f} %"]
            )
            if not pixels:
                results = [convert_one(path, options.rows, options.cols) for path in paths]
                pixels = [codecs.decode(result.members["ffdm_cc.b2"], "b2") for result in results]
        codec_table, _ = codec_rows(pixels, options.repeats)
    kind = "files below --real" if options.real else "synthetic mammograms of 3328 x 2704 pixels, 12 bit"
    text = "\n\n".join(
        [
            f"Measured {date.today()} on one core of {platform.machine()}, Python {platform.python_version()}, "
            f"numpy {np.__version__}; {len(pixels)} {kind}; stored size {options.rows} x {options.cols}. "
            f"Command: `python benchmarks/data.py {' '.join(sys.argv[1:])}`".rstrip(),
            "**Converter** (images per second and core)",
            table(["source", "decoding alone", "decoding + resize", "whole conversion", "of decoding + resize"], rows),
            "**Codecs of the shards** (the stored images, lossless, checked)",
            table(["codec", "MB", "encode ms", "decode ms", "images/s/core", "times PNG-16 OpenCV"], codec_table),
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
