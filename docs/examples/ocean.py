"""An invented but plausible ocean: sea surface temperature, its anomaly and error, and ice, on any day.

A climate (warm pools, upwelling, boundary currents, all following the season) is stirred by eddies that drift west
and turn over within weeks, and warmed and cooled by slower weather. Every day can be had without the days before it.
The coastline, ``land.npz``, is rasterised from Natural Earth 1:50m (public domain).
"""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
GRID = (720, 1440)  # cells in latitude and longitude: a quarter of a degree
FREEZING = -1.8

# Both tables: longitude, latitude, half-widths of both in degrees, height.
CLIMATE = (  # in degrees Celsius, added to the mean of the latitude
    (150, 3, 42, 15, 1.3),  # the western Pacific's warm pool
    (248, -1.5, 34, 3.5, -4.5),  # the equatorial Pacific's cold tongue
    (352, -2, 16, 4, -2.5),  # and the Atlantic's
    (279, -14, 11, 14, -6.0),  # upwelling: Peru,
    (236, 33, 10, 11, -5.5),  # California,
    (9, -19, 9, 13, -6.0),  # Benguela,
    (341, 22, 9, 10, -4.5),  # the Canaries,
    (52, 9, 5, 5, -3.5),  # Somalia
    (344, 56, 30, 13, 6.0),  # the North Atlantic drift,
    (14, 70, 24, 8, 6.0),  # as far as the Barents Sea
    (304, 53, 12, 9, -4.5),  # the Labrador current
    (157, 49, 18, 8, -4.5),  # the Oyashio
    (306, -46, 7, 10, -4.0),  # the Malvinas current
    (292, 36, 13, 5, 4.0),  # the Gulf Stream
    (145, 34, 15, 5, 3.0),  # the Kuroshio
    (30, -34, 14, 6, 3.5),  # the Agulhas
    (313, -31, 8, 8, 2.5),  # the Brazil current
    (155, -31, 6, 9, 2.5),  # the East Australian current
    (113, -27, 5, 9, 1.5),  # the Leeuwin current
    (18, 36, 22, 5, 3.0),  # the Mediterranean
    (50, 27, 8, 5, 3.0),  # the Red Sea and the Gulf
    (268, 25, 9, 5, 1.5),  # the Gulf of Mexico
)
EDDIES = (  # in degrees of displacement
    (305, 40, 22, 6, 1.7),  # the Gulf Stream's extension
    (160, 37, 28, 6, 1.6),  # the Kuroshio's
    (25, -39, 26, 5, 1.8),  # the Agulhas' retroflection
    (308, -43, 11, 8, 1.6),  # where Brazil and Malvinas currents meet
    (156, -35, 8, 8, 1.1),
    (240, 3, 38, 5, 0.5),
    (285, -50, 30, 8, 0.8),  # the circumpolar current
    (75, -48, 60, 7, 1.1),
    (185, -54, 55, 7, 1.0),
    (180, 22, 900, 14, 0.4),  # everywhere a little
    (180, -27, 900, 14, 0.45),
    (350, 52, 30, 12, 0.5),
)
TABLES = {"climate": CLIMATE, "eddies": EDDIES}


def ocean(day: date, shape: tuple[int, int] = GRID) -> tuple[Field, Field, Field, Field]:
    """Temperature, its anomaly and its error in degrees Celsius, and ice as a fraction.

    Each is lat x lon, from the south pole and from Greenwich, and NaN on land; ice also where there is none.
    """
    climate = _climate(day, shape)
    north, east, weather = _motion(day, shape)
    stirred = _displaced(climate, north, east) + weather
    sst = np.maximum(stirred, FREEZING)
    anomaly = sst - np.maximum(climate, FREEZING)
    ice = np.clip((-0.9 - stirred) / 0.8, 0, 1)
    error = 0.12 + 0.08 * _blobs("eddies", shape) + 0.15 * ice + 0.03 * np.abs(weather)

    sea = np.where(_land(shape), np.float32(np.nan), np.float32(1))
    return sst * sea, anomaly * sea, error * sea, np.where(ice < 0.15, np.float32(np.nan), ice) * sea


def axes(shape: tuple[int, int]) -> tuple[Field, Field]:
    """Latitudes and longitudes, in degrees, of the centres of the cells."""
    lat, lon = ((np.arange(n, dtype="f4") + 0.5) * (width / n) for n, width in zip(shape, (180, 360), strict=True))
    return lat - 90, lon


@cache
def _land(shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    with np.load(Path(__file__).with_name("land.npz")) as file:
        land = np.unpackbits(file["bits"]).reshape(GRID).astype(bool)
    rows, columns = ((2 * np.arange(n) + 1) * full // (2 * n) for n, full in zip(shape, GRID, strict=True))
    return land[np.ix_(rows, columns)]


@cache
def _blobs(table: str, shape: tuple[int, int]) -> Field:
    """The sum of a table's bell-shaped hills: as each is a product of two curves, one matrix product."""
    lat, lon = axes(shape)
    x, y, dx, dy, height = np.array(TABLES[table]).T[..., None]
    rows = height * np.exp(-(((lat - y) / dy) ** 2))
    columns = np.exp(-((((lon - x + 180) % 360 - 180) / dx) ** 2))
    return (rows.T @ columns).astype("f4")


def _climate(day: date, shape: tuple[int, int]) -> Field:
    """The ocean without eddies and weather: colder away from a thermal equator that follows the sun."""
    lat, _ = axes(shape)
    summer = np.cos(2 * np.pi * (day.timetuple().tm_yday - 225) / 365.25)  # 1 in mid-August, -1 in mid-February
    distance = np.abs(lat - 1 - 5 * summer)
    zonal = -2.3 + 31 * np.exp(-((distance / 44) ** 2.8))
    return zonal.astype("f4")[:, None] + _blobs("climate", shape)


def _motion(day: date, shape: tuple[int, int]) -> tuple[Field, Field, Field]:
    """Where each cell's water came from (degrees north, degrees east), and the weather (degrees Celsius)."""
    lat, lon = axes(shape)
    age = (day - date(1978, 1, 1)).days
    north, east, weather = _waves(age, shape)
    strength = 0.9 * _blobs("eddies", shape)
    # Instability waves ripple the cold tongue's northern edge: 10 degrees long, 22 days to pass.
    ripple = 1.6 * np.exp(-(((lat - 2) / 3) ** 2))[:, None] * np.exp(-(((lon - 235) / 32) ** 2))
    north = strength * north + ripple * np.sin(2 * np.pi * (lon / 10.5 + age / 22)) + 0.3 * weather
    east = strength * east
    # The second step, from where the first arrived, is what rolls fronts up.
    there = _nearest(shape, north, east)
    return north + north.ravel()[there], east + east.ravel()[there], 0.5 * weather


def _waves(age: int, shape: tuple[int, int]) -> list[Field]:
    """Displacement north and east by eddies of about 6 degrees, and weather of about 45: each of unit spread."""
    north, east, amplitudes, drift = _random_waves()
    # The wave numbers of a small grid are fewer; those it has are the same waves.
    keep = (np.abs(north) < shape[0] // 2) & (east < shape[1] // 2)
    moved = amplitudes * np.exp(1j * drift * age)
    size = np.hypot(2 * north, 1.4 * east) + 1e-3  # in waves around the earth; round where meridians are 0.7 apart
    eddies = size**-0.5 * (size / 66) ** 2 / (1 + (size / 66) ** 6)
    weather = size**-0.5 * (size / 8) / (1 + (size / 8) ** 4)
    fields = []
    # The displacement has no divergence: both parts come from one stream function.
    for spectrum, spread in ((-1.4j * eddies * east / size, 5.0), (2j * eddies * north / size, 5.0), (weather, 3.1)):
        table = np.zeros((shape[0], shape[1] // 2 + 1), "c8")
        table[north[keep], east[keep]] = (moved * spectrum / spread)[keep]
        fields.append(np.fft.irfft2(table, shape, norm="forward").astype("f4"))
    return fields


@cache
def _random_waves() -> tuple[npt.NDArray[np.int64], ...]:
    """Wave numbers (north, east), complex amplitudes, and change of phase in a day; the same in every run."""
    random = np.random.default_rng(1978)
    north, east = np.meshgrid(np.arange(-100, 101), np.arange(121), indexing="ij")
    amplitudes = random.standard_normal(north.shape) + 1j * random.standard_normal(north.shape)
    size = np.hypot(2 * north, east)
    westward = -east * np.radians(0.12) / (1 + (size / 60) ** 2)  # the longer the faster, as Rossby waves
    return north, east, amplitudes, westward + random.normal(0, 2 * np.pi / 90, size.shape)


def _nearest(shape: tuple[int, int], north: Field, east: Field) -> npt.NDArray[np.int64]:
    """Flat index of the cell that lies so many degrees away from each cell."""
    height, width = shape
    row = np.rint(np.arange(height)[:, None] + north * (height / 180)).astype("i8")
    column = np.rint(np.arange(width) + east * (width / 360)).astype("i8")
    return row.clip(0, height - 1) * width + column % width


def _displaced(field: Field, north: Field, east: Field) -> Field:
    """The field at so many degrees away from each cell, interpolated."""
    height, width = field.shape
    row = (np.arange(height, dtype="f4")[:, None] + north * (height / 180)).clip(0, height - 1.01)
    column = np.arange(width, dtype="f4") + east * (width / 360)
    i, j = np.floor(row).astype("i4"), np.floor(column).astype("i4")
    up, right = (row - i).astype("f4"), (column - j).astype("f4")
    west, next_ = j % width, (j + 1) % width
    south = field[i, west] * (1 - right) + field[i, next_] * right
    return south * (1 - up) + (field[i + 1, west] * (1 - right) + field[i + 1, next_] * right) * up
