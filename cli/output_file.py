"""Can the result be written where it was asked for? Found out before the work, not after it."""

from pathlib import Path


def require_free(file: Path, *, overwrite: bool, endings: tuple[str, ...] = ()) -> None:
    """InputError for another ending, a file that is there unless overwrite, and a folder that cannot be made."""
    from ..errors import InputError

    if endings and file.suffix.lower() not in endings:
        raise InputError(f"{file}: written as {' or '.join(endings)}; name the file so")
    if file.is_dir():
        raise InputError(f"{file}: a folder; name a file")
    if file.exists() and not overwrite:
        raise InputError(f"{file}: is there already; --overwrite replaces it, or choose another name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); choose another place") from error
