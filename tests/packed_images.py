"""Images inside of other files, as tables and archives hold them."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(colour):
    Image.new("RGB", (4, 4), colour).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def write_parquet(path, count, names=None, label=lambda i: i % 2, packed="struct"):
    """Write images of the colours (0, 0, 0), (1, 0, 0), ... as Parquet files of the Hub have."""
    images = [png((i, 0, 0)) for i in range(count)]
    if packed == "struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": image, "path": None} for image in images], kind)
    else:
        column = pa.array(images, pa.binary())
    table = pa.table({"img": column, "label": pa.array([label(i) for i in range(count)])})
    if names:
        feature = {"label": {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
        info = json.dumps({"info": {"features": feature}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def write_tar(path, members):
    """Write pairs of name and content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
