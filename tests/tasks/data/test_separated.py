"""CSV and TSV rows. Oracle: Python's own writer."""

import csv
from pathlib import Path

import pytest

from tasks.data.sources.files.listing import BrokenFileError
from tasks.data.sources.rows import RowSource, read_rows

ROWS = [{"a": "one, two", "b": 'a "word"\nover two lines'}, {"a": "é", "b": ""}]


@pytest.mark.parametrize(("name", "dialect"), [("x.csv", "excel"), ("x.tsv", "excel-tab")])
def test_rows_come_back_as_they_were_written(tmp_path: Path, name: str, dialect: str) -> None:
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"], dialect=dialect)
        writer.writeheader()
        writer.writerows(ROWS)
    source = RowSource(paths=(str(tmp_path / name),)).pinned()
    assert [row for _, row in read_rows(source)] == ROWS


def test_a_row_with_other_fields_is_unusable_and_a_broken_file_ends_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a,b\n1,2,3\n4,5\n")
    assert [row for _, row in read_rows(RowSource(paths=(str(file),)).pinned())] == [None, {"a": "4", "b": "5"}]
    file.write_bytes(b"a,b\n1,2\n\xff\xfe,5\n")
    with pytest.raises(BrokenFileError, match=r"x\.csv breaks at row"):
        list(read_rows(RowSource(paths=(str(file),)).pinned()))
    file.write_text('a,b\n1,2\n"3,4\n')
    with pytest.raises(BrokenFileError, match="no table of separated values"):
        list(read_rows(RowSource(paths=(str(file),)).pinned()))
