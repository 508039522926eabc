"""Tables in Parquet, through DuckDB: written whole, read by query; with words of their own in the
file's metadata (units, provenance).

DuckDB rather than pyarrow: it writes and queries alike, only rows and columns that a question asks
for, over any number of files, in SQL. Nothing is locked.
"""

import errno
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import duckdb
import pandas as pd

from contimg.errors import ContimgError
from contimg.store.files import replacing

_KEY = "contimg"
_FEW_BYTES = 1 << 20
_ROWS_A_GROUP = 20_000  # a light curve reads one group of rows a file


@functools.cache
def _database(threads: int, process: int) -> duckdb.DuckDBPyConnection:
    """In memory, one a process: to begin one takes 10 ms and more. With one thread a table is
    always written alike."""
    connection = duckdb.connect()
    connection.execute(f"SET threads = {threads}")
    return connection


def _cursor(threads: int = 2) -> duckdb.DuckDBPyConnection:
    """Of this thread's own."""
    return _database(threads, os.getpid()).cursor()


def write_table(path: Path, table: pd.DataFrame, about: Mapping) -> None:
    """A table as a Parquet file, in its own order: the same rows make the same bytes."""
    words = json.dumps(dict(about), sort_keys=True).replace("'", "''")
    with replacing(path) as partial, _cursor(1) as connection:
        connection.register("rows", table)
        try:
            connection.execute(
                f"COPY (SELECT * FROM rows) TO '{_quoted(partial)}' (FORMAT parquet, COMPRESSION "
                f"zstd, ROW_GROUP_SIZE {_ROWS_A_GROUP}, KV_METADATA {{{_KEY}: '{words}'}})"
            )
        except duckdb.Error as error:
            if shutil.disk_usage(path.parent).free < _FEW_BYTES:  # DuckDB says so in words only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
            raise ContimgError(f"{path}: cannot be written ({error})") from None


def read_table(path: Path) -> pd.DataFrame:
    """All of a file's rows; raises ContimgError for one that cannot be read."""
    return query("SELECT * FROM {files}", [path])


def read_about(path: Path) -> dict:
    """What its writer said of a file."""
    asked = f"SELECT value FROM parquet_kv_metadata('{_quoted(path)}') WHERE key = '{_KEY}'"
    try:
        with _cursor(1) as connection:
            (found,) = connection.execute(asked).fetchall()
        return json.loads(found[0])
    except (duckdb.Error, ValueError) as error:
        raise ContimgError(f"{path}: no table of ours ({error}). Make it again.") from None


def query(
    sql: str,
    files: Sequence[Path],
    values: Sequence = (),
    tables: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> pd.DataFrame:
    """Rows that a query finds in files, which stand in it as {files}; `values` for its ?, `tables`
    by their names."""
    names = ", ".join(f"'{_quoted(path)}'" for path in files)
    asked = sql.replace("{files}", f"read_parquet([{names}], union_by_name = true)")
    try:
        with _cursor() as connection:
            for name, table in tables.items():
                connection.register(name, table)
            return connection.execute(asked, list(values)).df()
    except duckdb.Error as error:
        what = files[0] if len(files) == 1 else f"{len(files)} files from {files[0]} on"
        raise ContimgError(f"{what}: cannot be read ({error})") from None


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
