"""Keep other libraries' messages and look-ups out of our way while a model loads: users see our messages only."""

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What is switched belongs to the whole process. Two loads at once would take each other's settings for those to put
# back, so the second waits; a load within a load (an adapter on its base) goes on.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet_loading(*, offline: bool) -> Iterator[None]:
    """Inside: no log lines and progress bars of transformers and peft, and with `offline` no look-up on a hub.

    One thread at a time, others wait. Everything is put back afterwards, the random state of torch included (layers are
    initialised before they are filled). Python warnings of the loaders are dropped here only: what they say of weights
    is checked by us.
    """
    import transformers.modeling_gguf_pytorch_utils as gguf_loader
    from huggingface_hub import constants
    from transformers.utils import logging

    with _ONE_AT_A_TIME:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        bar, variable, constant = gguf_loader.tqdm, os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        gguf_loader.tqdm = functools.partial(bar, disable=True)  # this one bar asks nobody whether it may show
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
            constants.HF_HUB_OFFLINE = True  # read from the environment at import only
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                yield
        finally:
            constants.HF_HUB_OFFLINE = constant
            if variable is None:
                os.environ.pop("HF_HUB_OFFLINE", None)
            else:
                os.environ["HF_HUB_OFFLINE"] = variable
            gguf_loader.tqdm = bar
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
