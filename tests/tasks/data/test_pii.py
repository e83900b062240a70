"""Personal data, by a table. Oracle: what a reader of the line would call a person's number or address."""

import pytest

from tasks.data.filters import pii
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.pii import find_pii

TABLE = [
    # text, what is found
    ("Write to jo@notexample.com soon", ["jo@notexample.com"]),
    ("Write to jo@myexample.org.", ["jo@myexample.org"]),
    ("Write to jo@contest", []),
    ("Write to jo@fastest.de", ["jo@fastest.de"]),
    ("Write to jo@example.com", []),
    ("Write to jo@mail.example.com", []),
    ("Write to jo@host.test", []),
    ("邮箱jo.li@mail.cn请联系", ["jo.li@mail.cn"]),
    ("電話+81 3-1234-5678です", ["+81 3-1234-5678"]),
    ("电话+86 138 1234 5678。", ["+86 138 1234 5678"]),
    ("전화(212) 736-5000로", ["(212) 736-5000"]),
    ("地址8.8.4.4端口", ["8.8.4.4"]),
    ("Call +33 1 42 68 53 00 today", ["+33 1 42 68 53 00"]),
    ("Call +33142685300", ["+33142685300"]),
    ("Call +33 (0)1 42 68 53 00", ["+33 (0)1 42 68 53 00"]),
    ("Call +49 30 901820, or come", ["+49 30 901820"]),
    ("Call +44 20 7219 4272.", ["+44 20 7219 4272"]),
    ("Call +1 212-736-5000 now", ["+1 212-736-5000"]),
    ("Call 212-736-5000 now", ["212-736-5000"]),
    ("Version 10.0.19.41 is out", []),
    ("version 8.1.19.41 is out", []),
    ("Driver v. 27.20.100.81", []),
    ("v9.4.146.24", []),
    ("see section 4.2.1.3 of", []),
    ("package>=34.2.1.3", []),
    ("update to 31.0.101.44 first", []),
    ("from 81.2.69.142 at noon", ["81.2.69.142"]),
    ("host 10.0.0.1", []),
    ("id: 212-736-5000", []),
    ("ISBN 978-316-1484", []),
    ("order no. 415-555-2671", []),
    ("invoice #415 555 2671", []),
    ("x = y +33142685300", []),
    ("return x +33142685300", []),
    ("f(a)+33142685300", []),
    ("550e8400-e29b-41d4-a716-446655440000", []),
    ("+1 2 3 4 5 6 7 8", []),
    ("from +10 to +20 degrees", []),
    ("sha 9f86d081884c7d659a2feaa0c55ad015", []),
    ("1234567890", []),
    ("2024-01-15 10:20:30", []),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_what_is_found(text, expected):
    found = list(find_pii(TextBatch([text]))[0])
    assert [text[start:end] for start, end, _ in found] == expected


def test_texts_of_a_batch_do_not_touch():
    texts = [text for text, _ in TABLE]
    found = [list(spans) for spans in find_pii(TextBatch(texts))]
    assert [[text[a:b] for a, b, _ in row] for text, row in zip(texts, found, strict=True)] == [e for _, e in TABLE]


def test_a_text_of_numbers_does_not_take_hours(monkeypatch):
    """Beyond so many numbers of one text, what looks like one is one; other texts of the batch are asked about as ever."""
    monkeypatch.setattr(pii, "MOST_ASKED", 2)
    no_number, number = "+999 123 456 789 now ", "+1 650 253 0000 now "
    many, few = find_pii(TextBatch([no_number * 5, no_number + number]))
    assert len(many) == 3
    assert len(few) == 1
