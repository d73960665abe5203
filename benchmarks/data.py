"""Images per second and core: decoding the source, our shards, PNG shards, copying memory; and the converter.

    python benchmarks/data.py [--images 6] [--rows 1024 --cols 832] [--out FILE]

Full-size synthetic mammograms (3328 x 2704, 12 bit, noise as strong as that of real ones) are written as DICOM in the
transfer syntaxes of the public archives and read back; everything runs in one process with one thread. A figure is the
median over the images of the fastest of some repetitions after a warm-up, in CPU time: other processes of the machine
then disturb it least. All figures come from the same run. ``--real DIR`` uses the DICOM files below a folder instead.

The converter is held against the least anyone can do with the same files: decode, and resize the stored integers with
Pillow's box filter or OpenCV's area interpolation (where it is installed).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
SYNTAXES = ("ExplicitVRLittleEndian", "JPEG2000Lossless", "JPEGLosslessSV1", "RLELossless", "JPEGLSLossless")
NO_WINDOW = "JPEG2000Lossless, no window in the header"  # the converter then needs percentiles
OPENCV_PNG = "PNG-16 through OpenCV"
SCALE = 8  # the phantom is drawn at an eighth of a full frame


def least_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Least CPU time of a call in seconds, after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def write_sources(folder: Path, images: int) -> dict[str, list[Path]]:
    """Full-size synthetic mammograms per transfer syntax."""
    from PIL import Image

    from data_tools.phantom import breast as phantom_breast
    from data_tools.phantom.dicom import DicomFacts, write_mammogram

    paths: dict[str, list[Path]] = {name: [] for name in (*SYNTAXES, NO_WINDOW)}
    for number in range(images):
        rng = np.random.default_rng(number)
        breast = phantom_breast.make_breast(0, number, "L", number % 4)
        small = phantom_breast.render(breast, "ffdm_cc" if number % 2 else "ffdm_mlo", (), rng).astype(np.float32)
        size = (small.shape[1] * SCALE, small.shape[0] * SCALE)
        large = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        tissue = large > 60
        noisy = large + tissue * rng.normal(0, 10, large.shape)  # air of presentation images is flat
        pixels = np.clip(noisy, 0, 4095).astype(np.uint16)
        for name in paths:
            path = folder / name / f"{number}.dcm"
            windows = () if name == NO_WINDOW else ((2047, 4096),)
            facts = DicomFacts(
                "1",
                "",
                "1.2.3",
                "1.2.3.4",
                f"1.2.3.4.{number + 1}",
                "2000-01-01",
                "101500",
                "",
                "",
                "L",
                "CC",
                "F",
                "HOLOGIC, Inc.",
                "Selenia Dimensions",
                12,
                windows,
                name.split(",")[0],
            )
            write_mammogram(path, pixels, facts)
            paths[name].append(path)
    return paths


def stored_values(path: Path) -> np.ndarray:
    """The decoded integers, by pydicom and its plugins."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    return pixel_array(dcmread(path))


def resizers(rows: int, cols: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """What averages areas of 16-bit images fast."""
    from PIL import Image

    found = {"Pillow": lambda a: np.asarray(Image.fromarray(a).resize((cols, rows), Image.Resampling.BOX))}
    try:
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda a: cv2.resize(a, (cols, rows), interpolation=cv2.INTER_AREA)
    except ImportError:
        print("OpenCV is not installed: only Pillow resizes (pip install opencv-python-headless)", file=sys.stderr)
    return found


def convert_one(path: Path, rows: int, cols: int) -> Any:
    """The converter's whole work for one image, encoding included."""
    from data_tools.convert.images import convert_sample
    from data_tools.convert.sample import SampleJob

    meta = {"key": "embed-0000000000000000-l", "group": "", "dataset": "embed", "side": "l", "vendor": "", "labels": {}}
    result = convert_sample(SampleJob(meta, {"ffdm_cc": (str(path),)}, rows, cols, "b2"))
    if result.bad:
        raise SystemExit(f"an image was refused: {result.bad[0][1]}")
    return result


Coder = tuple[Callable[[np.ndarray], Any], Callable[[Any], Any]]


def coders() -> dict[str, Coder]:
    """Encoder and decoder of every codec that is installed."""
    import blosc2

    from m4oe_ds.data import codecs

    lz4: dict[str, Any] = {"codec": blosc2.Codec.LZ4, "filters": [blosc2.Filter.BITSHUFFLE]}
    found: dict[str, Coder] = {
        "b2 (ours): row delta, bit shuffle, zstd": (lambda a: codecs.encode(a, "b2"), lambda d: codecs.decode(d, "b2")),
        "PNG-16 through Pillow (portable option)": (
            lambda a: codecs.encode(a, "png"),
            lambda d: codecs.decode(d, "png"),
        ),
        "Blosc2 bit shuffle, lz4, no delta": (
            lambda a: blosc2.compress2(a, clevel=5, typesize=2, nthreads=1, **lz4),
            lambda d: blosc2.decompress2(d, nthreads=1),
        ),
        "raw bytes (memcpy limit)": (lambda a: a.tobytes(), lambda d: np.frombuffer(d, np.uint16).copy()),
    }
    try:
        import cv2

        found[OPENCV_PNG] = (lambda a: cv2.imencode(".png", a)[1], lambda d: cv2.imdecode(d, cv2.IMREAD_UNCHANGED))
    except ImportError:
        print("OpenCV is not installed: its PNG is left out", file=sys.stderr)
    try:
        import imagecodecs as ic

        found |= {
            "JPEG-LS": (ic.jpegls_encode, ic.jpegls_decode),
            "JPEG XL, effort 1": (lambda a: ic.jpegxl_encode(a, effort=1, lossless=True), ic.jpegxl_decode),
            "HTJ2K": (lambda a: ic.htj2k_encode(a), ic.htj2k_decode),
            "LERC lossless": (lambda a: ic.lerc_encode(a), ic.lerc_decode),
        }
    except ImportError:
        print("imagecodecs is not installed: its codecs are left out (pip install imagecodecs)", file=sys.stderr)
    return found


def encoded(name: str, coder: Coder, pixels: Sequence[np.ndarray]) -> list[Any]:
    """The images as a codec stores them, of which it is checked that nothing is lost."""
    encode, decode = coder
    data = [encode(image) for image in pixels]
    for image, one in zip(pixels, data, strict=True):
        decoded = decode(one)
        back = np.frombuffer(decoded, np.uint16) if isinstance(decoded, bytes) else np.asarray(decoded)
        assert np.array_equal(back.reshape(image.shape), image), f"{name} is not lossless"
    return data


def codec_rows(pixels: Sequence[np.ndarray], repeats: int) -> list[list[str]]:
    """Size and decoding time of the shard codecs on the converted images, per image."""
    rows, seconds = [], {}
    for name, coder in coders().items():
        try:
            data = encoded(name, coder, pixels)
        except (RuntimeError, TypeError, ValueError) as error:
            print(f"{name}: left out ({type(error).__name__})", file=sys.stderr)
            continue
        size = statistics.mean(len(one) for one in data) / 1e6
        encoding = statistics.median(least_seconds(partial(coder[0], image), repeats) for image in pixels)
        seconds[name] = statistics.median(least_seconds(partial(coder[1], one), repeats) for one in data)
        rows.append(
            [name, f"{size:.2f}", f"{1000 * encoding:.1f}", f"{1000 * seconds[name]:.2f}", f"{1 / seconds[name]:.0f}"]
        )
    png = seconds.get(OPENCV_PNG)
    for row, name in zip(rows, seconds, strict=True):
        row.append("" if png is None else f"{png / seconds[name]:.1f}")
    return rows


def reading_rows(results: Sequence[Any], pixels: Sequence[np.ndarray], folder: Path, repeats: int) -> list[list[str]]:
    """Samples of one image each, read from shards as training does: range of the tar, WebDataset's reader, codec."""
    from m4oe_ds.data import codecs
    from m4oe_ds.data.cards import find_card
    from m4oe_ds.data.shard_reader import read_sample
    from m4oe_ds.data.shard_writer import ShardWriter

    card, rows = find_card("embed"), []
    for codec, name in (("b2", "our shards"), ("png", "the same shards with PNG-16 (Pillow)")):
        writer = ShardWriter(
            folder / codec,
            card,
            "train",
            samples_per_shard=len(pixels),
            synthetic=True,
            preprocessing={},
        )
        for number, (result, image) in enumerate(zip(results, pixels, strict=True)):
            place = f"{number:016x}"
            meta = {
                **result.meta,
                "key": f"embed-{place}-l",
                "group": place,
                "exam": place,
                "split": "train",
                "schema_version": 2,
                "screening": True,
                "vendor": "other",
            }
            writer.write(meta, {f"ffdm_cc.{codec}": codecs.encode(image, codec)})
        (shard,) = writer.close().shards

        def read(index: int, codec: str = codec, shard: Any = shard) -> np.ndarray:
            path = folder / codec / "train" / shard.name
            members = read_sample(path, shard.offsets[index], shard.offsets[index + 1])
            return codecs.decode(members[f"ffdm_cc.{codec}"], codec)

        assert all(np.array_equal(read(index), image) for index, image in enumerate(pixels))
        seconds = statistics.median(least_seconds(partial(read, index), repeats) for index in range(len(pixels)))
        rows.append([name, f"{1000 * seconds:.2f}", f"{1 / seconds:.0f}"])
    seconds = statistics.median(least_seconds(image.copy, repeats) for image in pixels)
    return [*rows, ["copying the decoded image (memcpy limit)", f"{1000 * seconds:.3f}", f"{1 / seconds:.0f}"]]


def shuffle_rows() -> list[list[str]]:
    """Rank correlation between epochs and spread of the shards, by the size of the split."""
    from m4oe_ds.data.manifest import Shard, assemble
    from m4oe_ds.data.order import shuffle_quality

    rows, size = [], 64
    for count in (640, 3200, 19200, 89600):
        shards = [Shard(f"{n}", 0, "", size, [], {}, [], [], []) for n in range(count // size)]
        manifest = assemble("embed", "train", shards, modalities=(), tasks=(), synthetic=True, preprocessing={})
        found = shuffle_quality(dataclasses.replace(manifest, num_samples=count))
        rows.append(
            [
                f"{count:,}",
                f"{found.correlation:.3f}",
                f"{found.chance:.3f}",
                f"{100 * found.spread:.0f} %",
                f"{100 * found.least_spread:.0f} %",
            ]
        )
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=832)
    parser.add_argument("--real", type=Path, default=None, help="folder of DICOM mammograms instead of synthetic ones")
    parser.add_argument("--out", type=Path, default=None, help="also write the tables to this file")
    return parser.parse_args()


def source_seconds(
    paths: Sequence[Path], methods: dict[str, Callable[[np.ndarray], Any]], options: argparse.Namespace
) -> dict[str, float]:
    """Seconds per image of decoding, of decoding and resizing by every method, and of the whole conversion."""
    names = ("decoding", *methods, "conversion")
    seconds: dict[str, list[float]] = {of: [] for of in names}
    for path in paths:  # all of one file after each other: what disturbs one figure disturbs the others
        calls: list[Callable[[], Any]] = [partial(stored_values, path)]
        calls += [lambda p=path, r=resize: r(stored_values(p)) for resize in methods.values()]
        calls.append(partial(convert_one, path, options.rows, options.cols))
        for of, call in zip(names, calls, strict=True):
            seconds[of].append(least_seconds(call, options.repeats))
    return {of: statistics.median(values) for of, values in seconds.items()}


def converter_row(name: str, figures: dict[str, float], methods: Sequence[str]) -> list[str]:
    """The converter next to the least anyone can do."""
    whole = figures["conversion"]
    added = whole - min(figures[of] for of in methods)
    return [
        name,
        *(f"{1 / value:.1f}" for value in figures.values()),
        f"{1000 * added:.0f}",
        *(f"{100 * figures[of] / whole:.0f} %" for of in methods),
    ]


@dataclass(frozen=True)
class Tables:
    """Tables of the report, as rows of text.

    Attributes:
        num_images: number of images that were measured.
        methods: names of the libraries that resize, next to the converter.
        reading: time of reading one image, a row per source.
        converter: time of converting one image, a row per source.
        codecs: sizes and times of the codecs, a row per codec.
    """

    num_images: int
    methods: Sequence[str]
    reading: list[list[str]]
    converter: list[list[str]]
    codecs: list[list[str]]


def measure(options: argparse.Namespace, scratch: Path) -> Tables:
    """All figures but those of the shuffle."""
    from m4oe_ds.data import codecs

    if options.real:
        sources = {"real files": sorted(path for path in options.real.rglob("*") if path.is_file())[: options.images]}
    else:
        sources = write_sources(scratch, options.images)
    methods = resizers(options.rows, options.cols)
    rows, reading = [], []
    for name, paths in sources.items():
        figures = source_seconds(paths, methods, options)
        decode = figures["decoding"]
        rows.append(converter_row(name, figures, list(methods)))
        reading.append([f"DICOM source, {name}", f"{1000 * decode:.2f}", f"{1 / decode:.1f}"])
    results = [convert_one(path, options.rows, options.cols) for path in next(iter(sources.values()))]
    pixels = [codecs.decode(result.members["ffdm_cc.b2"], "b2") for result in results]
    reading += reading_rows(results, pixels, scratch, options.repeats)
    return Tables(len(pixels), list(methods), reading, rows, codec_rows(pixels, options.repeats))


def report(options: argparse.Namespace, found: Tables) -> str:
    """The tables as Markdown, under what they are of."""
    kind = "files below --real" if options.real else "synthetic mammograms of 3328 x 2704 pixels, 12 bit"
    converter = ["source", "decoding", *(f"decoding + resize ({of})" for of in found.methods)]
    converter += ["whole conversion", "ms added", *(f"of {of}" for of in found.methods)]
    return "\n\n".join(
        [
            f"Measured {date.today()} on one core of {platform.machine()}, Python {platform.python_version()}, "
            f"numpy {np.__version__}; {found.num_images} {kind}; stored size {options.rows} x {options.cols}. "
            f"Command: `python benchmarks/data.py {' '.join(sys.argv[1:])}`".rstrip(),
            "Figures are CPU time: of every image the fastest of the repetitions, of the images the median.",
            "**Reading one image** (DICOM: full size; shards: the stored size, from the tar)",
            table(["source", "ms", "images/s/core"], found.reading),
            "**Converter** (images per second and core; ms added: to the faster decoding + resizing)",
            table(converter, found.converter),
            "**Codecs of the shards** (the stored images, lossless, checked)",
            table(["codec", "MB", "encode ms", "decode ms", "images/s/core", "times PNG-16 OpenCV"], found.codecs),
            "**Shuffle** (six epochs, shards of 64 samples)",
            table(["samples", "largest rank correlation", "by chance", "spread of a shard", "least"], shuffle_rows()),
        ]
    )


def main() -> None:
    """Measures and prints."""
    options = parse()
    from data_tools.pixels.dicom import quiet

    with tempfile.TemporaryDirectory() as scratch, quiet():
        found = measure(options, Path(scratch))
    text = report(options, found)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
