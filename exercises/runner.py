"""The process that runs code of students: a child for each exercise, forked from here since torch
takes seconds to import.

The grader copies this file and probes.py into a folder of their own, so that nothing here knows
where the answers are. One JSON per line: {folder, probe, result, seconds} comes in, what happened
goes out: "ended", "late" or "crashed". A task also has `ours`: the names of functions that are no
student's.
"""

import ctypes
import json
import linecache
import os
import re
import resource
import signal
import struct
import sys
import time
import traceback

MEMORY = 16 * 2**30
RESULT = 16 * 2**20  # bytes
WALL = 6  # times the seconds of a processor: that much slower may a busy machine be

# What a function that computes has no need of. This keeps honest code from accidents and the
# curious out; it is no prison, see docs/teaching.md.
REFUSED = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.chdir", "shutil.", "socket.", "ctypes.", "pty.",
)
READING = ("open", "os.listdir", "os.scandir")


def serve():
    """Answers the grader's lines until there are no more."""
    sys.path[:] = json.loads(sys.stdin.readline())
    import numpy  # noqa: F401  imported here once, for all children
    import torch
    import torch.utils.checkpoint
    import torch.utils.data
    import einops.layers.torch  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tqdm  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)


def run(task):
    """Forks a child for one exercise; what became of it."""
    child = os.fork()
    if not child:
        answer(**task)
    deadline = time.monotonic() + WALL * task["seconds"]
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "late"
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return "late" if late else "crashed"
    return "ended"


def answer(folder, probe, result, seconds, ours):
    """In the child: runs the probe on the code in `folder`, writes its answers as JSON, ends."""
    with open(result, "w") as file:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # what is printed goes nowhere, and nobody answers the grader
            os.dup2(nothing, stream)
        limits = {
            resource.RLIMIT_CPU: seconds,
            resource.RLIMIT_AS: MEMORY,
            resource.RLIMIT_FSIZE: RESULT,
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, value))

        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, folder)
        import probes
        answers = {}
        fence([folder, *sys.path, sys.prefix, sys.base_prefix, "/usr/lib", "/lib"])
        try:
            for name, value in getattr(probes, probe)():
                answers[name] = probes.encode(value)
        except BaseException as error:  # whatever a student's code raises is an answer
            answers["error"] = in_words(error, folder, ours)
        json.dump(answers, file)
    os._exit(0)


def fence(readable):
    """From here on this process reads files in these folders alone, opens none to write, starts
    nothing: by the kernel where it can, and by a hook of Python."""
    lock(readable)
    roots = tuple(os.path.join(os.path.realpath(path), "") for path in readable)

    def watch(event, args):
        if event.startswith(REFUSED):
            raise PermissionError(f"code of a hand-out has no need of {event}")
        if event not in READING or isinstance(args[0], int):
            return
        path = os.path.realpath(os.fsdecode(args[0] or "."))
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or not os.path.join(path, "").startswith(roots):
            raise PermissionError(f"code of a hand-out has no need of the file {path}")

    sys.addaudithook(watch)


def lock(readable):
    """Landlock (Linux 5.13 and newer): the kernel lets this process read these folders and no other
    files, whatever code it runs. Does nothing elsewhere."""
    create, add, restrict = 444, 445, 446  # numbers of system calls, alike on all machines
    path_beneath, no_new_privileges = 1, 38
    everything = (1 << 13) - 1  # the rights of its first version
    reading = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder

    libc = ctypes.CDLL(None)
    handled = ctypes.c_uint64(everything)
    rules = libc.syscall(create, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    for path in filter(os.path.isdir, readable):
        folder = os.open(path, os.O_PATH)
        libc.syscall(add, rules, path_beneath, struct.pack("=Qi", reading, folder), 0)
        os.close(folder)
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    libc.syscall(restrict, rules, 0)


def in_words(error, folder, ours):
    """What was raised, and where in the student's own code, in one line; of our code not a word."""
    if isinstance(error, SystemExit):
        return "it ends the program (sys.exit): give the result back by return"
    message = " ".join(str(error).split())[:200]
    where = " outside of your functions, which got something that they cannot use from yours"
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(folder):
            continue
        module = os.path.relpath(file, folder).removesuffix(".py").replace(os.sep, ".")
        function = frame.f_code.co_qualname.partition(".<locals>")[0]
        is_ours = f"{module}.{function}" in ours
        if not is_ours:
            line = linecache.getline(file, number).strip()
            where = f" in {frame.f_code.co_name}, at `{line}`"
        else:
            message = re.sub('pattern "[^"]*"', "pattern", message)  # einops quotes our line
    return f"{type(error).__name__}{where}: {message}"


if __name__ == "__main__":
    serve()
