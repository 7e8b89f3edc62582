"""The anatomy of the synthetic chest, as functions of position.

Every function takes positions in the LPS frame (x to the patient's left, y to posterior, z to superior; mm; the origin
lies in the middle of the chest) as arrays of one shape, whatever it is: a slab of a grid, scattered points.
Sizes are those of an adult man lying on his back in deep inspiration, from textbook anatomy. Distances are negative
inside and approximate (exact to first order near the surface).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Hounsfield units without contrast medium.
AIR = -1000.0
FAT = -100.0
MUSCLE = 50.0
BLOOD = 42.0
LIVER = 58.0
SPLEEN = 50.0
FLUID = 10.0
CARTILAGE = 110.0
MARROW = 170.0
CORTEX = 650.0

# Tubes of the mediastinum: points on the axis and the radius, mm.
AORTA = ((-6, -22, -18, 16), (-12, -28, 20, 16), (-8, -22, 46, 15), (8, 2, 56, 14), (22, 26, 46, 13),
         (24, 36, 20, 12.5), (22, 38, -40, 12), (12, 36, -100, 11.5), (6, 34, -170, 11))  # fmt: skip
PULMONARY_ARTERIES = (
    ((8, -46, -8, 13), (16, -30, 14, 13.5), (18, -14, 22, 12)),
    ((18, -14, 22, 12), (-10, -2, 20, 11), (-42, 6, 14, 9.5)),
    ((18, -14, 22, 12), (32, 6, 26, 11), (46, 16, 20, 9)),
)
CAVAL_VEINS = (
    ((-34, -14, -20, 10), (-32, -16, 20, 9.5), (-28, -22, 70, 9), (-34, -26, 100, 7), (-46, -24, 150, 6)),
    ((-28, -22, 70, 8), (4, -34, 78, 7), (34, -26, 104, 7), (48, -22, 150, 6)),
    ((-26, 4, -50, 12), (-24, 24, -90, 11), (-22, 30, -170, 11)),
)
ARCH_BRANCHES = (
    ((-4, -14, 56, 6.5), (-14, -12, 84, 6), (-28, -4, 118, 5), (-32, -6, 150, 4)),
    ((6, -6, 60, 4.5), (14, -8, 90, 4), (24, -6, 150, 4)),
    ((18, 12, 58, 5.5), (28, 12, 92, 5), (40, 2, 122, 5), (70, -16, 134, 5)),
)
ESOPHAGUS = ((2, 20, 150, 7), (4, 30, 60, 7), (6, 32, 10, 7.5), (10, 22, -60, 8), (22, 8, -95, 9))
# x between right and left lung, mm.
MIDLINE = 2.0
# Lumen of the trachea and the bronchi outside the lungs.
TRACHEA = ((0, 4, 160, 8.5), (0, 8, 110, 8.5), (1, 14, 42, 8.5))
MAIN_BRONCHI = (
    ((1, 14, 42, 7), (-30, 17, 18, 6.3), (-40, 19, -4, 5)),
    ((1, 14, 42, 6.8), (24, 19, 22, 6), (45, 24, 8, 5.6)),
)
AIRWAY_WALL = 1.6
# Distances to tubes are told up to here, mm.
REACH = 20.0


@dataclass(frozen=True)
class Lobe:
    """Where a lobe's artery (with its bronchus) and vein enter: positions in mm; ``label`` as lungmask counts lobes."""

    label: int
    name: str
    artery: tuple[float, float, float]
    vein: tuple[float, float, float]


LOBES = (
    Lobe(1, "left_upper_lobe", (48, 8, 24), (40, -6, 8)),
    Lobe(2, "left_lower_lobe", (50, 30, 4), (38, 26, -12)),
    Lobe(3, "right_upper_lobe", (-44, 8, 26), (-42, -6, 16)),
    Lobe(4, "right_middle_lobe", (-48, 4, -4), (-42, -6, -2)),
    Lobe(5, "right_lower_lobe", (-48, 26, -4), (-36, 26, -14)),
)


def segments_distance(x: Array, y: Array, z: Array, *chains: Any) -> Array:
    """Distance to tubes: chains of (x, y, z, radius) joined by straight pieces of linearly changing radius.

    Exact up to :data:`REACH`; further away it is at least that, so that pieces out of reach cost nothing.
    """
    best = np.full(x.shape, REACH, np.float32)
    if not best.size:
        return best
    bounds = [(v.min() - REACH, v.max() + REACH) for v in (x, y, z)]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            ax, ay, az, ar = a
            wide = max(ar, b[3])
            if any(
                max(a[i], b[i]) + wide < low or min(a[i], b[i]) - wide > high for i, (low, high) in enumerate(bounds)
            ):
                continue
            ux, uy, uz = b[0] - ax, b[1] - ay, b[2] - az
            dx, dy, dz = x - ax, y - ay, z - az
            t = np.clip((dx * ux + dy * uy + dz * uz) / (ux * ux + uy * uy + uz * uz), 0, 1)
            dx, dy, dz = dx - t * ux, dy - t * uy, dz - t * uz
            distance = np.sqrt(dx * dx + dy * dy + dz * dz) - (ar + t * (b[3] - ar))
            np.minimum(best, distance, out=best)
    return best


def ellipsoid_distance(x: Array, y: Array, z: Array, center: Any, radii: Any) -> Array:
    """Distance to an ellipsoid with axes along x, y and z."""
    dx, dy, dz = (x - center[0]) / radii[0], (y - center[1]) / radii[1], (z - center[2]) / radii[2]
    norm = np.sqrt(dx * dx + dy * dy + dz * dz)
    return (norm - 1) * min(radii)


def _front(z: Array) -> Array:
    """Anterior border of the pleural cavity: the breastbone rises backwards to the neck."""
    return -90 + 0.0022 * np.maximum(0, z + 40) ** 2


def _back(z: Array) -> Array:
    """Posterior border of the pleural cavity: the curve of the thoracic spine (kyphosis)."""
    return 92 - 0.0012 * (z - 10) ** 2


def _ring(x: Array, y: Array, half_width: Array, front: Array, back: Array, power: float) -> tuple[Array, Array]:
    """Distance to a superellipse in the axial plane, and the angle around it (0 at the spine, pi at the breastbone)."""
    middle, half_depth = (front + back) / 2, (back - front) / 2
    dy = y - middle
    u, v = np.abs(x) / half_width, np.abs(dy) / half_depth
    norm = np.maximum((u**power + v**power) ** (1 / power), 1e-3)
    radius = np.sqrt(x * x + dy * dy)
    return radius * (1 - 1 / norm), np.arctan2(np.abs(x), dy)


def body_distance(x: Array, y: Array, z: Array) -> Array:
    """Distance to the skin."""
    half_width = 168 - 0.10 * np.maximum(0, z - 40) - 0.04 * np.maximum(0, -60 - z)
    front = np.maximum(_front(z) - 25, -112) - 3 * np.cos(x / 60)
    # the furrow over the spine
    back = _back(z) + 30 - 5 * np.exp(-((x / 14) ** 2))
    return _ring(x, y, half_width, front, back, 2.4)[0]


def cage(x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """The costal pleura: (distance, angle around the chest, distance without the cap over the lungs' tops)."""
    rise = np.clip((z + 30) / 175, 0, 0.999)
    half_width = 134 * np.sqrt(1 - rise**2.2) - 0.04 * np.maximum(0, -60 - z)
    ring, angle = _ring(x, y, half_width, _front(z), _back(z), 2.5)
    # each lung's top is a dome behind the collarbone
    dx, dy = np.abs(x) - 42, y - 20
    square = dx * dx + 0.7 * dy * dy
    cap = (z - 127 + square / 60) / np.sqrt(1 + square / 900)
    return np.maximum(ring, cap), angle, ring


def diaphragm(x: Array, y: Array) -> Array:
    """Height z of the diaphragm: two domes, the right one higher, and the heart's bed between them."""
    height: Array | None = None
    for cx, cy, rx, ry, top in ((-70, -8, 66, 98, -40), (68, -6, 66, 98, -52), (4, -22, 52, 62, -66)):
        e = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        dome = top - 62 * (1 - np.sqrt(1 - np.minimum(e, 0.98))) - 60 * np.maximum(0, e - 0.98)
        height = dome if height is None else np.maximum(height, dome)
    assert height is not None  # noqa: S101 - for the type checker
    return height - 0.3 * np.maximum(0, y)


def heart_distance(x: Array, y: Array, z: Array) -> Array:
    """Distance to the heart: ventricles pointing to the left, the front and the feet; both atria."""
    long_axis = np.array([0.76, -0.52, -0.39])
    long_axis /= np.linalg.norm(long_axis)
    dx, dy, dz = x - 22, y + 26, z + 28
    along = dx * long_axis[0] + dy * long_axis[1] + dz * long_axis[2]
    across = dx * dx + dy * dy + dz * dz - along * along
    ventricles = (np.sqrt((along / 62) ** 2 + np.maximum(across, 0) / 45**2) - 1) * 45
    right_atrium = ellipsoid_distance(x, y, z, (-26, -16, -28), (24, 27, 32))
    left_atrium = ellipsoid_distance(x, y, z, (4, 14, -10), (36, 17, 22))
    return _blend(_blend(ventricles, right_atrium, 8), left_atrium, 8)


def vertebra_distance(x: Array, y: Array, z: Array) -> Array:
    """Distance to the column of vertebral bodies and disks."""
    dy = y - (_back(z) - 31)
    return np.sqrt((x / 1.2) ** 2 + dy * dy) - 15


def mediastinum_distance(x: Array, y: Array, z: Array) -> Array:
    """Distance to all that lies between the lungs, fat included: what keeps the pleura away from the midline."""
    vessels = segments_distance(x, y, z, AORTA, *PULMONARY_ARTERIES, *CAVAL_VEINS, *ARCH_BRANCHES)
    airways = segments_distance(x, y, z, TRACHEA, *MAIN_BRONCHI) - AIRWAY_WALL
    distance = _blend(vessels - 3, airways - 2, 8)
    distance = _blend(distance, segments_distance(x, y, z, ESOPHAGUS) - 1, 8)
    distance = _blend(distance, heart_distance(x, y, z) - 4, 10)
    spine = np.minimum(vertebra_distance(x, y, z) - 4, np.maximum(np.abs(x) - 15, _back(z) - 31 - y))
    distance = _blend(distance, spine, 10)
    # the two pleurae nearly meet behind the breastbone; a wedge of fat keeps them apart at the bone
    wedge = np.abs(x - MIDLINE) - 3 - 0.8 * np.maximum(0, 16 - (y - _front(z)))
    distance = _blend(distance, np.where(y < 40, wedge, 99), 8)
    column = (np.sqrt((x / 26) ** 2 + ((y - 2) / 36) ** 2) - 1) * 26
    distance = _blend(distance, np.maximum(column, 45 - z), 10)
    # under the heart: gullet, inferior vena cava and their ligaments
    bed = (np.sqrt(((x - 2) / 27) ** 2 + ((y - 12) / 34) ** 2) - 1) * 27
    return _blend(distance, np.maximum(bed, z + 48), 12)


def lung_distance(x: Array, y: Array, z: Array, wall: Array) -> Array:
    """Distance to the lungs' surface (visceral pleura), given the distance to the costal pleura (:func:`cage`).

    Inside the cage the right lung is where x < :data:`MIDLINE`.
    """
    distance = wall.copy()
    # each part only where it can matter: the domes' top is at -40 mm, the mediastinum reaches from -66 to 80 mm
    low = (wall < 8) & (z < -36)
    distance[low] = np.maximum(distance[low], (diaphragm(x[low], y[low]) - z[low]) * 0.7)
    near = (distance < 8) & (np.abs(x - 7) < 82)
    distance[near] = np.maximum(distance[near], -mediastinum_distance(x[near], y[near], z[near]))
    return distance


def lobes(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Lobe labels (see :data:`LOBES`) as if all were lung, and the distance to the nearest fissure."""
    right = x < MIDLINE
    # oblique fissures: from the back at the fifth rib down to the front of the diaphragm, slightly bowed
    bow = 10 * np.cos(x / 55) + 4 * np.sin(y / 31) + 3 * np.sin((x + 0.5 * y) / 17)
    oblique = (z - np.where(right, 62, 70) + 0.93 * (80 - y) - bow) / 1.37
    horizontal = z - 6 - 0.12 * (y + 40) - 0.08 * x - 6 * np.cos((y + 20) / 28) - 2 * np.sin(x / 13)
    upper = oblique > 0
    middle = upper & right & (horizontal < 0)
    label = np.where(right, np.where(upper, np.where(middle, 4, 3), 5), np.where(upper, 1, 2)).astype(np.uint8)
    fissure = np.abs(oblique)
    return label, np.where(right & upper, np.minimum(fissure, np.abs(horizontal)), fissure)


def surroundings(x: Array, y: Array, z: Array, lungs: Array, wall: tuple[Array, Array, Array]) -> Array:
    """Hounsfield units of everything but the lungs, without noise and blur.

    Args:
        x: left, mm; y: posterior, mm; z: superior, mm; of one shape.
        lungs: distance to the lungs there.
        wall: what :func:`cage` returns there.
    """
    skin = body_distance(x, y, z)
    distance, angle, ring = wall
    hu = np.full(skin.shape, AIR, np.float32)
    _table(hu, x, y)
    inside = skin < 0
    outer = inside & (distance > -0.5)
    hu[outer] = _wall(*(v[outer] for v in (x, y, z, skin, distance, angle, ring)))
    # the cavity without the lungs: mediastinum above the diaphragm, belly below it
    hollow = inside & (lungs > -0.5) & (ring < 1.5)
    belly = hollow & (distance < 1.5) & (z < -36)
    hu[belly] = _belly(*(v[belly] for v in (x, y, z)))
    middle = hollow & (((np.abs(x) < 62) & (ring < 0)) | ((np.abs(x - 7) < 82) & (distance < 1.5)))
    hu[middle] = _mediastinum(hu[middle], *(v[middle] for v in (x, y, z)))
    _spine(hu, x, y, z, inside)
    return hu


def _blend(a: Array, b: Array, width: float) -> Array:
    """Smooth minimum: the union of two shapes with a fillet of about ``width`` mm."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * (width / 4)


def _table(hu: Array, x: Array, y: Array) -> None:
    top = 126 - (x / 55) ** 2
    depth = y - top
    hu[(np.abs(x) < 200) & (depth > 3) & (depth < 18)] = -930
    hu[(np.abs(x) < 200) & (((depth > 3) & (depth < 4.6)) | ((depth > 16.4) & (depth < 18)))] = -150
    # the mattress
    hu[(np.abs(x) < 190) & (depth > -16) & (depth <= 3)] = -960


def _wall(x: Array, y: Array, z: Array, skin: Array, distance: Array, angle: Array, ring: Array) -> Array:
    """Skin, fat, muscle, ribs with cartilage, breastbone, shoulder blades and collarbones."""
    hu = np.full(x.shape, FAT, np.float32)
    breast = np.exp(-(((angle - 2.3) / 0.45) ** 2)) * np.clip((z + 10) / 30, 0, 1)
    back = np.exp(-((x / 48) ** 2)) * (y > 0)
    side = np.exp(-(((angle - 1.1) / 0.5) ** 2)) * np.clip((z + 90) / 60, 0, 1)
    thickness = 12 + 9 * breast + 30 * back + 9 * side + 1.6 * np.maximum(0, z - 45)
    muscle = (distance < thickness) & (skin < -7 - 5 * np.sin(angle) ** 2)
    # the armpit's fat
    muscle &= ellipsoid_distance(np.abs(x), y, z, (124, 8, 66), (17, 34, 44)) + 3 * np.sin(y / 6) * np.sin(z / 9) > 0
    # fat between the layers of muscle
    layer = (np.abs(distance - 12.5 - 1.5 * np.sin(3 * angle + z / 25)) < 1.1) & (np.abs(x) > 45)
    layer |= (np.abs(distance - 24 - 4 * np.sin(4 * angle + z / 17)) < 1.6) & (np.abs(x) > 60)
    shoulder = np.sqrt((np.abs(x) - 175) ** 2 + (y - 30) ** 2)
    layer |= (np.abs(np.sin(shoulder / 13 + np.sin(z / 19 + angle))) < 0.055) & (distance > 27)
    hu[muscle & ~layer] = MUSCLE
    hu[skin > -2.2] = 25

    # ribs run down from the spine to the front, their cartilages up again to the breastbone
    drop = np.where(angle < 2.2, 38 * (1 - np.cos(angle)), 60.4 - 36 * (angle - 2.2))
    level = z + drop
    beside = (level + 6) % 24 - 12
    size = np.sqrt(((distance - 5.6) / 4.1) ** 2 + (beside / 6.6) ** 2)
    rib = (size < 1) & (ring > -25) & (level < 126) & (angle > 0.2)
    end = 2.15 - 0.010 * np.maximum(0, -50 - level)
    bony = rib & (angle < end)
    hu[bony] = MARROW
    hu[bony & (size > 0.72)] = CORTEX
    hu[rib & (angle >= end) & (angle < 2.98) & (level > -78)] = CARTILAGE

    width = np.where(z > 38, 24.0, 15.0) + 3 * np.cos(z / 8)
    plate = np.maximum(np.abs(distance - 7) - 5, np.maximum(np.abs(x) - width, np.abs(z - 12) - 62))
    sternum = (plate < 0) & (angle > 2.5) & (np.abs(z - 38) > 1.2)
    hu[sternum] = MARROW - 30
    hu[sternum & (plate > -1.2)] = CORTEX - 200

    # shoulder blades: a thin plate behind the ribs with its spine, thick at the outer edge
    thick = 1.8 + 3.5 * np.exp(-(((angle - 1.24) / 0.1) ** 2))
    blade = np.abs(distance - 20 - 0.08 * (z - 60)) - thick
    blade = np.maximum(blade, np.maximum(22 * np.abs(angle - 0.95) - 8 - 0.06 * (z - 60), np.abs(z - 65) - 48))
    ridge = np.maximum(np.abs(z - 88 - 8 * (angle - 0.9)) - 2.5, np.abs(distance - 30) - 9)
    ridge = np.maximum(ridge, np.abs(angle - 0.95) * 40 - 12)
    blade = np.where(skin < -9, np.minimum(blade, ridge), 9)
    hu[blade < 0] = MARROW
    hu[(blade < 0) & (blade > -1.4)] = CORTEX - 100

    collar = segments_distance(
        np.abs(x), y, z, ((17, -56, 84, 7.5), (50, -62, 98, 6), (95, -40, 116, 5.5), (140, -10, 124, 7))
    )
    hu[collar < 0] = MARROW
    hu[(collar < 0) & (collar > -1.8)] = CORTEX
    return hu


def _belly(x: Array, y: Array, z: Array) -> Array:
    """What lies under the diaphragm: liver, spleen, stomach with gas and fluid, fat."""
    below = diaphragm(x, y) - z
    hu = np.full(x.shape, FAT, np.float32)
    stomach = ellipsoid_distance(x, y, z, (62, -16, -104), (50, 52, 46))
    spleen = ellipsoid_distance(x, y, z, (88, 46, -112), (34, 38, 46))
    liver = x + 0.35 * (y + 40) - 34 - 0.25 * (z + 70)
    hu[(liver < 0) & ((x < -8) | (y < 14))] = LIVER
    hu[spleen < 0] = SPLEEN
    hu[stomach < 0] = MUSCLE
    content = stomach < -4
    hu[content] = FLUID
    hu[content & (y < -30)] = -980
    hu[below < 3.5] = MUSCLE
    crus = segments_distance(np.abs(x - 3), y, z, ((14, 34, -80, 5), (10, 30, -170, 6)))
    hu[crus < 0] = MUSCLE
    return hu


def _mediastinum(hu: Array, x: Array, y: Array, z: Array) -> Array:
    """Heart, great vessels, gullet, windpipe and main bronchi in fat; the belly's organs keep their place below."""
    above = z > diaphragm(x, y) - 1
    hu = np.where(above, FAT + 5, hu)
    lean = (np.sin(x / 7 + y / 11) + np.sin(y / 6 - z / 9) + np.sin(z / 8 + x / 12)) / 3
    hu[above] += 12 * lean[above]
    heart = np.where(z > diaphragm(x, y) - 2, heart_distance(x, y, z), 9)
    hu[heart < 0] = BLOOD + 3
    # the furrow between atria and ventricles holds fat
    furrow = np.abs(0.76 * (x - 1) - 0.52 * (y + 12) - 0.39 * (z + 20) + 3 * np.sin(z / 9))
    hu[(heart < 0) & (heart > -9 + 2 * furrow)] = FAT + 10
    hu[segments_distance(x, y, z, ESOPHAGUS) < 0] = 35
    hu[segments_distance(x, y, z, AORTA, *PULMONARY_ARTERIES, *CAVAL_VEINS, *ARCH_BRANCHES) < 0] = BLOOD
    airway = segments_distance(x, y, z, TRACHEA, *MAIN_BRONCHI)
    hu[airway < AIRWAY_WALL] = 30
    hu[airway < 0] = -990
    return hu


def _spine(hu: Array, x: Array, y: Array, z: Array, inside: Array) -> None:
    """Vertebral bodies with disks, the canal, arches, transverse and spinous processes."""
    near = inside & (np.abs(x) < 46) & (y > 25)
    x, y, z = x[near], y[near], z[near]
    part = hu[near]
    back = _back(z)
    phase = (z + 5) % 24 - 12
    body = vertebra_distance(x, y, z)
    bone = body < 0
    part[bone] = MARROW + 20
    part[bone & (body > -1.3)] = CORTEX - 150
    part[bone & (np.abs(phase) > 9.7)] = CORTEX - 300
    part[bone & (np.abs(phase) > 10.3)] = 85
    canal = np.sqrt((x / 1.15) ** 2 + (y - back + 7) ** 2) - 8
    arch = (canal < 4) & (phase > -8) & (phase < 7)
    arch |= (np.abs(x) < 3) & (y > back) & (y < back + 21) & (np.abs(phase + 0.6 * (y - back - 8)) < 6)
    transverse = np.sqrt((y - back + 1 - 0.25 * np.abs(x)) ** 2 + phase**2) - 4.5
    arch |= (transverse < 0) & (np.abs(x) < 34) & (np.abs(x) > 8)
    part[arch & ~bone] = MARROW + 220
    cord = np.sqrt(x * x + (y - back + 7) ** 2) - 4.5
    part[canal < 0] = 12
    part[(canal < 0) & (cord < 0)] = 38
    hu[near] = part
