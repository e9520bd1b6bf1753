"""DuckDB as the reader of tables. It keeps to a bound of memory, and what is above it waits on disk.

Every column is read as text, so that ids keep their leading zeros. Decision 13 says why DuckDB.
"""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from model_export.data.dataset import DataError
from model_export.data.event_log import problems
from model_export.data.event_log.files import TableFile
from model_export.data.event_log.lines import as_json, damaged, decoded_lines, unpacked
from model_export.data.event_log.problems import errors_of, place_of
from service.core.json_lines import MAX_LINE_BYTES, shown

MAX_THREADS = 4  # each holds buffers of 16 of the longest lines, so many cores would not fit the limit
MAX_CELLS_BYTES = 2 * 2**20  # of a line of text; lines of JSON may be longer
FETCHED_ROWS = 10_000
NOTHING = ("", "nan", "NaN", "NULL", "null", "None", "<NA>", r"\N")  # what tables write for no value


def name_of(column: str) -> str:
    """A column in SQL."""
    return '"' + column.replace('"', '""') + '"'


def text_of(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def present(column: str) -> str:
    """SQL for a column's value, or NULL where the table writes that there is none."""
    listed = ", ".join(text_of(value) for value in NOTHING)
    return f"CASE WHEN trim({name_of(column)}) IN ({listed}) THEN NULL ELSE {name_of(column)} END"


class Engine:
    """A database in a temporary folder, which goes away at the end."""

    def __init__(self) -> None:
        if find_spec("duckdb") is None:
            raise DataError("Tables are read by DuckDB, which is not installed. Run: pip install duckdb")
        self._folder = tempfile.TemporaryDirectory(prefix="glyphrec-")
        self._converted: dict[Path, Path] = {}

    def __enter__(self) -> "Engine":
        import duckdb  # here, because most commands do without it

        folder = Path(self._folder.name)
        self._db = duckdb.connect(
            folder / "events.duckdb",
            config={
                "memory_limit": problems.MEMORY_LIMIT,
                "threads": min(MAX_THREADS, os.cpu_count() or 1),
                "temp_directory": str(folder / "spilled"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._db.execute("SET TimeZone = 'UTC'")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def run(self, sql: str, table: list[TableFile]) -> None:
        """Run a statement about the files of `table`. Raises DataError with the file and the line."""
        with errors_of(table):
            self._db.execute(sql)

    def rows(self, sql: str, table: list[TableFile]) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with errors_of(table):  # also around the fetch, in which the engine goes on reading
            return self._db.execute(sql).fetchall()

    def stream(self, sql: str, table: list[TableFile]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, some thousands at a time. No other query may run meanwhile."""
        with errors_of(table):
            result = self._db.execute(sql)
            while rows := result.fetchmany(FETCHED_ROWS):
                yield from rows

    def arrays(self, sql: str, table: list[TableFile]) -> dict[str, NDArray[Any]]:
        """The columns of a query."""
        with errors_of(table):
            return self._db.execute(sql).fetchnumpy()

    def opened(self, file: TableFile) -> TableFile:
        """The file with its columns, which in a Parquet file only the engine can read."""
        if file.kind != "parquet":
            return file
        names = self.rows(f"DESCRIBE SELECT * FROM read_parquet({_literal_path(file.path)})", [file])
        return replace(file, columns=tuple(str(row[0]) for row in names))

    def scan(self, file: TableFile) -> str:
        """SQL for the rows of a file, with every column as text."""
        readable, gzipped = self._readable(file)
        path, compression = _literal_path(readable), "gzip" if gzipped else "none"
        if file.kind == "parquet":
            cast_columns = ", ".join(f"{name_of(name)}::VARCHAR AS {name_of(name)}" for name in file.columns)
            return f"(SELECT {cast_columns} FROM read_parquet({path}))"
        if file.kind == "text":
            listed = ", ".join(f"{text_of(name)}: 'VARCHAR'" for name in file.columns)
            return (
                f"read_csv({path}, auto_detect=false, header={file.header}, delim={text_of(file.delimiter)}, "
                f"quote={text_of(file.quote)}, escape={text_of(file.quote)}, columns={{{listed}}}, "
                f"max_line_size={MAX_CELLS_BYTES}, compression='{compression}')"
            )
        outer = [name for name in file.columns if name not in file.inner]
        kinds = dict.fromkeys(outer, "VARCHAR")
        if file.nested is not None:
            kinds[file.nested] = (
                "STRUCT(" + ", ".join(f"{name_of(name)} VARCHAR" for name in file.inner) + ")[]"
            )
        listed = ", ".join(f"{name_of(name)}: {text_of(kind)}" for name, kind in kinds.items())
        read = (
            f"read_json({path}, format='newline_delimited', columns={{{listed}}}, "
            f"maximum_object_size={MAX_LINE_BYTES}, compression='{compression}')"
        )
        if file.nested is None:
            return read
        kept = "".join(f"{name_of(name)}, " for name in outer)
        unpacked = ", ".join(f"_event.{name_of(name)} AS {name_of(name)}" for name in file.inner)
        events = f"(SELECT {kept}unnest({name_of(file.nested)}) AS _event FROM {read})"
        return f"(SELECT {kept}{unpacked} FROM {events})"

    def typed_scan(self, file: TableFile) -> str:
        """SQL for the rows of a Parquet file, with its own types."""
        return f"read_parquet({_literal_path(file.path)})"

    def scan_all(self, table: list[TableFile]) -> str:
        """SQL for the rows of files with the same columns."""
        listed = ", ".join(map(name_of, table[0].columns))
        return "(" + " UNION ALL ".join(f"SELECT {listed} FROM {self.scan(file)}" for file in table) + ")"

    def first_where(self, condition: str, shown_column: str, table: list[TableFile]) -> tuple[str, str]:
        """Where the first row is for which `condition` holds ("PATH: line 7"), and its text in a column."""
        self._db.execute("SET threads = 1")  # the rows keep their order
        for file in table:
            numbered = f"SELECT row_number() OVER () AS n, * FROM {self.scan(file)}"
            found = self.rows(
                f"SELECT n, {name_of(shown_column)} FROM ({numbered}) WHERE {condition} ORDER BY n LIMIT 1",
                [file],
            )
            if found:
                return f"{file.path}: {place_of(file, found[0][0])}", shown(found[0][1])
        raise AssertionError("no row has the problem that was counted")

    def _readable(self, file: TableFile) -> tuple[Path, bool]:
        """A path that the engine can read, and whether it is gzipped."""
        if file.kind == "parquet" or (file.encoding in ("utf-8", "utf-8-sig") and not file.literals):
            return file.path, file.gzipped
        if file.path in self._converted:
            return self._converted[file.path], False
        converted = Path(self._folder.name) / f"converted-{len(self._converted)}"
        try:
            with unpacked(file) as source, converted.open("w", encoding="utf-8", newline="") as target:
                for number, line in decoded_lines(file, source):
                    target.write(as_json(file, number, line) if file.literals else line)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise damaged(file) from None
        except OSError as error:
            reason = error.strerror or error
            raise DataError(
                f"{file.path}: cannot be converted in {converted.parent} ({reason}). Set TMPDIR to another."
            ) from None
        self._converted[file.path] = converted
        return converted, False


def _literal_path(path: Path) -> str:
    """The path in SQL. Signs of a pattern stand for themselves."""
    return text_of("".join(f"[{sign}]" if sign in "*?[" else sign for sign in str(path)))
