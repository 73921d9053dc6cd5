"""Data, losses, metrics, training and figures. Built on `nets`; used by the scripts, the notebooks and the tests."""

import os

# albumentations asks a package index for its newest version at import; a training job should not.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class UserError(Exception):
    """A mistake the user can mend: one line that names the file or value, what was expected and the next step.

    The scripts print it without a traceback and end with exit code 2; so do notebooks, which ask for what to show.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]
