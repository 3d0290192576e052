"""Bad samples set aside in the open: each one is written to a file, counted, and too many of them stop the run.

The default elsewhere is `on_bad_sample = error`. With `quarantine` a sample that cannot be used leaves its batch smaller; no other
sample is put in its place, because that would use one twice and shrink the set unseen.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from vision_remember.data.schema import DataError, Problem

CEILING = 0.001


class Quarantine:
    """The file of lost samples of one run; safe to share with loader workers, which append to the same file.

    Args:
        path: JSON lines, one problem each; an existing file is continued, so a resumed run counts a sample once.
        num_samples: Size of the data set.
        ceiling: Largest share of it that may be lost; one sample always may.

    Raises:
        DataError: The file already holds more than the ceiling allows.
    """

    def __init__(self, path: str | Path, *, num_samples: int, ceiling: float = CEILING):
        self.path, self.num_samples, self.ceiling = Path(path), num_samples, ceiling
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._check(self.places())

    def add(self, error: DataError, where: str) -> None:
        """Sets one sample aside.

        Args:
            error: Why it cannot be used.
            where: The sample.

        Raises:
            DataError: That is one too many; the message names the file.
        """
        places = self.places()
        if where in places:
            return
        problems = error.problems or (Problem(code="sample", where=where, why=str(error), fix="mend or remove it"),)
        lines = "".join(json.dumps(problem.as_dict() | {"where": where}) + "\n" for problem in problems)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())  # one write to an append-only file: lines of two workers never mix
        finally:
            os.close(descriptor)
        self._check(places | {where})

    def places(self) -> set[str]:
        """The samples set aside so far, by all workers."""
        if not self.path.exists():
            return set()
        return {json.loads(line)["where"] for line in self.path.read_text(encoding="utf-8").splitlines()}

    def summary(self) -> str:
        """One line for the end of a run: how many were lost, of how many, and where they are listed."""
        return f"{len(self.places())} of {self.num_samples} samples set aside, listed in {self.path.name}"

    def _check(self, places: set[str]) -> None:
        allowed = max(1, int(self.ceiling * self.num_samples))
        if len(places) > allowed:
            raise DataError(
                f"{len(places)} of {self.num_samples} samples are bad, more than the {allowed} allowed; they are listed in "
                f"{self.path.name}: mend the data (`vision-remember data check` lists everything)"
            )
