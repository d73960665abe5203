"""Makes the three pictures of README from finished work: ``python tools/pictures.py RUN STUDY``.

RUN is an analysed run of the demo (``m4oe analyze runs/demo``, ``m4oe report runs/demo``), STUDY the folder of ``m4oe
scale simulate``. Needs Chromium. Written to ``docs/pictures``, each below 100 kB: ``report.png`` (first screen of the
report), ``patient.png`` (a page of one patient), ``scaling.svg``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LARGEST = 100_000  # bytes


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


def fullest_page(folder: Path) -> Path:
    """The page of the patient with the most pictures: both sides, all views."""
    pages = sorted(folder.glob("*.html"), key=lambda page: page.stat().st_size)
    if not pages:
        raise SystemExit(f"error: {folder} has no pages of patients; run `m4oe analyze` and `m4oe report`")
    return pages[-1]


def main(run: Path, study: Path) -> int:
    """Makes all; 1 if one is too large."""
    PICTURES.mkdir(exist_ok=True)
    screenshot(run / "report.html", PICTURES / "report.png", 1280, 960, 720)
    screenshot(fullest_page(run / "patients"), PICTURES / "patient.png", 1280, 1150, 720)
    shutil.copy(study / "figures" / "throughput.svg", PICTURES / "scaling.svg")
    large = [
        f"{path.name} has {path.stat().st_size} bytes" for path in PICTURES.iterdir() if path.stat().st_size > LARGEST
    ]
    print("\n".join(large) or f"pictures: {PICTURES}")
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
