"""The command line: one module a command group. Command bodies import the library, so that --help is fast."""
