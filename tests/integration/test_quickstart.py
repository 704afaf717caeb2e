"""The quickstart does what it says, on a coarse grid; its files have the structure they claim."""

from datetime import date
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import quickstart
import xarray as xr
from ocean import ocean
from oisst import write_day

GRID = (36, 72)


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It compares with the files itself, and exits if they differ."""
    quickstart.run(tmp_path / "quickstart data", GRID)
    assert (tmp_path / "quickstart data" / "sst.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "124 references" in said
    assert "August 2024" in said


def test_files_have_the_structure_of_oisst(tmp_path: Path) -> None:
    path = write_day(tmp_path / "day.nc", date(2024, 8, 1), GRID)
    with netCDF4.Dataset(path) as file:
        assert file.dimensions["time"].isunlimited()
        for name in ("sst", "anom", "err", "ice"):
            variable = file[name]
            assert (variable.dtype, variable.dimensions) == ("int16", ("time", "zlev", "lat", "lon"))
            assert variable.chunking() == [1, 1, *GRID]
            assert {k: v for k, v in variable.filters().items() if v} == {"zlib": True, "shuffle": True, "complevel": 4}
            assert (variable._FillValue, variable.scale_factor, variable.add_offset) == (-999, 0.01, 0)
    with xr.open_dataset(path) as dataset:
        assert dataset.time.dt.strftime("%Y-%m-%d %H").item() == "2024-08-01 12"


def test_ocean_is_plausible() -> None:
    """Warm at the equator, freezing at the poles, land where land is, and a neighbouring day much alike."""
    sst, _, _, ice = ocean(date(2024, 8, 1), GRID)
    assert 27 < np.nanmean(sst[17:19]) < 30
    assert np.nanmin(sst) == np.float32(-1.8)
    assert np.isnan(sst[27, 20])  # 47.5 N 102.5 E, Mongolia
    assert np.nanmax(ice[-2:]) == 1
    assert np.isnan(ice[12:24]).all()
    tomorrow = ocean(date(2024, 8, 2), GRID)[0]
    assert 0 < np.nanmax(np.abs(tomorrow - sst)) < 1.5
