"""What an error is said as, and the status that a process ends with for it."""

import errno

EXIT_FAILED = 1  # a defect: its traceback says where
EXIT_MISTAKE = 2  # what a user can mend, said in one line
EXIT_GATE = 3  # the retention gate: to start it again would not help
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: worth another try
EXIT_INTERRUPTED = 130  # 128 + SIGINT: somebody pressed Ctrl-C
EXIT_TERMINATED = 143  # 128 + SIGTERM, what a scheduler expects of a job it ended

# What must hold of a path, by how the system refused it.
_PATH_RULES = {
    errno.ENOENT: "must exist",
    errno.ENOTDIR: "must lie in a directory",
    errno.EEXIST: "must be a directory",
    errno.EISDIR: "must be a file",
    errno.ENOSPC: "must be on a disk with room",
}


def describe_error(error: BaseException) -> tuple[int, str]:
    """Returns the exit status for an error and what it says, in one line.

    A user's mistake is a ValueError; what the system refuses is said in the same form. A connection that
    broke is worth another try.

    >>> describe_error(FileNotFoundError(2, "No such file or directory", "w/manifest.json"))
    (2, 'w/manifest.json: must exist, got no such file or directory.')
    """
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted; the same command starts again."
    if not isinstance(error, (ValueError, OSError)):
        return EXIT_FAILED, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return EXIT_AGAIN, " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        rule = _PATH_RULES.get(error.errno, "must be readable and writable")
        return EXIT_MISTAKE, f"{error.filename}: {rule}, got {error.strerror.lower()}."
    return EXIT_MISTAKE, " ".join(str(error).split())
