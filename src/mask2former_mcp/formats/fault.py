"""What is wrong with a file: which file, which record, what the rule is."""

from pathlib import Path


class FormatError(ValueError):
    """A file does not hold what its format promises.

    `file` is the path as given, `id` the record's id where one exists, `code` a stable short name of the problem
    (`missing_file`, `unreadable`, `not_json`, `missing_key`, `bad_value`, `duplicate_id`, `size_mismatch`, ...).
    """

    def __init__(self, code: str, message: str, *, file: str | Path | None = None, id: int | str | None = None) -> None:
        where = "" if file is None else f"{file}: "
        record = "" if id is None else f" (id {id})"
        super().__init__(f"{where}{message}{record}")
        self.code = code
        self.reason = message
        self.file = None if file is None else str(file)
        self.id = id


def field(
    record: object, key: str, kind: type | tuple[type, ...], file: str | Path, id: int | str | None = None
) -> object:
    """The value of a required key with a type check; booleans never pass for integers.

    Raises FormatError naming the key, what was found and the record.
    """
    if not isinstance(record, dict):
        raise FormatError("bad_value", f"an object was expected, found {type(record).__name__}", file=file, id=id)
    if key not in record:
        raise FormatError("missing_key", f'the required key "{key}" is missing', file=file, id=id)
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise FormatError("bad_value", f'"{key}" must be {wanted}, found {value!r:.80}', file=file, id=id)
    return value


def integer(record: object, key: str, file: str | Path, id: int | str | None = None) -> int:
    """A required whole number (a float without fraction is accepted, as some tools write ids that way)."""
    if isinstance(record, dict) and type(plain := record.get(key)) is int:  # the usual case, a million times over
        return plain
    value = field(record, key, (int, float), file, id)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not (isinstance(value, float) and value.is_integer()):  # NaN and Infinity are no integers either
        raise FormatError("bad_value", f'"{key}" must be a whole number, found {value!r}', file=file, id=id)
    return int(value)


def text(record: object, key: str, file: str | Path, id: int | str | None = None) -> str:
    """A required, non-empty string."""
    value = field(record, key, str, file, id)
    if not value:
        raise FormatError("bad_value", f'"{key}" must not be empty', file=file, id=id)
    return str(value)


def boolean(record: object, key: str, file: str | Path, id: int | str | None = None) -> bool:
    """A required flag, written as 0/1 or true/false."""
    value = field(record, key, (int, bool), file, id)
    if value not in (0, 1):
        raise FormatError("bad_value", f'"{key}" must be 0 or 1, found {value!r}', file=file, id=id)
    return bool(value)
