"""Daily files with the structure of NOAA's OISST v2.1, made on the spot: the examples need no network.

Names, dimensions, packing, chunks, filters and attributes are those of ``oisst-avhrr-v02r01.YYYYMMDD.nc``, one day a
file. The values are invented (see `ocean`), the same in every run.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import netCDF4
import numpy as np
from ocean import GRID, Field, axes, ocean

FILL = -999
EPOCH = "days since 1978-01-01 12:00:00"
PACKED = {  # name: long name, units, valid minimum and maximum (packed, in hundredths)
    "sst": ("Daily sea surface temperature", "Celsius", -300, 4500),
    "anom": ("Daily sea surface temperature anomalies", "Celsius", -1200, 1200),
    "err": ("Estimated error standard deviation of analysed_sst", "Celsius", 0, 1000),
    "ice": ("Sea ice concentration", "%", 0, 100),
}


def write_days(folder: Path, first: date, count: int, shape: tuple[int, int] = GRID) -> list[Path]:
    """Write the files of ``count`` consecutive days into ``folder``; see `write_day`."""
    folder.mkdir(parents=True, exist_ok=True)
    days = [first + timedelta(days=n) for n in range(count)]
    return [write_day(folder / f"oisst-avhrr-v02r01.{day:%Y%m%d}.nc", day, shape) for day in days]


def write_day(path: Path, day: date, shape: tuple[int, int] = GRID) -> Path:
    """Write one day as a netCDF4 file of four packed variables, each a single chunk of 1 x 1 x lat x lon.

    Parameters
    ----------
    shape
        Number of cells in latitude and longitude; a small grid makes small files for tests.
    """
    with netCDF4.Dataset(path, "w") as file:
        file.Conventions = "CF-1.6, ACDD-1.3"
        file.title = "Invented sea surface temperature in the layout of NOAA 1/4 degree Daily OISST v2.1"
        file.time_coverage_start = f"{day}T00:00:00Z"
        file.time_coverage_end = f"{day}T23:59:59Z"
        _write_coordinates(file, day, shape)
        for name, values in zip(PACKED, ocean(day, shape), strict=True):
            _write_packed(file, name, values)
    return path


def _write_coordinates(file: netCDF4.Dataset, day: date, shape: tuple[int, int]) -> None:
    lat, lon = axes(shape)
    noon = netCDF4.date2num(datetime(day.year, day.month, day.day, 12), EPOCH)  # noqa: DTZ001 (CF times bear no zone)
    for name, values, attributes in (
        ("time", np.array([noon]), {"long_name": "Center time of the data", "units": EPOCH}),
        ("zlev", np.zeros(1), {"long_name": "Sea surface height", "units": "meters", "positive": "down"}),
        ("lat", lat, {"long_name": "Latitude", "units": "degrees_north"}),
        ("lon", lon, {"long_name": "Longitude", "units": "degrees_east"}),
    ):
        file.createDimension(name, None if name == "time" else values.size)
        chunks = (1,) if name == "time" else None
        variable = file.createVariable(name, "f4", (name,), chunksizes=chunks)
        variable.setncatts(attributes)
        variable[:] = values


def _write_packed(file: netCDF4.Dataset, name: str, values: Field) -> None:
    long_name, units, lowest, highest = PACKED[name]
    variable = file.createVariable(
        name,
        "i2",
        ("time", "zlev", "lat", "lon"),
        chunksizes=(1, 1, *values.shape),
        compression="zlib",
        complevel=4,
        shuffle=True,
        fill_value=FILL,
    )
    variable.setncatts({"long_name": long_name, "units": units})
    variable.setncatts({"add_offset": np.float32(0), "scale_factor": np.float32(0.01)})
    variable.setncatts({"valid_min": np.int16(lowest), "valid_max": np.int16(highest)})
    variable.set_auto_maskandscale(False)  # the numbers below are packed already
    packed = np.clip(np.round(values * 100), lowest, highest)
    variable[0, 0] = np.where(np.isnan(packed), FILL, packed).astype("i2")
