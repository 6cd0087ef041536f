"""Which failures are tried again: what may pass, and nothing else."""

import errno

import pytest
import torch

from policyalign_assets.engine.loading import ModelNotFound
from policyalign_assets.filtering.select import NothingSelected
from policyalign_assets.runtime.exchange import Failed, Problem, problem_of


class _Response:
    def __init__(self, status):
        self.status_code = status


class HTTPError(OSError):
    """As requests has it: an OSError without a number."""

    def __init__(self, status):
        super().__init__(f"HTTP {status}")
        self.response = _Response(status)


class ApiException(Exception):
    """As the Kubernetes client has it."""

    def __init__(self, status):
        super().__init__(f"({status})")
        self.status = status


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError("reset"),
        BrokenPipeError(),
        TimeoutError(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        HTTPError(503),
        HTTPError(429),
        ApiException(500),
        caused(ModelNotFound("the hub cannot be reached"), ConnectionError("refused")),
        Failed(Problem("a worker was killed", True)),
    ],
    ids=repr,
)
def test_a_shortage_or_a_lost_connection_may_pass(error):
    assert problem_of(error).may_pass


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "anchors.txt"),
        PermissionError(errno.EACCES, "Permission denied", "data"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
        FileExistsError(errno.EEXIST, "exists"),
        OSError(errno.ENAMETOOLONG, "File name too long"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError("x does not appear to have a file named config.json"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ValueError("no"),
        KeyError("no"),
        HTTPError(401),
        HTTPError(404),
        ApiException(403),
        NothingSelected("nothing"),
        caused(ModelNotFound("no such folder"), OSError(errno.ENOENT, "No such file")),
        Failed(Problem("wrong", False)),
    ],
    ids=repr,
)
def test_a_wrong_input_is_never_tried_again(error):
    assert not problem_of(error).may_pass


def test_our_own_messages_stand_alone_and_others_name_their_kind():
    assert problem_of(NothingSelected("nothing. Fix: more.")).message == "nothing. Fix: more."
    assert problem_of(KeyError("x")).message.startswith("KeyError: ")
