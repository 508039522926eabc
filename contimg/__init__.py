"""Continuum imaging of DSA-110 drift scans: everything that can be called and tested without
Snakemake."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute()
CACHE /= "contimg"
# numba keeps what it compiled in the user's cache, not in a clone that others may use; it looks
# here when it is imported. Where that cannot be written to, it finds a place by itself.
if os.access(next(one for one in (CACHE, *CACHE.parents) if one.exists()), os.W_OK):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(CACHE / "numba"))
