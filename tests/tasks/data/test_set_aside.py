"""The held-out share and the rest. Oracles: the documents' ids, and the union and intersection of both parts."""

import pytest

from tasks.data.set_aside import SetAsideConfig, set_aside


def ids(bench, documents) -> set[str]:
    return {row["id"] for row in bench.rows(documents, "documents/")}


def test_both_parts_together_are_the_source_and_share_nothing(bench):
    documents = bench.documents([f"document number {n}" for n in range(400)])
    parts = [
        ids(bench, bench.run(set_aside, documents, SetAsideConfig(source="web", part=part)))
        for part in ("held_out", "rest")
    ]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == {str(n) for n in range(400)}
    # A tenth of 400, within four standard deviations.
    assert 16 <= len(parts[0]) <= 64


def test_a_document_is_in_the_same_part_after_others_are_filtered_out(bench, new_bench):
    texts = [f"document number {n}" for n in range(200)]
    config = SetAsideConfig(source="web", part="held_out", share=0.3)
    every = ids(bench, bench.run(set_aside, bench.documents(texts), config))
    fewer = new_bench("fewer")
    some = ids(fewer, fewer.run(set_aside, fewer.documents(texts[:120]), config))
    assert some == {id for id in every if int(id) < 120}


def test_a_source_that_is_not_there_and_a_part_without_documents_are_refused(bench):
    documents = bench.documents(["one document"])
    with pytest.raises(ValueError, match=r"source 'code' is not in .* choose one of web"):
        bench.run(set_aside, documents, SetAsideConfig(source="code", part="rest"))
    emptied = (
        "held_out"
        if len(ids(bench, bench.run(set_aside, documents, SetAsideConfig(source="web", part="rest"))))
        else "rest"
    )
    with pytest.raises(ValueError, match=r"is empty: share=0\.1 of its 1 documents"):
        bench.run(set_aside, documents, SetAsideConfig(source="web", part=emptied))
