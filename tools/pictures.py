"""Makes the three pictures of README from finished work: ``python tools/pictures.py RUN STUDY``.

RUN is an analysed run of the demo (``m4oe analyze runs/demo``, ``m4oe report runs/demo``), STUDY the folder of ``m4oe
scale simulate``. Needs Chromium. Written to ``docs/pictures``, each below 100 kB: ``report.png`` (first screen of the
report), ``dispatch.png`` (one sample of it), ``scaling.svg``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LARGEST = 100_000  # bytes
SAMPLE = 2  # of the report: has all four views


def screenshot(page: Path, target: Path, width: int, height: int, shown: int) -> None:
    """The first screen of a page as a PNG of few colours.

    Args:
        page: an HTML file.
        target: file to write.
        width: of the window, pixels.
        height: of the window, pixels.
        shown: width of the picture, pixels.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"error: none of {', '.join(BROWSERS)} is on PATH; install one")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={raw}"]
        command += [f"--window-size={width},{height}", f"--user-data-dir={folder}/profile", page.resolve().as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=300)
        with Image.open(raw) as image:
            small = image.convert("RGB").resize((shown, shown * image.height // image.width), Image.Resampling.LANCZOS)
    small.quantize(64).save(target, optimize=True)


def one_sample(report: Path, folder: Path) -> Path:
    """A page that holds nothing but one sample of a report."""
    text = report.read_text(encoding="utf-8")
    head = text[: text.index("<body")]
    found = re.search(rf"<section[^>]*>\s*<h3>Sample {SAMPLE}</h3>.*?</section>", text, re.S)
    if found is None:
        raise SystemExit(f"error: {report} shows no sample {SAMPLE}; is it of an analysed run?")
    opened = found[0].replace("<details", "<details open")
    page = folder / "sample.html"
    page.write_text(f"{head}<body><main>{opened}</main></body></html>", encoding="utf-8")
    return page


def main(run: Path, study: Path) -> int:
    """Makes all; 1 if one is too large."""
    PICTURES.mkdir(exist_ok=True)
    screenshot(run / "report.html", PICTURES / "report.png", 1280, 960, 720)
    with tempfile.TemporaryDirectory() as folder:
        screenshot(one_sample(run / "report.html", Path(folder)), PICTURES / "dispatch.png", 1280, 1150, 720)
    shutil.copy(study / "figures" / "throughput.svg", PICTURES / "scaling.svg")
    large = [
        f"{path.name} has {path.stat().st_size} bytes" for path in PICTURES.iterdir() if path.stat().st_size > LARGEST
    ]
    print("\n".join(large) or f"pictures: {PICTURES}")
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
