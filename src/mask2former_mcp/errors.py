"""One error tree, named for what the caller does next.

    Mask2FormerError
    ├── InvalidRequest      change the arguments (unknown key, bad value, two arguments that disagree)
    │   └── DatasetError    change the data (missing file, wrong class count, illegal format)
    ├── NotFound            name something that exists (job, key, bundle, file)
    ├── WrongState          wait, or act on another job (resume of a running job, delete of a live one)
    ├── NotReady            call the same thing again in a moment
    ├── NotAvailable        this installation or platform cannot do it: install, configure, or choose another
    │   ├── ImageNotAvailable    bring the container image here: log in, correct its name, mend network or disk
    │   └── PlatformAway         start the platform's daemon again, or wait for it
    ├── BundleError         repair or regenerate the skill bundle
    └── StoreError          the job store cannot be used (newer schema version, unwritable home)

Every error carries a stable `code`, a `message` that is useful alone (the value, the rule) and a `fix` (what to do).
Nothing was started when one of these is raised while planning; `started` says so when it was.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class Mask2FormerError(Exception):
    """Base of everything this package raises on purpose."""

    code: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, fix: str, started: bool = False, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.started = started
        self.details = dict(details or {})


class InvalidRequest(Mask2FormerError):
    code = "invalid_request"


class DatasetError(InvalidRequest):
    code = "dataset_invalid"


class NotFound(Mask2FormerError):
    code = "not_found"


class WrongState(Mask2FormerError):
    code = "wrong_state"


class NotReady(Mask2FormerError):
    code = "not_ready"


class NotAvailable(Mask2FormerError):
    code = "not_available"


class ImageNotAvailable(NotAvailable):
    code = "image_not_available"


class PlatformAway(NotAvailable):
    code = "platform_away"


class BundleError(Mask2FormerError):
    code = "bundle_invalid"


class StoreError(Mask2FormerError):
    code = "store_error"
