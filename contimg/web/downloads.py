"""Files as answers: with ETag and ranges, by their names, several as a tar."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from contimg.errors import ContimgError

_TAR_BLOCK = 1 << 20


def served(request: Request, path: Path, media_type: str, download: bool = False) -> Response:
    """A file with ETag and ranges."""
    kind = "attachment" if download else "inline"
    response = FileResponse(
        path,
        media_type=media_type,
        filename=path.name,
        content_disposition_type=kind,
        stat_result=path.stat(),
    )
    response.headers["cache-control"] = "no-cache"
    # Starlette writes a name with colons in a form that curl and wget do not know.
    response.headers["content-disposition"] = f'{kind}; filename="{path.name}"'
    if response.headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": response.headers["etag"]})
    return response


def tar_blocks(files: Sequence[Path]) -> Iterator[bytes]:
    """A tar file of these, by their names, as it is read from disk."""
    for path in files:
        with path.open("rb") as file:
            about = tarfile.TarInfo(path.name)
            found = os.fstat(file.fileno())
            about.size, about.mtime = found.st_size, int(found.st_mtime)
            yield about.tobuf()
            left = about.size
            while left:
                if not (block := file.read(min(left, _TAR_BLOCK))):
                    raise ContimgError(f"{path} was cut off while it was read")
                left -= len(block)
                yield block
            yield bytes(-about.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
