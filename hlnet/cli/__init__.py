"""The command line: one module a command.

Every command parses its options, calls the library and shows the result; heavy imports lie inside the functions, so
that ``--help`` waits for none. :mod:`hlnet.cli.main` registers the commands and turns errors into one line.
"""
