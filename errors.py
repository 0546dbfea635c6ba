"""The errors a user can mend. Each message names the file, row, layer or shape, what was expected, and what to do."""


class InputError(ValueError):
    """A model, file or setting that cannot be used as given. The command line prints it alone and exits with 2."""


class NoTokenizerError(InputError, AttributeError):
    """A model wrapped without a tokenizer was asked for text. An AttributeError too: the attribute is not there."""


class AnatomyError(InputError):
    """The read-out of a model could not be found, or found and not proved (probes/anatomy.py)."""
