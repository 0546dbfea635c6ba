"""What text does the model read? Chat templates: which one, applied to what, with the clock stopped."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError, TemplateSyntaxError

from ..errors import InputError
from .pair_rows import Messages, RowError, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "2024-07-26"  # what a template that asks for today's date gets: the same ids every day

# Shadows the function of the same name that templates call. A macro, as callables given to a template are made inert.
_STOPPED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    " | replace('%d', '26') | replace('%-d', '26') | replace('%e', '26') | replace('%j', '208')"
    " | replace('%m', '07') | replace('%-m', '7') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%Y', '2024') | replace('%y', '24') | replace('%a', 'Fri') | replace('%A', 'Friday')"
    " | replace('%F', '2024-07-26') | replace('%H', '00') | replace('%I', '12') | replace('%p', 'AM')"
    " | replace('%M', '00') | replace('%S', '00') -}}{%- endmacro -%}"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a prompt, and the same text with the completion after it."""

    prompt: str
    full: str | None
    templated: bool  # then the special tokens are in the text, else the tokenizer adds them


class Renderer:
    """Applies a template policy: "auto" (messages only), "chat" (strings too, as one user turn), "none", or a file.

    Raises InputError where the policy needs a template that is not there.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", policy: str, *, source: str = "pairs") -> None:
        self.tokenizer = tokenizer
        self.source = source  # the file, for messages
        self.policy = policy
        self.origin = "none"  # where the template came from
        self.template: str | None = None  # its source
        if policy in ("auto", "chat"):
            self.template = _own_template(tokenizer)
            self.origin = "tokenizer" if self.template else "none"
        elif policy != "none":
            self.template, self.origin = read_template(policy), str(policy)
        if policy == "chat" and self.template is None:
            raise InputError("template='chat': the tokenizer has no chat template; give a Jinja file, or use 'none'")
        self.has_own = _own_template(tokenizer) is not None
        self.fixes_date = self.template is not None and "strftime_now" in self.template
        self._source = _STOPPED_CLOCK + self.template if self.template and self.fixes_date else self.template
        if self._source is not None:
            self._require_syntax()

    @property
    def template_hash(self) -> str | None:
        """sha256 of the template's source; None where no text can be templated."""
        return None if self.template is None else hashlib.sha256(self.template.encode()).hexdigest()

    def templates(self, text: Text) -> bool:
        """Whether a prompt of this form goes through the template."""
        return not isinstance(text, str) or self.policy not in ("auto", "none")

    def render(self, prompt: Text, completion: Text | None, row: int) -> Rendered:
        """Raises InputError for messages without a template, RowError where the template refuses the messages."""
        if not self.templates(prompt):
            assert isinstance(prompt, str)
            if completion is not None and not isinstance(completion, str):
                raise RowError("mixed_forms", "the prompt is a string, the completion messages")
            return Rendered(prompt, None if completion is None else prompt + completion, templated=False)
        if self._source is None:
            why = "template='none' rules it out" if self.policy == "none" else "the tokenizer has none"
            raise InputError(
                f"{self.source}, row {row}: messages need a chat template, and {why}; "
                "name a Jinja file as template, or write the prompts as strings"
            )
        asked = _messages(prompt, "user")
        try:
            text = self._apply(asked, add_generation_prompt=True)
            full = None
            if completion is not None:
                full = self._apply(asked + _messages(completion, "assistant"), add_generation_prompt=False)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise RowError("template_refused", f"the chat template refuses the messages: {error}") from error
        return Rendered(text, full, templated=True)

    def _require_syntax(self) -> None:
        try:
            self._apply(_messages("?", "user"), add_generation_prompt=True)
        except TemplateSyntaxError as error:
            raise InputError(f"template {self.origin}, line {error.lineno}: not a Jinja template ({error})") from error
        except (TemplateError, ValueError, TypeError, KeyError):
            return  # it wants other messages: rows will tell

    def _apply(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )


def _messages(text: Text, role: str) -> Messages:
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's template; of several named ones, the one called default."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return template.get("default")
    return template or None


def template_file_hash(policy: str) -> str | None:
    """sha256 of the Jinja file that a template policy names; None for "auto", "chat", "none". InputError without it."""
    if policy in ("auto", "chat", "none"):
        return None
    return hashlib.sha256(read_template(policy).encode()).hexdigest()


def read_template(policy: str) -> str:
    path = Path(policy)
    if not path.is_file():
        raise InputError(f"template={policy!r}: neither 'auto', 'chat' nor 'none', and no such file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable template ({error}); expected a Jinja file in UTF-8") from error
