"""A synthetic breast: a 3-D density volume, planted lesions, and the mammograms a machine would make of them.

Nothing here comes from a person. A volume holds the glandular share of every voxel inside a half ellipsoid; it is
projected to a cranio-caudal (CC) and a medio-lateral oblique (MLO) view, rendered once as full-field digital
mammography (FFDM) and once as the synthesised 2-D image of tomosynthesis. Lesions have 3-D positions and are drawn on
the projections at full resolution, where they stay sharper than the voxels. How visible a lesion is in each of the
four images is an argument, so the share of the evidence in each image is known (:func:`information_shares`).

Axes: volume ``[z, y, x]`` with z head to feet, y across the breast, x from the chest wall (0) to the nipple.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

ROWS, COLS = 416, 338  # a full frame of 3328 x 2704 pixels divided by 8
DEPTH, HEIGHT, WIDTH = 64, 80, 64  # voxels along z, y, x
GLANDULAR_FRACTION = (0.08, 0.25, 0.50, 0.80)  # density A..D
MODALITIES = ("ffdm_cc", "ffdm_mlo", "syn_cc", "syn_mlo")
BLOCK = 6  # pixels averaged when evidence is measured: about the resolution a model is trained at


@dataclass(frozen=True)
class Lesion:
    """One finding. ``kind``: ``sign``, ``smooth`` or ``spiculated``.

    Attributes:
        centre: (z, y, x) in units of the half-ellipsoid's semi-axes, inside the breast.
        diameter: size in units of the breast's width along x.
        contrast: peak brightness in units of the full grey range, before the per-image scale.
        visibility: one factor per entry of ``MODALITIES``.
        seed: seed of the shape details (spicules, calcifications).
    """

    kind: str
    centre: tuple[float, float, float]
    diameter: float
    contrast: float
    visibility: tuple[float, float, float, float]
    seed: int


@dataclass(frozen=True)
class Breast:
    """Projections of one breast, chest wall at the left, before grey curves.

    Attributes:
        tissue: per view (cc, mlo) float32 [ROWS, COLS]: brightness of fat and gland, 0 in air.
        fat: the same without any glandular tissue (for the evidence on density).
        mask: per view float32 [ROWS, COLS] in 0..1: inside the breast or the pectoral muscle.
        axes: semi-axes (z, y, x) of the ellipsoid in voxels.
    """

    tissue: dict[str, Image]
    fat: dict[str, Image]
    mask: dict[str, Image]
    axes: tuple[float, float, float]


def _upsample(image: Image, rows: int = ROWS, cols: int = COLS) -> Image:
    """Linear interpolation by indexing: no BLAS, so the bytes do not depend on the number of threads."""
    out = image
    for axis, size in ((0, rows), (1, cols)):
        at = np.clip((np.arange(size, dtype=np.float32) + 0.5) * out.shape[axis] / size - 0.5, 0, out.shape[axis] - 1)
        low = np.minimum(at.astype(np.int64), out.shape[axis] - 2)
        part = (at - low).astype(np.float32)
        part = part[:, None] if axis == 0 else part[None, :]
        out = np.take(out, low, axis) * (1 - part) + np.take(out, low + 1, axis) * part
    return out.astype(np.float32)


def glandular_volume(rng: np.random.Generator, density: int) -> tuple[Image, Image, tuple[float, float, float]]:
    """Draws the tissue of one breast.

    Args:
        rng: source of all randomness.
        density: 0..3 for BI-RADS density A..D.

    Returns:
        ``(inside, gland, axes)``: two float32 [DEPTH, HEIGHT, WIDTH] volumes in 0..1 and the semi-axes in voxels.
    """
    from scipy.ndimage import gaussian_filter

    axes = (DEPTH * rng.uniform(0.36, 0.46), HEIGHT * rng.uniform(0.38, 0.46), WIDTH * rng.uniform(0.72, 0.88))
    z, y, x = np.ogrid[:DEPTH, :HEIGHT, :WIDTH]
    radius = (
        ((z - DEPTH / 2 + 0.5) / axes[0]) ** 2 + ((y - HEIGHT / 2 + 0.5) / axes[1]) ** 2 + ((x + 0.5) / axes[2]) ** 2
    )
    inside = radius < 1.0
    noise = rng.standard_normal((DEPTH, HEIGHT, WIDTH), dtype=np.float32)
    coarse, fine = gaussian_filter(noise, 5.0, truncate=2.5), gaussian_filter(noise, 1.6, truncate=2.5)
    field = coarse / coarse.std() + 0.55 * fine / fine.std() - 1.2 * radius  # gland sits away from the skin
    fraction = float(np.clip(GLANDULAR_FRACTION[density] * rng.uniform(0.85, 1.15), 0.03, 0.9))
    threshold = np.quantile(field[inside], 1.0 - fraction)
    gland = gaussian_filter((inside & (field > threshold)).astype(np.float32), 0.7, truncate=2.5)
    return inside.astype(np.float32), gland * inside, axes


def _oblique(volume: Image) -> Image:
    """Projection at 45 degrees about the nipple axis: float32 [HEIGHT, WIDTH]."""
    from scipy.ndimage import rotate

    turned = rotate(volume, 45.0, axes=(0, 1), reshape=False, order=1, prefilter=False)
    return turned.sum(axis=0, dtype=np.float32)


def _pectoral(rng: np.random.Generator) -> Image:
    """The pectoral muscle of an MLO view: a bright triangle in the upper corner at the chest wall."""
    across, down = rng.uniform(0.22, 0.36) * COLS, rng.uniform(0.42, 0.62) * ROWS
    y, x = np.ogrid[:ROWS, :COLS]
    return np.clip((1.0 - x / across - y / down) * 8.0, 0.0, 1.0).astype(np.float32)


@lru_cache(maxsize=8)  # a woman's exams and images share two breasts, and drawing one costs more than its images
def make_breast(seed: int, index: int, side: str, density: int) -> Breast:
    """Draws a breast and projects it to both views.

    Args:
        seed: of the archive.
        index: of the patient.
        side: ``L`` or ``R``.
        density: 0..3 for BI-RADS density A..D.

    Returns:
        The projections, write-protected because they are shared.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([seed, index, 4, "LR".index(side)])
    inside, gland, axes = glandular_volume(rng, density)
    depth = 2.0 * axes[0]
    tissue, fat, masks = {}, {}, {}
    for view in ("cc", "mlo"):
        thick = inside.sum(axis=0, dtype=np.float32) if view == "cc" else _oblique(inside)
        dense = gland.sum(axis=0, dtype=np.float32) if view == "cc" else _oblique(gland)
        thick, dense = _upsample(thick / depth), _upsample(dense / depth)
        mask = gaussian_filter(np.clip(thick * 12.0, 0.0, 1.0), 1.2, truncate=2.5)
        # peripheral equalisation of presentation images: thickness hardly shows except close to the skin
        fatty = (0.14 + 0.10 * np.sqrt(np.clip(thick, 0.0, None))) * mask
        bright = fatty + 0.36 * dense * mask
        if view == "mlo":
            muscle = gaussian_filter(_pectoral(rng), 2.0, truncate=2.5)
            bright, fatty = np.maximum(bright, 0.52 * muscle), np.maximum(fatty, 0.52 * muscle)
            mask = np.maximum(mask, np.clip(muscle * 4.0, 0.0, 1.0))
        tissue[view], fat[view] = bright.astype(np.float32), fatty.astype(np.float32)
        masks[view] = mask.astype(np.float32)
    for layer in (*tissue.values(), *fat.values(), *masks.values()):
        layer.flags.writeable = False
    return Breast(tissue, fat, masks, axes)


def lesion_position(
    centre: tuple[float, float, float], view: str, axes: tuple[float, float, float]
) -> tuple[float, float]:
    """Where a lesion's centre (z, y, x in semi-axes) lies in a view with the chest wall at the left: (row, column) in
    pixels.
    """
    z, y, x = (value * axis for value, axis in zip(centre, axes, strict=True))
    across = y if view == "cc" else (y - z) * np.sqrt(0.5)
    return ((across + HEIGHT / 2) * ROWS / HEIGHT, x * COLS / WIDTH)


def where_drawn(
    lesion: Lesion, breast: Breast, modalities: tuple[str, ...], side: str, tasks: tuple[str, ...]
) -> dict[str, Any]:
    """An entry of the truth: where a drawn lesion lies in the stored images, for those who look at them.

    Args:
        lesion: it.
        breast: in which it is.
        modalities: of the images.
        side: ``L``, or ``R``, whose images have the chest wall at the right.
        tasks: questions on which it is the evidence.

    Returns:
        ``kind``, ``tasks``, ``contrast``, ``shape`` of the images (rows, columns), and ``places``: per modality row,
        column and radius in pixels.
    """
    radius = 0.5 * lesion.diameter * breast.axes[2] * COLS / WIDTH
    places = {}
    for name in modalities:
        row, col = lesion_position(lesion.centre, name.split("_")[1], breast.axes)
        places[name] = [round(float(value), 2) for value in (row, COLS - 1 - col if side == "R" else col, radius)]
    return {
        "kind": lesion.kind,
        "tasks": list(tasks),
        "contrast": round(lesion.contrast, 4),
        "shape": [ROWS, COLS],
        "places": places,
    }


@lru_cache(maxsize=16)  # the images of a breast share their few shapes; one costs as much as the noise of an image
def _shape(
    kind: str,
    centre: tuple[float, float, float],
    diameter: float,
    seed: int,
    view: str,
    axes: tuple[float, float, float],
) -> tuple[Image, Image]:
    """The layers of :func:`draw_lesion`, write-protected because they are shared."""
    row, col = lesion_position(centre, view, axes)
    radius = 0.5 * diameter * axes[2] * COLS / WIDTH
    y, x = np.ogrid[:ROWS, :COLS]
    dy, dx = (y - row).astype(np.float32), (x - col).astype(np.float32)
    distance = np.sqrt(dy * dy + dx * dx) / np.float32(radius)
    rng = np.random.default_rng([seed, ("cc", "mlo").index(view)])
    specks = np.zeros((ROWS, COLS), np.float32)
    if kind == "smooth":
        soft = np.clip((1.08 - distance) * 6.0, 0.0, 1.0)
    elif kind == "spiculated":
        arms = rng.integers(9, 13)
        ray = np.cos(np.arctan2(dy, dx) * arms / 2.0 + rng.uniform(0, np.pi)) ** 8
        soft = np.maximum(np.exp(-((distance / 0.95) ** 4)), 0.75 * ray * np.clip((2.6 - distance) / 1.6, 0.0, 1.0))
    else:  # an asymmetric dense spot with calcifications
        soft = np.exp(-((distance / 1.05) ** 4))
        for _ in range(int(rng.integers(12, 20))):
            at = rng.normal(0.0, 0.5 * radius, 2)
            speck_y, speck_x = round(float(row + at[0])), round(float(col + at[1]))
            if 1 <= speck_y < ROWS - 2 and 1 <= speck_x < COLS - 2:
                specks[speck_y : speck_y + 2, speck_x : speck_x + 2] = rng.uniform(0.6, 1.0)
    layer: Image = soft.astype(np.float32)
    layer.flags.writeable = specks.flags.writeable = False
    return layer, specks


def draw_lesion(lesion: Lesion, view: str, axes: tuple[float, float, float]) -> tuple[Image, Image]:
    """Draws a lesion at contrast 1.

    Returns:
        ``(soft, calcifications)``: two float32 [ROWS, COLS] layers with peaks near 1, not to be written to.
    """
    return _shape(lesion.kind, lesion.centre, lesion.diameter, lesion.seed, view, axes)


def clean_image(breast: Breast, modality: str, lesions: tuple[Lesion, ...], gland: bool = True) -> Image:
    """The noise-free image of one modality in stored grey values: float32 [ROWS, COLS], chest wall at the left.

    FFDM uses 12 bits, a nearly linear curve and full sharpness; the synthesised image 10 bits, a curve that lifts the
    dark tones, a blur, and enhanced calcifications. ``gland=False`` leaves the glandular tissue out.
    """
    from scipy.ndimage import gaussian_filter

    kind, view = modality.split("_")
    level = (breast.tissue if gland else breast.fat)[view].copy()
    scale = MODALITIES.index(modality)
    specks = np.zeros_like(level)
    for lesion in lesions:
        soft, dots = draw_lesion(lesion, view, breast.axes)
        level += np.float32(lesion.contrast * lesion.visibility[scale]) * soft
        specks += np.float32(0.35 * lesion.contrast * lesion.visibility[scale]) * dots
    if kind == "ffdm":
        return np.clip(4095.0 * (level + specks) ** 1.05, 0.0, 4095.0) * breast.mask[view]
    level = gaussian_filter(level, 1.8, truncate=2.5) + 1.6 * specks
    return np.clip(120.0 + 800.0 * level**0.8, 0.0, 1023.0) * breast.mask[view]


def noise_image(rng: np.random.Generator, modality: str) -> Image:
    """Quantum noise of a modality in stored grey values: white for FFDM, correlated for the synthesised image."""
    noise = rng.standard_normal((ROWS, COLS), dtype=np.float32)
    if modality.startswith("ffdm"):
        return np.float32(110.0) * noise
    near = noise + np.roll(noise, 1, 0)
    return (np.float32(4.5) * (near + np.roll(near, 1, 1))).astype(np.float32)


def render(breast: Breast, modality: str, lesions: tuple[Lesion, ...], rng: np.random.Generator) -> NDArray[np.uint16]:
    """One mammogram: uint16 [ROWS, COLS], chest wall at the left, air close to 0."""
    mask = breast.mask[modality.split("_")[1]]
    noisy = clean_image(breast, modality, lesions) + noise_image(rng, modality) * mask
    top = 4095 if modality.startswith("ffdm") else 1023
    air = rng.integers(0, 3, (ROWS, COLS), dtype=np.uint16) * (mask < 0.02)
    return (np.clip(np.rint(noisy), 0, top).astype(np.uint16) + air).astype(np.uint16)


def _blocks(image: Image) -> Image:
    rows, cols = ROWS // BLOCK * BLOCK, COLS // BLOCK * BLOCK
    return image[:rows, :cols].reshape(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK).mean(axis=(1, 3))


def noise_variance(modality: str) -> float:
    """Variance of the mean of BLOCK x BLOCK noise pixels, in closed form from :func:`noise_image`."""
    if modality.startswith("ffdm"):
        return 110.0**2 / BLOCK**2
    # sum over one axis of the correlation (1/2, 1, 1/2) of neighbouring pixels, in a block of BLOCK
    along = (BLOCK + 2 * 0.5 * (BLOCK - 1)) / BLOCK**2
    return 9.0**2 * along**2


def information_shares(
    breast: Breast, targets: dict[str, Lesion], present: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """How the evidence on each question is spread over the modalities of a sample.

    The evidence in an image is the energy of its noise-free difference with and without the target, after averaging
    blocks of pixels, divided by the variance of the noise: the squared detectability of an ideal observer who knows
    the rest of the image.

    Args:
        breast: the projections.
        targets: the lesion that carries the evidence on each question. A sample without the lesion gives the one it
            would have: its absence is seen where its presence would be.
        present: modalities of the sample.

    Returns:
        Shares of the modalities in ``present``, summing to 1, per key of ``targets`` and for ``density``, whose
        target is the glandular tissue.
    """
    energy: dict[str, dict[str, float]] = {name: {} for name in (*targets, "density")}
    for modality in present:
        full = clean_image(breast, modality, tuple(targets.values()))
        for name in energy:
            others = tuple(lesion for other, lesion in targets.items() if other != name)
            change = full - clean_image(breast, modality, others, gland=name != "density")
            energy[name][modality] = float(np.sum(_blocks(change).astype(np.float64) ** 2)) / noise_variance(modality)
    shares = {}
    for name, values in energy.items():
        total = sum(values.values())
        shares[name] = {modality: value / total if total > 0 else 1 / len(values) for modality, value in values.items()}
    return shares
