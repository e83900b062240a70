"""CSV and TSV files with a header line, as rows of texts. Some benchmarks are released so (PopQA, GPQA)."""

import csv
import io
from collections.abc import Iterator

from tasks.data.sources.files.listing import BrokenFileError, SourceFile


def separated_rows(file: SourceFile, limit: int) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(number, row) of each row after the header; None for a row with more or fewer fields than the header has.

    Raises BrokenFileError for a file that is no UTF-8, whose quotes do not end, or with a field beyond `limit` characters.
    """
    with file.open() as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, dialect="excel-tab" if file.name.lower().endswith(".tsv") else "excel", strict=True)
        # The module's limit is shared by the process, so it is put back afterwards.
        previous = csv.field_size_limit(limit)
        number = 0
        try:
            header = next(rows, [])
            for number, fields in enumerate(rows, 1):
                if fields:
                    yield number, dict(zip(header, fields, strict=True)) if len(fields) == len(header) else None
        except (csv.Error, UnicodeDecodeError) as error:
            raise BrokenFileError(file.url, f"it is no table of separated values, {error}", number + 1) from error
        finally:
            csv.field_size_limit(previous)
            # Detached, or closing the text would close the stream of whoever opened it.
            text.detach()
