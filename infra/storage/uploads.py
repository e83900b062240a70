"""Uploads in parts that a killed process left: S3 keeps and bills their parts until somebody ends them.

No listing of objects shows them. A large object appears when its last part is in and the upload is completed, so what is left is
never part of an artifact.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Upload:
    """One upload that is not completed."""

    bucket: str
    key: str
    id: str
    begun: datetime
    bytes: int
    """Of the parts that are there."""

    def idle_seconds(self) -> float:
        """Since it began; S3 says of no part that it is still coming."""
        return (datetime.now(UTC) - self.begun).total_seconds()


def unfinished_uploads(fs: Any, root: str) -> list[Upload]:
    """Uploads below `BUCKET/PREFIX` of a filesystem of s3fs."""
    bucket, _, prefix = root.partition("/")
    found: list[Upload] = []
    below = f"{prefix}/" if prefix else ""
    asked: dict[str, str] = {"Bucket": bucket, "Prefix": below}
    while True:
        page = fs.call_s3("list_multipart_uploads", **asked)
        for item in page.get("Uploads", []):
            if not item["Key"].startswith(below):
                continue  # Ceph 16 lists those of the whole bucket
            parts = fs.call_s3("list_parts", Bucket=bucket, Key=item["Key"], UploadId=item["UploadId"])
            size = sum(part["Size"] for part in parts.get("Parts", []))
            found.append(Upload(bucket, item["Key"], item["UploadId"], item["Initiated"], size))
        if not page.get("IsTruncated"):
            return found
        asked |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def end_upload(fs: Any, upload: Upload) -> None:
    """Remove the parts of an upload; one that was completed or ended meanwhile is gone already."""
    try:
        fs.call_s3("abort_multipart_upload", Bucket=upload.bucket, Key=upload.key, UploadId=upload.id)
    except FileNotFoundError:
        return
