"""CASA, set up to work offline and quietly. Imported only by the stages that run it.

casatools carries its own SQLite and swaps the process's library: no process that opens our
databases imports this.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from contimg.errors import ContimgError

log = logging.getLogger(__name__)
_SITE = """\
measurespath = {data!r}
datapath = [{data!r}]
measures_auto_update = False
data_auto_update = False
logfile = {logfile!r}
nologger = False
"""


def tasks(logfile: Path | None = None):
    """The `casatasks` module. `logfile` takes CASA's own log, which would otherwise fall into the
    working directory.

    python-casacore ships the measures data (geodetic, ephemerides) that `import casatools` asks
    for.
    """
    if "casatools" not in sys.modules:
        package = find_spec("casacore")
        if package is None or not package.submodule_search_locations:
            raise ContimgError(
                "python-casacore is not installed: CASA has no measures data. Run `make setup`."
            )
        data = Path(package.submodule_search_locations[0]) / "data"
        site = tempfile.mkdtemp(prefix="contimg-casa-")
        atexit.register(shutil.rmtree, site, ignore_errors=True)
        config = Path(site) / "casasiteconfig.py"
        config.write_text(_SITE.format(data=str(data), logfile=str(logfile or os.devnull)))
        os.environ["CASASITECONFIG"] = str(config)
    import casatasks  # here, after the environment is set

    if logfile is not None:
        casatasks.casalog.setlogfile(str(logfile))
    casatasks.casalog.showconsole(False)
    # CASA 6.7.0 logs SEVERE lines about casarundata at import; the measures data are there
    # nevertheless.
    return casatasks


def tool(name: str):
    """A casatools tool object, for example ``tool("agentflagger")``."""
    tasks()
    import casatools

    return getattr(casatools, name)()
