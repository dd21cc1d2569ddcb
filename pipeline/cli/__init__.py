"""The command line: `fewstep COMMAND ...`, a module a group of commands."""
