"""Rows in Parquet files."""

from __future__ import annotations

import filecmp
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consecution.compressions import SUFFIXES
from consecution.errors import MissingExtraError, UsageError
from consecution.sinks.arrow_types import REFUSALS, MisfitError, array_of, forbidden_none
from consecution.sinks.file import FileSink
from consecution.sinks.rows import Shape, check_names, shape_of

ROW_GROUP_ROWS = 128 * 1024
MAKING = ".making"


class Parquet(FileSink):
    """Makes Parquet files of the items: dicts, dataclasses, named tuples, or tuples with ``columns``. Needs pyarrow.

    A Parquet file cannot grow: its rows gather in ``NAME.part`` (an Arrow stream, which pyarrow can read), where in
    ``robust`` each row is once; a file that is complete is made from that and then gets its name. So with
    ``{number}`` in the path and ``rotate_items`` or ``rotate_s`` there are files while the stream runs; what is in
    no file yet is safe, but not to be seen as Parquet. One path without a number becomes one file, at the end of the
    stream; it must not be there before, and cannot be added to afterwards.

    The types are those of the first rows to come, or of ``schema``, a pyarrow.Schema, which is surer. What does not
    fit fails alone, and nothing is made to: 2.5 is no whole number, a datetime no date, a time with a zone none
    without, and a nested dict may have no keys that its struct lacks. Only a schema may ask for shorter floats, which
    round, and take whole numbers for times. A type that no Parquet file holds is refused at the start; so is a
    dictionary: give the type of its values, for the file has dictionaries anyway.

    ``compression`` and ``row_group_rows`` are those of the Parquet file. The space that the rows of one file need is
    needed twice while it is made.

    What is promised at which robustness, and rotation: see `consecution.sinks.file.FileSink`; here without
    ``rotate_bytes``.
    """

    in_parts = True

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        schema: Any = None,
        compression: str = "snappy",
        row_group_rows: int = ROW_GROUP_ROWS,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("rotate_bytes") is not None:
            raise UsageError(
                f"Parquet {name!r}: rotate_bytes does not go with Parquet files; use rotate_items or rotate_s"
            )
        super().__init__(name, path, **kwargs)
        if self.path.suffix in SUFFIXES:
            raise UsageError(
                f"{self}: path={str(path)!r}: expected a name without the suffix of a compression; found "
                f"{self.path.suffix}; a Parquet file is compressed inside: compression='gzip'"
            )
        if not isinstance(row_group_rows, int) or isinstance(row_group_rows, bool) or row_group_rows < 1:
            raise UsageError(f"{self}: row_group_rows={row_group_rows!r}: expected a whole number of at least 1")
        self.columns = check_names("columns", columns)
        self.schema = schema
        self.compression = compression
        self.row_group_rows = row_group_rows

    def _forget(self) -> None:
        super()._forget()
        self._shape: Shape | None = None
        self._types: Any = None
        self._arrow: Any = None

    def open(self) -> None:
        arrow = _pyarrow(str(self))
        super().open()
        self._arrow = arrow
        self._check_options()

    def _check_options(self) -> None:
        """UsageError at the start for what would be refused when the file is made, and all rows have come."""
        if self.schema is not None and not isinstance(self.schema, self._arrow.Schema):
            raise UsageError(f"{self}: schema={self.schema!r:.80}: expected a pyarrow.Schema, as pyarrow.schema makes")
        try:
            self._try_to_make(self.schema or self._arrow.schema([("any", "int64")]), self.compression)
        except Exception as error:
            self._check_types(self.schema or [])
            raise UsageError(
                f"{self}: compression={self.compression!r}: expected one that pyarrow has, 'zstd' say, or None; {error}"
            ) from error

    def _check_types(self, types: Any) -> None:
        """UsageError for a column that Arrow has, and a Parquet file, or the stream before it, has not."""
        for field in types:
            try:
                self._try_to_make(self._arrow.schema([field]), None)
            except Exception as error:
                raise UsageError(
                    f"{self}: column {field.name!r}: expected a type that a Parquet file holds, found {field.type} "
                    f"({error}): give schema=pyarrow.schema(...) with another one, that of its values for a dictionary"
                ) from error

    def _try_to_make(self, types: Any, compression: Any) -> None:
        """Raises where no file of rows of these types can be made: a part without rows becomes one in memory."""
        parquet = importlib.import_module("pyarrow.parquet")
        nothing = [self._arrow.array([], field.type) for field in types]
        batch = self._arrow.RecordBatch.from_arrays(nothing, schema=types)
        part = self._arrow.py_buffer(bytes(types.serialize()) + bytes(batch.serialize()))
        table = self._arrow.ipc.open_stream(part).read_all()
        with parquet.ParquetWriter(self._arrow.BufferOutputStream(), types, compression=compression) as writer:
            writer.write_table(table)

    def encode(self, items: list[Any]) -> bytes:
        shape = self._shape or shape_of(items[0], self._names_given(), str(self))
        types = self._types or self._types_known()
        columns = shape.columns_of(items)
        if types is None:
            types = self._types_of(shape, columns)
        arrays = [self._array_of(field, column) for field, column in zip(types, columns, strict=True)]
        batch = self._arrow.RecordBatch.from_arrays(arrays, schema=types)
        content = bytes(batch.serialize())
        self._shape, self._types = shape, types
        if self.learned is None:
            self.learned = bytes(types.serialize())
        return content

    def _array_of(self, field: Any, values: Sequence[Any]) -> Any:
        is_given = self.schema is not None
        try:
            array = array_of(self._arrow, values, field.type, is_given=is_given)
        except MisfitError as error:
            whose = "that of the schema" if is_given else "the type of the first rows"
            raise UsageError(
                f"{self}: column {field.name!r}: expected {field.type}, {whose}; found {error}: make it fit before, or "
                "give schema=pyarrow.schema(...) with a type that holds it"
            ) from error
        strict = forbidden_none(self._arrow, array, field)
        if strict is not None:
            where = "" if strict == field.name else f" in {strict!r}"
            raise UsageError(f"{self}: column {field.name!r}: found None{where}, and the schema says nullable=False")
        return array

    def _names_given(self) -> tuple[str, ...] | None:
        known = self._types_known()
        if known is not None and not known.names:
            raise UsageError(
                f"{self}: expected a schema with columns, found one without; give another schema, or, if it came of "
                "rows that were empty, begin anew with fresh=True"
            )
        return self.columns if known is None else tuple(known.names)

    def _types_known(self) -> Any:
        """The schema that was given, or that of the files before; None: not yet."""
        if self.learned is not None:
            return self._arrow.ipc.read_schema(self._arrow.py_buffer(self.learned))
        return self.schema

    def _types_of(self, shape: Shape, columns: list[Any]) -> Any:
        arrays = [self._first_array_of(name, values) for name, values in zip(shape.columns, columns, strict=True)]
        for name, array in zip(shape.columns, arrays, strict=True):
            if self._arrow.types.is_null(array.type):
                raise UsageError(
                    f"{self}: the first rows have only None in column {name!r}: give schema=pyarrow.schema(...)"
                )
        types = self._arrow.schema([(name, array.type) for name, array in zip(shape.columns, arrays, strict=True)])
        self._check_types(types)
        return types

    def _first_array_of(self, name: str, values: Sequence[Any]) -> Any:
        try:
            return self._arrow.array(values)
        except REFUSALS as error:
            raise UsageError(
                f"{self}: column {name!r}: expected first rows with values of one type, found {error}: make them alike "
                "before, or give schema=pyarrow.schema(...)"
            ) from error

    def beginning(self) -> bytes:
        return bytes(self.learned)

    # -- making the file ---------------------------------------------------------------------------

    def publish(self, part: Path, final: Path) -> None:
        making = final.with_name(final.name + MAKING)
        self._make(part, making)
        if not final.exists():
            os.rename(making, final)
            self._sync_folder()  # Before the rows go: one of the two must survive.
        elif filecmp.cmp(making, final, shallow=False):
            making.unlink()  # A crash came before the part was removed.
        else:
            making.unlink()
            raise self._in_the_way(part, final)
        part.unlink()

    def _make(self, part: Path, making: Path) -> None:
        """Row groups of the same size whatever the commits were: the same rows make the same bytes."""
        parquet = importlib.import_module("pyarrow.parquet")
        with open(part, "rb") as source, open(making, "wb") as target:
            reader = self._arrow.ipc.open_stream(source)
            with parquet.ParquetWriter(target, reader.schema, compression=self.compression) as writer:
                for table in self._groups(reader):
                    writer.write_table(table, row_group_size=self.row_group_rows)
            target.flush()
            if self.sync == "power":
                os.fsync(target.fileno())

    def _groups(self, reader: Any) -> Any:
        waiting: list[Any] = []
        rows = 0
        for batch in reader:
            waiting.append(batch)
            rows += batch.num_rows
            while rows >= self.row_group_rows:
                table = self._arrow.Table.from_batches(waiting).combine_chunks()
                yield table.slice(0, self.row_group_rows)
                rows -= self.row_group_rows
                waiting = table.slice(self.row_group_rows).to_batches()
        if rows:
            yield self._arrow.Table.from_batches(waiting).combine_chunks()


def _pyarrow(owner: str) -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtraError(
            f"{owner}: Parquet files need the package pyarrow: pip install 'consecution[parquet]'", extra="parquet"
        ) from error
