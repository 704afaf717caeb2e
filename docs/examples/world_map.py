"""A map of the world's oceans in the Equal Earth projection, with nothing but numpy and matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

Array = npt.NDArray[np.float64]
MIDDLE = 205  # longitude in the middle: the Pacific whole, the cut through Africa and Europe
LAND, INK = "#e8e4da", "#26323f"
# Ice is white, cold water blue, temperate water green, the warm pool red.
COLDEST, WARMEST = -1.8, 31.0
COLOURS = ["#f7fafc", "#a9cfe6", "#4e97cb", "#1f5fa8", "#1b4a8a", "#19708f", "#3ea797", "#a3d18c"]
COLOURS += ["#f3e37c", "#f7b453", "#ec7f41", "#d24a35", "#a3212f", "#6b0f26"]
# The polynomial of the projection: Savric, Patterson, Jenny, "The Equal Earth map projection", 2018.
A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


def draw(field: xr.DataArray, path: Path, title: str, note: str) -> None:
    """Draw degrees Celsius on a regular grid of the whole world, from 90 S and from Greenwich, into a PNG file."""
    figure = Figure(figsize=(12, 6.75), facecolor="white")
    image = _draw_world(figure.add_axes((0.015, 0.125, 0.97, 0.78)), field)
    figure.text(0.5, 0.948, title, fontsize=19, fontweight="bold", color=INK, ha="center", va="center")
    figure.text(0.985, 0.03, note, fontsize=9, color=INK, alpha=0.65, ha="right", va="center")
    bar = figure.colorbar(image, cax=figure.add_axes((0.3, 0.075, 0.4, 0.02)), orientation="horizontal")
    bar.set_ticks(list(range(0, 31, 5)), labels=[f"{t} °C" for t in range(0, 31, 5)])
    bar.ax.tick_params(length=0, labelsize=9.5, labelcolor=INK, pad=5)
    bar.outline.set_visible(False)  # type: ignore[operator]
    figure.savefig(path, dpi=150)


def _draw_world(axes: Axes, field: xr.DataArray) -> AxesImage:
    right, top = float(_project(0, 180)[0]), float(_project(90, 0)[1])
    x = np.linspace(-right, right, 2400)
    y = np.linspace(-top, top, 1168)[:, None] * (1 - 1e-9)
    lat, lon = _unproject(x, y)
    outside = np.abs(lon) > 180
    rows = ((lat + 90) / 180 * field.lat.size).astype(int)
    columns = ((lon + MIDDLE) % 360 / 360 * field.lon.size).astype(int)
    pixels = np.where(outside, np.nan, field.transpose("lat", "lon").to_numpy()[rows, columns])

    extent = (-right, right, -top, top)
    land = np.isnan(pixels) & ~outside
    axes.contourf(land, [0.5, 1.5], colors=[LAND], extent=extent)
    ocean = LinearSegmentedColormap.from_list("ocean", COLOURS)
    image = axes.imshow(pixels, extent=extent, origin="lower", cmap=ocean, vmin=COLDEST, vmax=WARMEST)
    axes.contour(land, [0.5], colors=[INK], linewidths=0.35, alpha=0.5, extent=extent)
    _draw_grid(axes)
    axes.set(xlim=(-right * 1.01, right * 1.01), ylim=(-top * 1.01, top * 1.01))
    axes.set_axis_off()
    return image


def _draw_grid(axes: Axes) -> None:
    line = np.linspace(-1, 1, 181)
    for lat in range(-60, 61, 30):
        axes.plot(*_project(lat, 180 * line), color="white", lw=0.6, alpha=0.28)
    for lon in range(-150, 151, 30):
        axes.plot(*_project(90 * line, lon), color="white", lw=0.6, alpha=0.28)
    for side in (-180, 180):
        axes.plot(*_project(90 * line, side), color=INK, lw=0.9, alpha=0.55)
    for pole in (-90, 90):
        axes.plot(*_project(pole, 180 * line), color=INK, lw=0.9, alpha=0.55)


def _project(lat: Array | float, lon: Array | float) -> tuple[Array, Array]:
    """Degrees, the longitude from the map's middle, to the map's x and y."""
    t = np.arcsin(np.sqrt(3) / 2 * np.sin(np.radians(lat)))
    x = np.radians(lon) * np.cos(t) / _stretch(t)
    return np.broadcast_arrays(x, A1 * t + A2 * t**3 + A3 * t**7 + A4 * t**9)


def _unproject(x: Array, y: Array) -> tuple[Array, Array]:
    """The inverse of `_project`; outside the map the longitude is beyond 180."""
    table = np.linspace(-90, 90, 7201)
    lat = np.interp(y, _project(table, 0)[1], table)
    t = np.arcsin(np.sqrt(3) / 2 * np.sin(np.radians(lat)))
    return lat, np.degrees(x * _stretch(t) / np.cos(t))


def _stretch(t: Array) -> Array:
    return np.sqrt(3) / 2 * (A1 + 3 * A2 * t**2 + 7 * A3 * t**6 + 9 * A4 * t**8)
