"""Scripts in processes of their own that need not import torch again: they are forked from a server that has."""

import os
import runpy
import sys

import torch

from helpers import runs


def run(script, *arguments, cwd, log, prepare=None):
    """Run a file as ``python FILE ARGUMENTS``; what it prints. ``prepare`` is called in the new process before."""
    words = [str(script), *map(str, arguments)]
    process = runs.server.Process(target=_run, args=(words, str(cwd), [log, errors_of(log)], prepare))
    process.start()
    code = runs.ended(process)
    assert code == 0, errors_of(log).read_text()
    return log.read_text()


def errors_of(log):
    """Where what goes to standard error is."""
    return log.with_suffix(".err")


def _run(words, cwd, logs, prepare):
    torch.set_num_threads(1)
    for stream, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(cwd)
    sys.argv = words
    if prepare is not None:
        prepare()
    runpy.run_path(words[0], run_name="__main__")


class Other:
    """A function in a process of its own, with its standard input and output, as ``subprocess.Popen`` gives them."""

    def __init__(self, function, *arguments):
        (read, theirs), (mine, write) = runs.server.Pipe(duplex=False), runs.server.Pipe(duplex=False)
        self.process = runs.server.Process(target=_speak, args=(mine, theirs, function, arguments))
        self.process.start()
        self.stdout, self.stdin = os.fdopen(os.dup(read.fileno())), os.fdopen(os.dup(write.fileno()), "w")
        for end in (read, theirs, mine, write):
            end.close()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    @property
    def returncode(self):
        return self.process.exitcode

    def communicate(self, timeout):
        """What it prints from now on, and nothing of errors, which go where the tests' own go."""
        self.stdin.close()
        printed = self.stdout.read()
        self.process.join(timeout)
        assert not self.process.is_alive()
        return printed, None


def _speak(stdin, stdout, function, arguments):
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    stdin.close()
    stdout.close()
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    torch.set_num_threads(1)
    function(*arguments)
