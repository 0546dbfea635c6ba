"""What the tokenizer and the chat template do to text: facts that move every score, and mistakes that show nowhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from .doctor_checks import Check
from .probe_rows import TEXTS, encode, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..probes.subject import Subject

_ASKED = [{"role": "user", "content": "What is two plus two?"}]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "Four."}]


def text_checks(subject: "Subject", texts: Sequence[str] | None) -> list[Check]:
    """Rows on tokenizer, template and length; one notice where the subject was wrapped without a tokenizer."""
    tokenizer = tokenizer_of(subject)
    if tokenizer is None:
        return [
            Check(check="tokenizer", value="none", verdict="notice", advice="wrapped without one: ids only, no text"),
            _limit(subject, None),
        ]
    return [
        *_tokenizer(subject, tokenizer),
        *_template(tokenizer),
        _limit(subject, _longest(tokenizer, TEXTS if texts is None else texts)),
    ]


def _tokenizer(subject: "Subject", tokenizer: "PreTrainedTokenizerBase") -> list[Check]:
    encoded = [encode(tokenizer, text, special=False) for text in TEXTS]
    readable = [(text, ids) for text, ids in zip(TEXTS, encoded, strict=True) if ids is not None]
    same = sum(
        tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == text.strip() for text, ids in readable
    )
    extra = len(tokenizer) - subject.vocab_size
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    rows = [
        Check(
            check="tokenizer round trip",
            value=f"{same} of {len(TEXTS)}",
            unit="texts",
            threshold="all",
            verdict="ok" if same == len(TEXTS) else "notice",
            advice="decode(encode(text)) gives the text back"
            if same == len(TEXTS)
            else f"{len(readable) - same} built-in texts come back changed, {len(TEXTS) - len(readable)} cannot be "
            "encoded: scores are of the tokens, not of your exact text",
            number=same / len(TEXTS),
            n=len(TEXTS),
        ),
        Check(
            check="tokenizer length",
            value=f"{len(tokenizer)} for {subject.vocab_size} rows",
            unit="entries",
            threshold="<= rows of the head",
            verdict="ok" if extra <= 0 else "notice",
            advice="every id has a row"
            if extra <= 0
            else f"{extra} ids have no row in the head; text that uses one is refused, with its row",
            number=float(len(tokenizer)),
        ),
        Check(
            check="pad token",
            value="none" if pad is None else f"{tokenizer.pad_token!r} ({pad})",
            threshold="not the end token",
            verdict="notice" if pad is not None and pad == eos else "ok",
            advice="pad = end of sequence: a mask built as ids != pad hides the real end; the mask is kept apart here"
            if pad is not None and pad == eos
            else "the mask says what is padding; a pad token is not needed",
        ),
    ]
    caught = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token and _is_special(tokenizer, token)]
    if caught:
        names = ", ".join(dict.fromkeys(map(repr, caught)))
        rows.append(
            Check(
                check="special tokens in text",
                value=names,
                threshold="none",
                verdict="notice",
                advice="written out in plain text they become the real token: pairs that contain one are counted",
            )
        )
    return rows


def _is_special(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    ids = encode(tokenizer, f"a{token}b", special=False)
    return ids is not None and tokenizer.convert_tokens_to_ids(token) in ids


def _template(tokenizer: "PreTrainedTokenizerBase") -> list[Check]:
    if not getattr(tokenizer, "chat_template", None):
        return [Check(check="chat template", value="none", advice="a base model: give texts raw (--template none)")]
    try:
        asked = _ids(tokenizer, _ASKED, add_generation_prompt=True)
        bare = _ids(tokenizer, _ASKED, add_generation_prompt=False)
        answered = _ids(tokenizer, _ANSWERED, add_generation_prompt=False)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        return [
            Check(
                check="chat template",
                value="fails",
                verdict="alarm",
                advice=f"one user turn cannot be rendered ({error}); use --template none, or --template FILE",
            )
        ]
    extends, starts = asked[: len(bare)] == bare, answered[: len(asked)] == asked
    bos = tokenizer.bos_token_id
    twice = bos is not None and asked[:2] == [bos, bos]
    rows = [
        Check(
            check="chat template",
            value="present",
            threshold="prompt is a prefix of the conversation",
            verdict="ok" if extends and starts and not twice else "alarm",
            advice=_template_advice(extends, starts, twice, len(asked) - _content_length(tokenizer)),
        )
    ]
    system = [{"role": "system", "content": "Be brief."}, *_ASKED]
    try:
        with_system = _ids(tokenizer, system, add_generation_prompt=True)
        refused = "" if with_system != asked else "the template drops a system message without a word"
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        refused = f"the template refuses a system message ({error})"
    rows.append(
        Check(
            check="system role",
            value="refused" if refused else "accepted",
            verdict="notice" if refused else "ok",
            advice=refused or "system messages reach the prompt",
        )
    )
    return rows


def _ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, return_dict=True, tokenize=True, **options)["input_ids"])


def _content_length(tokenizer: "PreTrainedTokenizerBase") -> int:
    return len(encode(tokenizer, _ASKED[0]["content"], special=False) or [])


def _template_advice(extends: bool, starts: bool, twice: bool, overhead: int) -> str:
    if twice:
        return "the template writes the begin token twice; every score is of a text the model was not trained on"
    if not extends:
        return "asking for the generation prompt changes the prompt's ids: prompt and completion cannot be told apart"
    if not starts:
        return "the prompt's ids are no prefix of prompt + answer: completions would be scored under another prompt"
    return f"adds {overhead} tokens to a one-turn prompt; the answer follows the prompt's ids exactly"


def _longest(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> int | None:
    lengths = [len(ids) for text in texts if (ids := encode(tokenizer, text)) is not None]
    return max(lengths, default=None)


def _limit(subject: "Subject", longest: int | None) -> Check:
    over = subject.limit is not None and longest is not None and longest > subject.limit
    shown = "" if longest is None else f"; the longest text here has {longest}"
    return Check(
        check="length limit",
        value="none stated" if subject.limit is None else str(subject.limit),
        unit="tokens",
        threshold="longest text within it",
        verdict="notice" if over else "ok",
        advice=(f"texts above the limit are set aside or cut{shown}" if over else f"longer input is refused{shown}"),
        number=None if subject.limit is None else float(subject.limit),
    )
