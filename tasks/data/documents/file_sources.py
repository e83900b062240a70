"""Which files of a documents artifact hold which sources, so that a stage which takes one source reads only its files.

Deduplication and decontamination have all sources in one artifact. Encoding takes them out again, source by source: together
these stages read each file once, however many sources there are.
"""

from collections.abc import Iterable, Mapping

from infra.workspace import Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import document_files

NAME = "sources.json"


def write_file_sources(ws: Workspace, files: Iterable[tuple[str, Mapping[str, int]]]) -> None:
    """Note how many documents of each source every document file has; files without any are left out."""
    ws.write_json(NAME, {name: dict(sources) for name, sources in files if sources})


def files_of_source(ws: Workspace, documents: Documents, source: str) -> list[str]:
    """Names of the document files that hold a source, in order; all of them where the artifact does not say."""
    names = document_files(ws, documents)
    # A single source is in every file; older artifacts do not say which files hold which.
    if len(documents.sources) == 1 or NAME not in ws.record(documents).files:
        return names
    known = ws.read_json(documents, NAME)
    return [name for name in names if source in known[name]]


def file_bytes(ws: Workspace, documents: Documents, names: Iterable[str]) -> list[int]:
    """Bytes of document files, for the progress of a stage that reads them."""
    files = ws.record(documents).files
    return [files[name].size for name in names]
