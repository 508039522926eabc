"""Continuum imaging of DSA-110 drift scans: everything that can be called and tested without
Snakemake."""

import os
from pathlib import Path

# numba keeps what it compiled in the user's cache, not in a clone that may be read-only; it looks
# here when it is imported.
_CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(_CACHE) / "contimg" / "numba"))
