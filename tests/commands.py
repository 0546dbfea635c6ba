"""`alignscope` commands in this process, for tests."""

import json

from typer.testing import CliRunner

from alignscope import InputError
from alignscope.cli.main import app


def run(*arguments: object):
    """The outcome of an `alignscope` command that ends well; an InputError is raised as it is."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def read(*arguments: object):
    """The JSON that a command prints."""
    return json.loads(run(*arguments, "--json").stdout)
